"""What is wrong with a request is said in OpenAI's shape, and the server goes on."""

import httpx
import pytest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
SAY = {"messages": [{"role": "user", "content": "x"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": ["x"]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages"),
        (CHAT, {**SAY, "max_tokens": 0}, "max_tokens"),
        (CHAT, {**SAY, "max_tokens": -1}, "max_tokens"),
        (CHAT, {**SAY, "max_tokens": True}, "max_tokens"),
        (CHAT, {**SAY, "max_completion_tokens": "9"}, "max_completion_tokens"),
        (CHAT, {**SAY, "max_tokens": 10**30}, "max_tokens"),
        (CHAT, {**SAY, "n": 129}, "n"),
        (CHAT, {**SAY, "n": 1.5}, "n"),
        (CHAT, {**SAY, "stop": [""]}, "stop"),
        (CHAT, {**SAY, "stop": ["x"] * 17}, "stop"),
        (CHAT, {**SAY, "stream": "yes"}, "stream"),
        (CHAT, {**SAY, "stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {**SAY, "stream": True, "stream_options": []}, "stream_options"),
        (CHAT, {**SAY, "cache_salt": 1}, "cache_salt"),
        (CHAT, {**SAY, "logprobs": True}, "logprobs"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", ""]}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", [1]] * 513}, "prompt"),
        (COMPLETIONS, {"prompt": ["x"] * 1024, "n": 2}, "n"),
        (COMPLETIONS, {"prompt": ["x"] * 8, "n": 128, "ignore_eos": True}, "n"),
        (COMPLETIONS, {"prompt": [1, -1]}, "prompt"),
        (COMPLETIONS, {"prompt": [1 << 17]}, "prompt"),
        (COMPLETIONS, {"prompt": "x", "echo": True}, "echo"),
        (COMPLETIONS, {"prompt": "x", "best_of": 2}, "best_of"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        (EMBEDDINGS, {"input": "x", "dimensions": 0}, "dimensions"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, path: str, body: dict[str, object], param: str) -> None:
    answer = http.post(path, json={"model": "sim-small", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    # An integer beyond 64 bits is not JSON to the parser, so no field is known.
    assert error["param"] == param or body.get("max_tokens") == 10**30


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 100_000]
)
def test_a_malformed_body_is_refused(http: httpx.Client, raw: bytes) -> None:
    answer = http.post(CHAT, content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "nobody", **SAY})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {**SAY, "max_tokens": 4_096}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 5_000}]}, "messages"),
        (COMPLETIONS, {"prompt": [1] * 4_096}, "prompt"),
        (EMBEDDINGS, {"input": [1] * 4_097}, "input"),
    ],
)
def test_what_exceeds_the_context_is_refused(
    http: httpx.Client, path: str, body: dict[str, object], param: str
) -> None:
    answer = http.post(path, json={"model": "sim-small", **body})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("context_length_exceeded", param)


def test_a_body_over_the_limit_is_refused(http: httpx.Client) -> None:
    answer = http.post(CHAT, content=b"x" * (9 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_unknown_paths_and_methods_are_refused(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.get(CHAT).status_code == 405


def test_a_request_id_has_a_limit(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "sim-small", **SAY}, headers={"x-request-id": "r" * 257})
    assert answer.status_code == 400
