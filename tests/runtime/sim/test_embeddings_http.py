"""Embeddings over real HTTP, through the OpenAI SDK."""

from math import sqrt

import openai
import pytest


def test_vectors_have_length_one_and_are_repeatable(client: openai.OpenAI) -> None:
    answers = [client.embeddings.create(model="sim-small", input=["hello world", "bye"]) for _ in range(2)]
    vectors = [item.embedding for item in answers[0].data]
    assert vectors == [item.embedding for item in answers[1].data]
    assert vectors[0] != vectors[1]
    assert all(abs(sqrt(sum(value * value for value in vector)) - 1) < 1e-5 for vector in vectors)
    assert answers[0].usage.prompt_tokens == answers[0].usage.total_tokens == 3


def test_floats_and_base64_say_the_same(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="sim-small", input="hello", encoding_format="float", dimensions=8)
    encoded = client.embeddings.create(model="sim-small", input="hello", dimensions=8)
    assert len(floats.data[0].embedding) == 8
    assert encoded.data[0].embedding == pytest.approx(floats.data[0].embedding)


def test_token_ids_can_be_embedded(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="sim-small", input=[[1, 2, 3], [4]])
    assert [len(item.embedding) for item in answer.data] == [256, 256]
    assert answer.usage.prompt_tokens == 4
