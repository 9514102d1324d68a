"""Synthetic workloads: the same bytes for a seed, lengths and times as asked, and prefixes that are what they claim."""

import io
import statistics
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from runtime.workload.bursar import write_trace
from runtime.workload.description import DescriptionError, load_workload, workload_of
from runtime.workload.opening import open_workload
from runtime.workload.port import Arrival, Workload, WorkloadError
from runtime.workload.rows import blocks_of

POISSON = {"kind": "poisson", "rate_per_s": 2}
SINGLE = {"kind": "single", "prompt": 100, "output": 20}
SYSTEM = {"count": 3, "tokens": {"kind": "uniform", "low": 50, "high": 200}}
CONVERSATION = {
    "kind": "conversation",
    "turns": {"kind": "uniform", "low": 1, "high": 8},
    "prompt": {"kind": "lognormal", "median": 30, "sigma": 1, "max": 500},
    "output": {"kind": "exponential", "mean": 40, "min": 1, "max": 300},
    "think_s": 5,
    "system": SYSTEM,
    "context_tokens_max": 1_500,
}
AGENT = {
    "kind": "agent",
    "task": 60,
    "steps": 6,
    "output": {"kind": "uniform", "low": 5, "high": 90},
    "result": {"kind": "uniform", "low": 10, "high": 400},
    "tool_s": 1.5,
    "fan_out": {"probability": 0.5, "helpers": 3, "steps": {"kind": "uniform", "low": 1, "high": 4}},
    "context_tokens_max": 3_000,
}
MIXTURE = {
    "kind": "mixture",
    "parts": [
        {"weight": 3, "sessions": SINGLE},
        {"weight": 1, "sessions": CONVERSATION},
        {"weight": 1, "sessions": AGENT},
    ],
}
CLOSED = {"kind": "closed", "users": 5, "think_s": {"kind": "exponential", "mean": 2, "max": 60}}


def made(sessions: dict[str, Any], arrivals: dict[str, Any] = POISSON, requests: int = 400, **more: Any) -> Workload:
    described = {"kind": "synthetic", "requests": requests, "arrivals": arrivals, "sessions": sessions}
    return workload_of({**described, **more})


def as_bytes(workload: Workload) -> bytes:
    file = io.BytesIO()
    write_trace(file, workload)
    return file.getvalue()


@pytest.mark.parametrize("arrivals", [POISSON, CLOSED], ids=["open", "closed"])
def test_a_seed_makes_the_same_bytes_and_another_one_others(arrivals: dict[str, Any]) -> None:
    first = as_bytes(made(MIXTURE, arrivals, seed=7))
    assert as_bytes(made(MIXTURE, arrivals, seed=7)) == first
    assert as_bytes(made(MIXTURE, arrivals, seed=8)) != first
    workload = made(MIXTURE, arrivals, seed=7)
    assert as_bytes(workload) == as_bytes(workload) == first


def test_another_rate_has_the_same_sessions() -> None:
    """When sessions begin is drawn apart from what is in them, so that rates can be compared."""
    slow, fast = (made(MIXTURE, {"kind": "poisson", "rate_per_s": rate}, seed=3) for rate in (1, 10))
    assert [each[1:] for each in slow] == [each[1:] for each in fast]
    assert [each.at_us for each in slow] != [each.at_us for each in fast]


@pytest.mark.parametrize("sessions", [SINGLE, CONVERSATION, AGENT, MIXTURE], ids=lambda each: each["kind"])
@pytest.mark.parametrize("arrivals", [POISSON, CLOSED], ids=["open", "closed"])
def test_every_workload_keeps_what_a_workload_promises(sessions: dict[str, Any], arrivals: dict[str, Any]) -> None:
    """Times in order, what is waited for comes earlier, ids enough, and equal ids only behind equal ids."""
    workload = made(sessions, arrivals, seed=5)
    parents: dict[int, int] = {}
    last_us = 0
    requests = list(workload)
    assert len(requests) == 400
    for index, each in enumerate(requests):
        assert -1 <= each.after < index
        if each.after == -1:
            assert each.at_us >= last_us
            last_us = each.at_us
        assert min(each.prompt_tokens, each.output_tokens) >= 1
        assert len(each.blocks) == blocks_of(each.prompt_tokens + each.output_tokens, workload.block_tokens)
        for above, block in pairwise((-1, *each.blocks)):
            assert parents.setdefault(block, above) == above


def test_each_turn_finds_what_was_said_before_and_its_answer() -> None:
    """All blocks that the turn before filled, its output included, are the next prompt's first."""
    requests = list(made(CONVERSATION, seed=2))
    turns = [(requests[each.after], each) for each in requests if each.after != -1]
    assert len(turns) > 100
    for before, each in turns:
        said = before.prompt_tokens + before.output_tokens
        assert each.prompt_tokens > said
        assert each.blocks[: said // 16] == before.blocks[: said // 16]
        assert each.at_us == 5_000_000
        assert each.prompt_tokens + each.output_tokens <= 1_500


def test_conversations_share_system_prompts_and_the_first_is_the_most_popular() -> None:
    begins = [each for each in made({**CONVERSATION, "turns": 1}, seed=2) if each.after == -1]
    firsts = [each.blocks[0] for each in begins]
    counts = sorted((firsts.count(block) for block in set(firsts)), reverse=True)
    assert len(counts) == 3
    assert counts[0] > 1.5 * counts[1] > counts[2]


def test_examples_are_branches_of_each_system_prompt() -> None:
    system, examples = {"count": 2, "tokens": 64, "zipf": 0}, {"count": 3, "tokens": 32, "zipf": 0}
    requests = list(made({**SINGLE, "system": system, "examples": examples}, requests=300))
    assert {each.prompt_tokens for each in requests} == {64 + 32 + 100}
    assert len({each.blocks[:4] for each in requests}) == 2
    assert len({each.blocks[:6] for each in requests}) == 6
    assert len({each.blocks[6:] for each in requests}) == 300


def test_an_agents_helpers_go_on_from_its_context_and_it_waits_for_them() -> None:
    requests = list(made(AGENT, seed=1, requests=1_000))
    children: dict[int, list[int]] = {}
    for index, each in enumerate(requests):
        children.setdefault(each.after, []).append(index)
        if each.after != -1:
            assert each.at_us == 1_500_000
            shared = sum(
                1 for one, other in zip(each.blocks, requests[each.after].blocks, strict=False) if one == other
            )
            assert shared > 0
            assert each.prompt_tokens + each.output_tokens <= 3_000
    assert max(len(each) for parent, each in children.items() if parent != -1) == 3
    assert len(children[-1]) < 120


def test_closed_users_wait_for_their_last_answer() -> None:
    requests = list(made(SINGLE, CLOSED, requests=50))
    assert [each.after for each in requests[:5]] == [-1] * 5
    assert [each.after for each in requests[5:]] == list(range(45))


@pytest.mark.parametrize(
    ("arrivals", "rate_per_s", "cv"),
    [
        ({"kind": "constant", "rate_per_s": 4}, 4, 0),
        ({"kind": "poisson", "rate_per_s": 4}, 4, 1),
        ({"kind": "gamma", "rate_per_s": 4, "cv": 3}, 4, 3),
        ({"kind": "ramp", "from_per_s": 0, "to_per_s": 4, "over_s": 0.001}, 4, 1),
        ({"kind": "diurnal", "rate_per_s": 4, "amplitude": 1, "period_s": 1}, 4, None),
    ],
    ids=lambda each: each["kind"] if isinstance(each, dict) else None,
)
def test_arrivals_come_as_often_and_as_bursty_as_asked(
    arrivals: dict[str, Any], rate_per_s: float, cv: float | None
) -> None:
    times = [each.at_us / 1e6 for each in made(SINGLE, arrivals, requests=20_000, seed=1)]
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) / times[-1] == pytest.approx(rate_per_s, rel=0.1)
    if cv is not None:
        assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, abs=0.001, rel=0.1)


def test_a_ramp_and_a_day_have_their_rate_at_each_time() -> None:
    """Counted where they are: in a ramp's halves, a quarter and three quarters; at a day's begin and noon."""
    ramp = {"kind": "ramp", "from_per_s": 0, "to_per_s": 100, "over_s": 100}
    at_s = [each.at_us / 1e6 for each in made(SINGLE, ramp, requests=5_000)]
    assert sum(1 for each in at_s if each < 50) == pytest.approx(1_250, rel=0.1)
    day = {"kind": "diurnal", "rate_per_s": 50, "amplitude": 0.8, "period_s": 100}
    at_s = [each.at_us / 1e6 for each in made(SINGLE, day, requests=5_000)]
    assert sum(1 for each in at_s if each < 10) == pytest.approx(500 * 0.2, rel=0.4)
    assert sum(1 for each in at_s if 45 <= each < 55) == pytest.approx(500 * 1.8, rel=0.1)


def test_lengths_are_spread_as_asked(tmp_path: Path) -> None:
    lognormal = {"kind": "lognormal", "median": 100, "sigma": 1, "max": 400}
    lengths = [each.prompt_tokens for each in made({**SINGLE, "prompt": lognormal}, requests=5_000)]
    assert statistics.median(lengths) == pytest.approx(100, rel=0.06)
    assert max(lengths) == 400
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,7,1\n2023-11-16 18:15:47,9,2\n")
    drawn = {
        "prompt": {"kind": "empirical", "trace": str(trace), "of": "prompt"},
        "output": {"kind": "empirical", "trace": str(trace), "of": "output"},
    }
    requests = list(made({**SINGLE, **drawn}, requests=100))
    assert {each.prompt_tokens for each in requests} == {7, 9}
    assert {each.output_tokens for each in requests} == {1, 2}


def test_a_mixture_has_its_parts_by_weight() -> None:
    parts = [{"weight": weight, "sessions": {**SINGLE, "prompt": weight}} for weight in (3, 1)]
    lengths = [each.prompt_tokens for each in made({"kind": "mixture", "parts": parts}, requests=4_000)]
    assert lengths.count(3) == pytest.approx(3_000, rel=0.05)


def test_a_system_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(WorkloadError, match="a system prompt of 40 tokens fills the context"):
        list(made({**CONVERSATION, "system": {"count": 1, "tokens": 40}, "context_tokens_max": 41}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests": 0}, "requests: Input should be greater than or equal to 1; it is 0"),
        ({"requests": "7"}, "requests: Input should be a valid integer; it is '7'"),
        ({"seed": -1}, "seed"),
        ({"zoo": 1}, "zoo: Extra inputs are not permitted"),
        (
            {"arrivals": {"kind": "poison", "rate_per_s": 1}},
            "no kind 'poison': there are 'constant', 'poisson'",
        ),
        ({"arrivals": {"kind": "poisson", "rate_per_s": 0}}, "rate_per_s: Input should be greater than 0"),
        ({"arrivals": {"kind": "poisson", "rate_per_s": float("inf")}}, "rate_per_s: Input should be"),
        ({"arrivals": {"kind": "gamma", "rate_per_s": 1}}, "cv: Field required"),
        ({"arrivals": {**CLOSED, "users": 0}}, "users: Input should be greater"),
        ({"sessions": {**SINGLE, "prompt": "long"}}, "prompt: Input should be a valid dictionary"),
        ({"sessions": {**SINGLE, "prompt": -3}}, "prompt.constant.value: Input should be greater"),
        ({"sessions": {**SINGLE, "prompt": True}}, "prompt: Input should be a valid dictionary"),
        ({"sessions": {**SINGLE, "prompt": {"kind": "uniform", "low": 2, "high": 1}}}, "low is more than high"),
        ({"sessions": {"kind": "mixture", "parts": []}}, "parts: Tuple should have at least 1 item"),
        ({"kind": "tape"}, "there is no kind 'tape': there are 'synthetic', 'trace'"),
        ({"sessions": {"prompt": 3}}, "sessions: it has no kind"),
        ({"seed": -1, "requests": 0, "zoo": 1}, "requests: .*seed: .*zoo: .*it is 1$"),
        ({"seed": -1, "requests": 0, "zoo": 1, "ape": 1}, "requests: .*seed: .*and 1 more.$"),
    ],
)
def test_a_bad_description_is_told_by_its_member(changes: dict[str, Any], said: str) -> None:
    described = {"kind": "synthetic", "requests": 10, "arrivals": POISSON, "sessions": SINGLE, **changes}
    with pytest.raises(DescriptionError, match=said) as raised:
        workload_of(described)
    assert "\n" not in str(raised.value)


def test_a_description_is_read_from_yaml_with_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(
        "kind: synthetic\nname: chat\nseed: 1\nrequests: 5\nblock_tokens: 32\n"
        "arrivals: {kind: poisson, rate_per_s: 2}\nsessions: {kind: single, prompt: 40, output: 8}\n"
    )
    workload = load_workload(path)
    assert (workload.name, workload.block_tokens, len(list(workload))) == ("chat", 32, 5)
    assert list(load_workload(path, seed=1)) == list(workload)
    assert list(load_workload(path, seed=2)) != list(workload)
    trace = tmp_path / "t.jsonl"
    with trace.open("wb") as file:
        write_trace(file, workload)
    described = {"kind": "trace", "trace": str(trace), "requests_max": 3, "rate": 2}
    at_us = [each.at_us for each in open_workload(trace)]
    assert [each.at_us for each in workload_of(described)] == [int(each / 2) for each in at_us[:3]]
    assert list(load_workload(trace)) == list(open_workload(trace))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: [", "is not YAML: "),
        ("a: &a [1]\nb: *a\n", "has a YAML alias"),
        ("[" * 20_000, "is nested more than 32 levels deep"),
        ("#" * ((64 << 10) + 1), "is longer than 65,536 bytes"),
        ("7", "it must be members with their values, of which kind is one; it is 7"),
        ("", "it must be members with their values, of which kind is one; it is None"),
        ("\0", "is not YAML"),
    ],
)
def test_a_file_that_is_no_description_is_refused_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(DescriptionError, match=said) as raised:
        load_workload(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_description_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="cannot be read: No such file"):
        load_workload(tmp_path / "missing.yaml")


def test_a_workload_of_a_hundred_million_requests_begins_at_once() -> None:
    first = list(islice(made(MIXTURE, requests=100_000_000), 3))
    assert len(first) == 3
    assert isinstance(first[0], Arrival)
