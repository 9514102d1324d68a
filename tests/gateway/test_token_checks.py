"""Token checks: a completed request is compared with what the scheduler and the front end of its runtime counted."""

from typing import Any

import pytest

from gateway import token_checks
from gateway.token_checks import SETTLES_US, TokenChecks
from runtime.attribution.shares import Share
from runtime.telemetry.records import Finished

ROW = {"certainty": "exact", "status": "ok", "output_tokens": 10, "input_tokens": 40, "cached_input_tokens": 32}


def share(request_id: str = "r", **more: Any) -> Share:
    counts = {"prompt_tokens": 40, "cached_tokens": 32, "output_tokens": 10, "answers": 1} | more
    rest = dict.fromkeys(("gpu_us", "energy_uj", "kv_block_us", "queue_us", "prefill_tokens", "decode_tokens"), 0)
    return Share(request_id, **rest, **counts, preemptions=0, reason="finished", certainty="exact", is_replayed=False)


def finished(output_tokens: int = 10, cached_tokens: int = 32) -> Finished:
    return Finished("r", "stop", 40, cached_tokens, output_tokens, 0, 0, 0, 0, 0)


def take(checks: TokenChecks, row: dict[str, Any], share: Share, *, is_whole: bool = True) -> None:
    checks.take("vllm", row, share, 0, is_whole=is_whole)


def drift(checks: TokenChecks, now_us: int = SETTLES_US) -> dict[tuple[str, str], int]:
    return checks.drifted(now_us)


def test_a_request_that_both_counted_as_it_was_charged_is_forgotten_at_once() -> None:
    checks = TokenChecks()
    take(checks, ROW, share())
    checks.hear("vllm", "r", finished(), 0)
    checks.hear("vllm", "s", finished(), 0)
    take(checks, ROW, share("s"))
    assert not checks._open
    assert drift(checks) == {}


def test_what_only_the_front_end_counted_otherwise_is_drift() -> None:
    checks = TokenChecks()
    take(checks, ROW, share())
    checks.hear("vllm", "r", finished(output_tokens=12, cached_tokens=0), 0)
    assert drift(checks, SETTLES_US - 1) == {}
    assert drift(checks) == {("vllm", "output_tokens"): 2, ("vllm", "cached_input_tokens"): 32}


def test_what_both_counted_otherwise_is_drift_once() -> None:
    checks = TokenChecks()
    checks.hear("vllm", "r", finished(output_tokens=12), 0)
    take(checks, ROW, share(output_tokens=12))
    assert drift(checks) == {("vllm", "output_tokens"): 2}


def test_the_answers_of_one_request_are_added_up_by_both() -> None:
    checks, row = TokenChecks(), ROW | {"output_tokens": 30}
    take(checks, row, share(output_tokens=14))
    for output_tokens in (14, 16):
        checks.hear("vllm", "r", finished(output_tokens), 0)
    take(checks, row, share(output_tokens=16))
    assert not checks._open


def test_without_all_lines_of_the_front_end_the_scheduler_alone_is_compared() -> None:
    checks = TokenChecks()
    take(checks, ROW, share())
    take(checks, ROW | {"output_tokens": 20}, share("two", answers=2, output_tokens=20))
    checks.hear("vllm", "two", finished(9), 0)
    assert drift(checks) == {}


def test_what_was_cut_off_and_what_is_of_another_runtime_is_compared_with_nothing() -> None:
    checks = TokenChecks()
    take(checks, ROW | {"status": "cut", "certainty": "at_least"}, share(output_tokens=99))
    checks.hear("vllm", "r", finished(99), 0)
    take(checks, ROW, share("s"))
    checks.hear("other", "s", finished(99), 0)
    assert drift(checks) == {}


def test_a_request_of_several_prompts_is_whole_only_with_all_of_them() -> None:
    checks, row = TokenChecks(), ROW | {"output_tokens": 0, "input_tokens": 30, "cached_input_tokens": 0}
    counts = {"output_tokens": 0, "prompt_tokens": 10, "cached_tokens": 0}
    for _ in range(2):
        take(checks, row, share(**counts))
        checks.hear("vllm", "r", Finished("r", "stop", 10, 0, 0, 0, 0, 0, 0, 0), 0)
    assert checks._open, "two of three agree so far"
    take(checks, row, share(**counts))
    checks.hear("vllm", "r", Finished("r", "stop", 10, 0, 0, 0, 0, 0, 0, 0), 0)
    assert not checks._open


@pytest.mark.parametrize("first", [True, False])
def test_where_one_answer_cannot_be_compared_none_is(first: bool) -> None:
    """One of two choices was ended by a stop string, which the engine takes for an abort."""
    checks, row = TokenChecks(), ROW | {"output_tokens": 25}
    for is_whole in (first, not first):
        take(checks, row, share(output_tokens=10), is_whole=is_whole)
    assert drift(checks) == {}


def test_no_more_requests_are_kept_than_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_checks, "OPEN_MAX", 3)
    checks = TokenChecks()
    for number in range(5):
        take(checks, ROW, share(str(number), output_tokens=11))
    assert len(checks._open) == 3
    assert drift(checks, 0) == {("vllm", "output_tokens"): 2}
    assert drift(checks) == {("vllm", "output_tokens"): 5}
