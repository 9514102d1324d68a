"""The load test can tell a good answer from a bad one."""

import json

import pytest

from tests.load.answers import fault, stream_fault, usage_fault

ID = {"x-request-id": "r-1"}
CHUNK = 'data: {"choices": [{"delta": {"content": "a"}}]}'


def error(code: str = "rate_limit_exceeded") -> bytes:
    return json.dumps({"error": {"message": "no", "type": "requests", "code": code}}).encode()


def test_a_served_answer_and_a_clear_refusal_pass() -> None:
    assert fault(frozenset({200}), 200, ID, b"{}") is None
    assert fault(frozenset({429}), 429, ID | {"retry-after": "3"}, error()) is None
    assert fault(frozenset({429}), 429, ID, error("insufficient_quota")) is None
    assert fault(frozenset({400}), 400, ID, error("invalid_request")) is None


@pytest.mark.parametrize(
    ("status", "headers", "body", "wrong"),
    [
        (500, ID, b"{}", "status 500"),
        (0, {}, b"", "status 0"),
        (200, {}, b"{}", "x-request-id"),
        (200, ID, b"<html>", "no JSON"),
        (429, ID, b'{"detail": "no"}', "OpenAI's shape"),
        (429, ID, b'{"error": {"message": "no", "type": "t", "code": null}}', "OpenAI's shape"),
        (429, ID, error(), "without Retry-After"),
        (429, ID | {"retry-after": "3"}, error("insufficient_quota"), "with Retry-After"),
    ],
)
def test_every_other_answer_is_a_fault(status: int, headers: dict[str, str], body: bytes, wrong: str) -> None:
    found = fault(frozenset({200, 429}), status, headers, body)
    assert found is not None
    assert wrong in found


def test_a_whole_stream_passes() -> None:
    assert stream_fault([CHUNK, "", CHUNK, "", "data: [DONE]", ""]) is None


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([CHUNK], "without [DONE]"),
        ([], "after 0 chunks"),
        (["data: [DONE]"], "no chunk"),
        (["data: {"], "not JSON"),
        (["<html>"], "not an event"),
        (['data: {"error": {"code": "upstream_error"}}'], "failed"),
        (['data: {"choices": [], "usage": {"total_tokens": 3}}'], "not asked for"),
    ],
)
def test_a_broken_stream_is_a_fault(lines: list[str], wrong: str) -> None:
    found = stream_fault(lines)
    assert found is not None
    assert wrong in found


def test_usage_must_add_up_within_the_cap() -> None:
    good = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert usage_fault(json.dumps({"usage": good}).encode(), 4) is None
    assert "allowed" in str(usage_fault(json.dumps({"usage": good}).encode(), 3))
    assert "add up" in str(usage_fault(json.dumps({"usage": good | {"total_tokens": 8}}).encode(), 4))
    assert "no usage" in str(usage_fault(b"{}", 4))
