"""Chat and completions over real HTTP, through the OpenAI SDK."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

LONG = "The quick brown fox jumps over the lazy dog. " * 20


def chat(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events; checks that it ends with the end mark."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_comes_whole_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sim-small", messages=chat("Hello"), max_tokens=12)
    assert answer.usage is not None
    assert answer.choices[0].finish_reason == "length"
    assert len((answer.choices[0].message.content or "").split()) == answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.id.startswith("chatcmpl-")


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked = {"model": "sim-small", "messages": chat("Say the same"), "seed": 7}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_continuous_usage_counts_up_to_the_final_usage(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "sim-small", "messages": chat("Count"), "max_tokens": 9, "stream": True, "stream_options": options}
    chunks = events(http.post("/v1/chat/completions", json=body))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 9
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_continuous_usage_needs_include_usage_as_in_vllm(http: httpx.Client) -> None:
    options = {"continuous_usage_stats": True}
    body = {"model": "sim-small", "prompt": "Count", "max_tokens": 3, "stream": True, "stream_options": options}
    assert all("usage" not in chunk for chunk in events(http.post("/v1/completions", json=body)))


def test_a_repeated_prefix_is_cached_and_another_salt_is_not(client: openai.OpenAI) -> None:
    def cached_tokens(salt: str) -> int:
        answer = client.chat.completions.create(
            model="sim-large", messages=chat(LONG), max_tokens=2, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached_tokens("team-a") == 0
    again = cached_tokens("team-a")
    assert again > 0
    assert again % 16 == 0
    assert cached_tokens("team-b") == 0


def test_the_next_turn_of_a_conversation_reuses_prompt_and_answer(client: openai.OpenAI) -> None:
    messages = chat(LONG + "turns")
    first = client.chat.completions.create(model="sim-large", messages=messages)
    assert first.usage is not None
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages.append({"role": "user", "content": "Go on"})
    second = client.chat.completions.create(model="sim-large", messages=messages, max_tokens=1)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    # All whole blocks of the first turn but for its last token, which was never computed.
    assert second.usage.prompt_tokens_details.cached_tokens == (first.usage.total_tokens - 1) // 16 * 16


def test_choices_differ_and_are_all_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="sim-small", messages=chat("Thrice"), n=3, max_tokens=5)
    single = client.chat.completions.create(model="sim-small", messages=chat("Thrice"), max_tokens=5)
    assert answer.usage is not None
    assert single.usage is not None
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.choices[0].message.content == single.choices[0].message.content
    assert answer.usage.completion_tokens == 15
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer(client: openai.OpenAI, stream: bool) -> None:
    whole = client.chat.completions.create(model="sim-small", messages=chat("Stop"), max_tokens=16)
    text = whole.choices[0].message.content or ""
    stop = text.split()[3]
    if stream:
        chunks = list(
            client.chat.completions.create(
                model="sim-small", messages=chat("Stop"), max_tokens=16, stop=[stop], stream=True
            )
        )
        cut = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(model="sim-small", messages=chat("Stop"), max_tokens=16, stop=stop)
        cut, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert cut == text[: text.index(stop)]
    assert reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "choices", "prompt_tokens"),
    [("one two", 1, 2), (["one", "two three"], 2, 3), ([5, 6, 7], 1, 3), ([[5, 6], [7]], 2, 3)],
)
def test_prompts_come_as_text_or_tokens_one_or_many(
    client: openai.OpenAI, prompt: Any, choices: int, prompt_tokens: int
) -> None:
    answer = client.completions.create(model="sim-small", prompt=prompt, max_tokens=4)
    assert answer.usage is not None
    assert [choice.index for choice in answer.choices] == list(range(choices))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, 4 * choices)


def test_a_stream_of_several_prompts_keeps_them_apart(client: openai.OpenAI) -> None:
    asked = {"model": "sim-small", "prompt": ["first", "second"], "n": 2, "max_tokens": 6}
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    texts = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_ignoring_the_end_gives_all_tokens_allowed(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="sim-small", prompt="Long", max_tokens=700, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (700, "length")


def test_without_a_limit_an_answer_has_its_natural_length_within_the_context(client: openai.OpenAI) -> None:
    natural = client.completions.create(model="sim-small", prompt="Natural")
    assert natural.usage is not None
    assert 16 <= natural.usage.completion_tokens <= 256
    assert natural.choices[0].finish_reason == "stop"
    tight = client.completions.create(model="sim-small", prompt=[1] * 4_090)
    assert tight.usage is not None
    assert (tight.usage.total_tokens, tight.choices[0].finish_reason) == (4_096, "length")


def test_max_completion_tokens_goes_before_max_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim-small", messages=chat("Both"), max_tokens=9, max_completion_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("path", "prompt", "prefix"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "chatcmpl"),
        ("/v1/completions", {"prompt": "x"}, "cmpl"),
    ],
)
def test_the_request_id_of_the_header_becomes_the_id(
    http: httpx.Client, path: str, prompt: dict[str, object], prefix: str
) -> None:
    body = {"model": "sim-small", "max_tokens": 1, **prompt}
    for _ in range(2):
        assert http.post(path, json=body, headers={"X-Request-Id": "R-1"}).json()["id"] == f"{prefix}-R-1"


def test_content_may_come_in_text_parts_and_tools_count_as_input(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    asked: dict[str, Any] = {"model": "sim-small", "max_tokens": 2}
    whole = client.chat.completions.create(messages=chat("Hello there"), **asked)
    split = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    armed = client.chat.completions.create(messages=chat("Hello there"), tools=[tool], **asked)
    assert split.choices == whole.choices
    assert armed.usage is not None
    assert split.usage is not None
    assert whole.usage is not None
    assert armed.usage.prompt_tokens > split.usage.prompt_tokens == whole.usage.prompt_tokens
