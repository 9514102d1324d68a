"""Repeats in memory: one request runs under a name, what was served is kept within bounds, the rest is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    IDEMPOTENCY_COMPLETED,
    IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    INVALID_REQUEST,
    ErrorKind,
    Refusal,
)
from gateway.repeats import Answer, Attempt, Name, Repeats

TTL_US = 1_000
BODY = b'{"model": "plain"}'


def repeats(entries_max: int = 100, bytes_max: int = 800) -> Repeats:
    return Repeats(entries_max, bytes_max, TTL_US)


def name(key: str = "k", key_id: str = "k1", endpoint: str = "chat") -> Name:
    return Name(key_id, endpoint, key.encode("latin-1"))


def begin(store: Repeats, key: str = "k", now_us: int = 0, body: bytes = BODY) -> Attempt | Answer | Refusal:
    return store.begin(name(key), body, f"request {key}", now_us)


def running(store: Repeats, key: str = "k", now_us: int = 0) -> Attempt:
    attempt = begin(store, key, now_us)
    assert isinstance(attempt, Attempt)
    return attempt


def serve(store: Repeats, key: str = "k", now_us: int = 0, answer: bytes | None = b"answer") -> None:
    attempt = running(store, key, now_us)
    attempt.is_served = True
    attempt.answer = None if answer is None else Answer([], answer)
    store.end(attempt, now_us)


def kind(begun: Attempt | Answer | Refusal) -> ErrorKind:
    assert isinstance(begun, Refusal)
    return begun.kind


def is_free(store: Repeats, key: str, now_us: int = 0) -> bool:
    begun = begin(store, key, now_us)
    if isinstance(begun, Attempt):
        store.end(begun, now_us)
    return isinstance(begun, Attempt)


def test_what_was_served_is_answered_again_and_again() -> None:
    store = repeats()
    serve(store)
    assert [begin(store), begin(store)] == [Answer([], b"answer")] * 2


def test_one_request_runs_under_a_name() -> None:
    store = repeats()
    running(store)
    refusal = begin(store)
    assert kind(refusal) is IDEMPOTENCY_IN_PROGRESS
    assert isinstance(refusal, Refusal)
    assert refusal.detail == {"request_id": "request k"}
    assert (b"retry-after", b"1") in refusal.headers(0)


def test_what_was_not_served_is_forgotten_at_its_end() -> None:
    store = repeats()
    store.end(running(store), 0)
    store.end(running(store), 0)


def test_what_was_streamed_is_named_and_not_answered() -> None:
    store = repeats()
    serve(store, answer=None)
    refusal = begin(store)
    assert kind(refusal) is IDEMPOTENCY_COMPLETED
    assert isinstance(refusal, Refusal)
    assert refusal.detail == {"request_id": "request k", "usage": "/v1/usage/request k"}
    assert (b"x-should-retry", b"false") in refusal.headers(0)
    assert b"retry-after" not in dict(refusal.headers(0))


@pytest.mark.parametrize("is_over", [True, False])
def test_a_name_belongs_to_one_body(is_over: bool) -> None:
    store = repeats()
    attempt = running(store)
    if is_over:
        attempt.is_served = True
        store.end(attempt, 0)
    refusal = begin(store, body=BODY + b" ")
    assert kind(refusal) is IDEMPOTENCY_KEY_REUSED


def test_keys_and_endpoints_have_their_own_names() -> None:
    store = repeats()
    serve(store)
    for other in (name(key_id="k2"), name(endpoint="completions"), name("K")):
        assert isinstance(store.begin(other, BODY, "r", 0), Attempt)


@pytest.mark.parametrize("key", ["", " ", "a b", "a\tb", "a\n", "\x00", "\x7f", "schlüssel", "x" * 256])
def test_a_key_that_cannot_be_seen_whole_is_refused(key: str) -> None:
    refusal = begin(repeats(), key)
    assert kind(refusal) is INVALID_REQUEST
    assert isinstance(refusal, Refusal)
    assert refusal.param == "idempotency-key"


@pytest.mark.parametrize("key", ["x", "x" * 255, '!"#$%&/~', "8e03978e-40d5-43e8-bc93-6894a57f9324"])
def test_any_other_key_is_taken(key: str) -> None:
    assert is_free(repeats(), key)


def test_what_was_served_is_kept_for_a_time() -> None:
    store = repeats()
    serve(store, now_us=5)
    assert not is_free(store, "k", TTL_US + 4)
    assert is_free(store, "k", TTL_US + 5)


def test_what_runs_is_not_too_old_for_anything() -> None:
    store = repeats(entries_max=1)
    running(store)
    serve(store, "b")
    serve(store, "c")
    assert kind(begin(store, now_us=TTL_US * 9)) is IDEMPOTENCY_IN_PROGRESS


def test_over_their_number_the_oldest_are_forgotten() -> None:
    store = repeats(entries_max=3)
    for key in "abcde":
        serve(store, key)
    assert [key for key in "abcde" if is_free(store, key)] == ["a", "b"]


def test_over_their_bytes_the_oldest_lose_their_answers_and_not_their_names() -> None:
    store = repeats(bytes_max=800)
    for key in "abcdefghij":
        serve(store, key, answer=b"x" * 100)
    begun = {key: begin(store, key) for key in "abcdefghij"}
    assert [key for key, each in begun.items() if isinstance(each, Answer)] == list("cdefghij")
    assert [kind(begun[key]) for key in "ab"] == [IDEMPOTENCY_COMPLETED] * 2


def test_an_answer_over_an_eighth_of_the_bytes_is_not_kept() -> None:
    store = repeats(bytes_max=800)
    serve(store, "fits", answer=b"x" * 100)
    serve(store, "large", answer=b"x" * 101)
    assert isinstance(begin(store, "fits"), Answer)
    assert kind(begin(store, "large")) is IDEMPOTENCY_COMPLETED


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 80), st.integers(0, TTL_US // 3), st.booleans())))
def test_whatever_comes_it_remembers_what_a_list_within_the_bounds_would(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    store = repeats(entries_max=4, bytes_max=400)
    served: list[tuple[int, int, int | None]] = []  # key, when, the size of its answer
    now_us = 0
    for key, size, later_us, is_served in steps:
        now_us += later_us
        served = [each for each in served if each[1] > now_us - TTL_US]
        begun = begin(store, str(key), now_us)
        known = next((each for each in served if each[0] == key), None)
        if known is not None:
            wanted = IDEMPOTENCY_COMPLETED if known[2] is None else Answer([], b"x" * known[2])
            assert (begun.kind if isinstance(begun, Refusal) else begun) == wanted
            continue
        assert isinstance(begun, Attempt)
        begun.is_served, begun.answer = is_served, Answer([], b"x" * size)
        store.end(begun, now_us)
        if is_served:
            served.append((key, now_us, size if size <= 400 // 8 else None))
            while sum(each[2] or 0 for each in served) > 400:
                oldest = next(at for at, each in enumerate(served) if each[2] is not None)
                served[oldest] = (*served[oldest][:2], None)
            served = served[-4:]
