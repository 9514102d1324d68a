"""Tokens, answers and vectors: deterministic, and never more than the bytes they come from."""

from math import sqrt

from hypothesis import given
from hypothesis import strategies as st

from runtime.sim.embedding import embed
from runtime.sim.output import NATURAL_TOKENS_MAX, NATURAL_TOKENS_MIN, write_output
from runtime.sim.request import FinishReason
from runtime.sim.tokenizer import (
    END_OF_TURN,
    TEMPLATE_TOKENS_PER_MESSAGE,
    TEMPLATE_TOKENS_PER_PROMPT,
    VOCAB_SIZE,
    encode,
    encode_chat,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=50)


@given(texts)
def test_a_text_has_at_most_as_many_tokens_as_bytes(text: str) -> None:
    tokens = encode(text)
    assert len(tokens) <= len(text.encode())
    assert bool(tokens) == bool(text)
    assert all(0 <= token < VOCAB_SIZE for token in tokens)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "robot"]), texts), max_size=5))
def test_the_template_adds_no_more_than_it_says(messages: list[tuple[str, str]]) -> None:
    content = sum(len(encode(text)) for _, text in messages)
    allowance = TEMPLATE_TOKENS_PER_PROMPT + TEMPLATE_TOKENS_PER_MESSAGE * len(messages)
    assert len(encode_chat(messages)) <= content + allowance


def test_token_ids_are_the_same_in_every_process() -> None:
    assert encode("Hello, world") == [84050, 100990, 103611]


@given(prompts, st.integers(-(2**63), 2**63 - 1), st.integers(1, 400))
def test_an_answer_is_a_function_of_prompt_and_seed(prompt: list[int], seed: int, tokens_max: int) -> None:
    first = write_output(prompt, seed=seed, tokens_max=tokens_max, ignore_eos=False, stop=())
    assert first == write_output(list(prompt), seed=seed, tokens_max=tokens_max, ignore_eos=False, stop=())
    assert 1 <= len(first.tokens) == len(first.texts) <= min(tokens_max, NATURAL_TOKENS_MAX)
    if first.finish_reason is FinishReason.STOP:
        assert len(first.tokens) >= NATURAL_TOKENS_MIN
        assert (first.tokens[-1], first.texts[-1]) == (END_OF_TURN, "")
    else:
        assert len(first.tokens) == tokens_max


@given(prompts, st.integers(1, 400))
def test_ignoring_the_end_gives_exactly_the_tokens_allowed(prompt: list[int], tokens_max: int) -> None:
    output = write_output(prompt, seed=0, tokens_max=tokens_max, ignore_eos=True, stop=())
    assert (len(output.tokens), output.finish_reason) == (tokens_max, FinishReason.LENGTH)


@given(prompts)
def test_a_conversation_continues_the_tokens_of_its_answer(prompt: list[int]) -> None:
    output = write_output(prompt, seed=0, tokens_max=1_000, ignore_eos=False, stop=())
    assert encode("".join(output.texts)) == output.tokens[:-1]


@given(prompts, st.integers(1, 40), st.integers(1, 12))
def test_a_stop_string_ends_the_text_before_it_and_counts_the_tokens_up_to_it(
    prompt: list[int], start: int, width: int
) -> None:
    whole = write_output(prompt, seed=0, tokens_max=100, ignore_eos=True, stop=())
    text = "".join(whole.texts)
    string = text[start : start + width]
    output = write_output(prompt, seed=0, tokens_max=100, ignore_eos=True, stop=["\x00", string])
    end = text.index(string) + len(string)
    assert "".join(output.texts) == text[: text.index(string)]
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, string)
    assert output.tokens == whole.tokens[: len(output.tokens)]
    assert len("".join(whole.texts[: len(output.tokens) - 1])) < end <= len("".join(whole.texts[: len(output.tokens)]))


def test_answers_differ_by_seed() -> None:
    answers = {
        tuple(write_output([1, 2, 3], seed=seed, tokens_max=64, ignore_eos=True, stop=()).tokens) for seed in range(20)
    }
    assert len(answers) == 20


@given(prompts, st.integers(1, 300))
def test_vectors_have_length_one_and_depend_on_the_prompt(prompt: list[int], dimensions: int) -> None:
    vector = embed(prompt, dimensions)
    assert len(vector) == dimensions
    assert abs(sqrt(sum(value * value for value in vector)) - 1) < 1e-5
    assert vector == embed(list(prompt), dimensions)


def test_other_prompts_have_other_vectors() -> None:
    assert embed([1, 2], 64) != embed([2, 1], 64)
