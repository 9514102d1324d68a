"""Levels follow the signals that are in the journal, and outlive the worker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from domain.intent import Run
from gateway import flow
from gateway.errors import Refusal
from gateway.risks import SCORING_APPLIED, TOLD_MAX, Risks, names_of, scope_of
from ledger.journal import JournalFull
from ledger.segments import read, replay_from_snapshot
from policy.risk import APP, RUN, TEAM, LevelChange, Scope
from policy.scoring import SIGNALS, parse_scoring
from tests.gateway.one_worker import OneWorker, ask
from tests.gateway.risk_desk import NOON_US, OTHER, POINT, US, WEB, Desk, scoring

ROOT = Path(__file__).resolve().parents[2]
WEB_SCOPE = Scope(APP, ("acme", "search", "web"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "gateway-0")
    yield desk
    desk.close()


def test_without_a_scoring_every_level_is_normal_and_signals_are_nobody_s() -> None:
    risks = Risks()
    risks.consume({"name": "rollback", "org": "acme", "team": "search", "app": "web", "value": 99, "ts_us": NOON_US})
    risks.tick()
    assert risks.level(WEB, "run-1") == "normal"
    assert risks.snapshot()["tracker"] is None


def test_signals_raise_the_level_of_who_gave_rise_to_them_and_the_ledger_says_why(desk: Desk) -> None:
    risks = desk.open()
    desk.happen("tool_blocked", 4, run_id="run-1")
    assert risks.level(WEB, "run-1") == "normal"
    desk.happen("policy_violation", run_id="run-1")
    assert risks.level(WEB, "run-1") == risks.level(WEB, "") == "elevated"
    assert risks.level(OTHER, "") == "normal"
    assert risks.level(OTHER, "run-1") == "elevated", "a run belongs to its organisation"
    assert desk.steps() == [
        ("team acme/search", "normal", "elevated"),
        ("app acme/search/web", "normal", "elevated"),
        ("run acme/run-1", "normal", "elevated"),
    ]
    row = desk.rows()[1]
    assert (row["org"], row["team"], row["app"], row["run_id"]) == ("acme", "search", "web", "")
    assert (row["value"], row["detail"]["signals"]) == (5_000, {"tool_blocked": 4_000, "policy_violation": 1_000})


async def test_a_refusal_at_a_raised_level_says_which_it_is_and_whose(tmp_path: Path) -> None:
    worker = OneWorker(tmp_path)
    of = await worker.open()
    of.risks.apply(scoring())
    for team, app, count in (("billing", "cron", 20), ("search", "web", 10)):
        row = {"name": "tool_blocked", "org": "acme", "team": team, "app": app, "value": count, "ts_us": of.now_us()}
        of.risks.consume({**row, "run_id": "run-1" if team == "billing" else ""})
    refused = await flow.admit(of, ask(of, run=Run("run-1")))
    assert isinstance(refused, Refusal)
    assert [reason["code"] for reason in refused.detail["reasons"]] == ["risk_critical"]
    assert refused.detail["risk"] == {"level": "critical", "scope": "run acme/run-1"}
    assert of.risks.told(WEB, "") == {"level": "high", "scope": "team acme/search"}
    assert of.risks.told(WEB._replace(org="other"), "") is None
    await worker.close()


def test_quiet_lowers_levels_step_by_step_and_the_ledger_has_each(desk: Desk) -> None:
    risks = desk.open()
    desk.happen("rollback", 10)
    desk.pass_s(600)
    assert risks.level(WEB, "") == "normal"
    assert [step[1:] for step in desk.steps() if step[0].startswith("app")] == [
        ("normal", "high"),
        ("high", "elevated"),
        ("elevated", "normal"),
    ]


def test_signals_of_nobody_and_of_other_names_raise_nothing(desk: Desk) -> None:
    risks = desk.open()
    desk.signals.note("rollback", subject="policy", count=99)
    desk.signals.note("quality", org="acme", team="search", app="web", count=99, level="failed")
    desk.signals.flush()
    assert len(desk.rows(name="quality")) == 1
    assert desk.steps() == []
    assert risks.level(WEB, "") == "normal"


def test_a_worker_that_is_killed_comes_back_at_the_levels_it_had(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 3, run_id="run-1")
    desk.pass_s(30)
    desk.happen("spend_anomaly", 12, who=OTHER)
    before, said = desk.risks.snapshot(), desk.steps()
    desk.close()
    risks = desk.open()
    assert risks.snapshot() == before
    assert desk.steps() == said, "nothing is said twice"
    assert risks.level(OTHER, "") == "high"
    desk.pass_s(100)
    assert desk.steps()[len(said) :] == []
    desk.pass_s(100)
    assert {step[1:] for step in desk.steps()[len(said) :]} == {("high", "elevated")}


def test_levels_fall_while_the_worker_is_down_and_the_ledger_hears_of_it_when_it_is_back(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 20)
    desk.close()
    desk.now_us += 300 * US  # critical until 161 s, high until 261 s, elevated until 361 s
    risks = desk.open()
    assert risks.level(WEB, "") == "elevated"
    assert desk.steps()[2:] == [
        ("team acme/search", "critical", "elevated"),
        ("app acme/search/web", "critical", "elevated"),
    ]
    desk.close()
    desk.now_us += 10_000 * US
    assert desk.open().level(WEB, "") == "normal"
    assert {step[2] for step in desk.steps()[4:]} == {"normal"}


def test_signals_that_are_written_after_a_level_fell_find_it_fallen_in_the_journal_too(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 5)
    desk.now_us += 161 * US - 100_000
    desk.signals.note("tool_blocked", org="acme", team="search", app="web", count=2)
    desk.now_us += 100_000
    desk.risks.tick()
    desk.signals.flush()
    before, said = desk.risks.snapshot(), desk.steps()
    assert {step[1:] for step in said[2:]} == {("elevated", "normal")}
    desk.close()
    assert desk.open().snapshot() == before
    assert desk.steps() == said


def test_a_clock_that_was_ahead_holds_no_level_up_and_a_restart_finds_the_same(desk: Desk) -> None:
    desk.open()
    desk.now_us += 86_400 * US
    desk.happen("tool_blocked", 20)
    desk.now_us -= 86_400 * US
    desk.pass_s(1)
    assert len(desk.rows("control", SCORING_APPLIED)) == 2, "so that replay has it go on from the same second"
    desk.pass_s(60)
    before = desk.risks.snapshot()
    desk.close()
    assert desk.open().snapshot() == before
    desk.pass_s(110)
    assert desk.risks.level(WEB, "") == "high"
    desk.pass_s(200)
    assert desk.risks.level(WEB, "") == "normal"
    assert len(desk.rows("control", SCORING_APPLIED)) == 2


def test_a_level_from_elsewhere_that_a_clock_ahead_has_recorded_falls_however_often_the_worker_is_killed(
    desk: Desk,
) -> None:
    """What came from elsewhere is not in the journal but as the level that it made."""
    desk.open().on_change(LevelChange(WEB_SCOPE, "normal", "critical", 20 * POINT, NOON_US // US + 86_400, {}))
    for level in ("critical", "critical", "critical", "high", "elevated", "normal"):
        desk.close()
        assert desk.open().level(WEB, "") == level
        desk.pass_s(80)


def test_what_stands_before_the_snapshot_is_not_counted_again(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 6)
    first = next(read(desk.folder)).segment
    assert desk.journal is not None
    while next(iter(replay_from_snapshot(desk.folder))).segment == first:
        for _ in range(100):
            desk.journal.append("control", {"action": "test", "detail": "x" * 200})
    desk.happen("tool_blocked", 3, run_id="run-1")
    before = desk.risks.snapshot()
    desk.close()
    assert desk.open().snapshot() == before
    assert desk.risks.level(WEB, "") == "elevated"


def test_a_kill_between_a_signal_and_its_level_leaves_the_level_to_be_recorded_at_the_start(desk: Desk) -> None:
    def fail(_: object) -> None:
        raise JournalFull("there is no room")

    desk.open().on_change = fail
    desk.happen("tool_blocked", 6)
    assert desk.steps() == []
    desk.close()
    assert desk.open().level(WEB, "") == "elevated"
    assert sorted(desk.steps()) == [
        ("app acme/search/web", "normal", "elevated"),
        ("team acme/search", "normal", "elevated"),
    ]


EVENTS = st.one_of(
    st.tuples(st.just("happens"), st.sampled_from(SIGNALS), st.integers(1, 12), st.sampled_from(["", "run-1"])),
    st.tuples(st.just("passes"), st.integers(1, 90)),
    st.tuples(st.just("rescored"), st.integers(1, 3)),
    st.tuples(st.just("killed")),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(EVENTS, max_size=20))
def test_kills_change_nothing(tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, ...]]) -> None:
    """A worker that is killed now and then is where one is that never was."""
    folder = tmp_path_factory.mktemp("kills")
    killed, spared = Desk(folder / "killed"), Desk(folder / "spared")
    by = scoring()
    for desk in (killed, spared):
        desk.open(by)
    for what, *how in events:
        if what == "killed":
            killed.close()
            killed.open(by)
        elif what == "rescored":
            by = scoring(weights_milli=dict.fromkeys(SIGNALS, how[0] * POINT))
        for desk in (killed, spared):
            if what == "happens":
                desk.happen(how[0], how[1], run_id=how[2])
            elif what == "passes":
                desk.pass_s(how[0])
            elif what == "rescored":
                desk.risks.apply(by)
    for desk in (killed, spared):
        desk.close()
    assert killed.risks.snapshot() == spared.risks.snapshot()
    assert killed.steps() == spared.steps()


def test_a_fall_is_recorded_once_though_the_worker_is_killed_after_it(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 10)
    desk.pass_s(400)
    once = desk.steps()
    assert [step[2] for step in once if step[0].startswith("app")] == ["high", "elevated", "normal"]
    desk.close()
    desk.open()
    desk.pass_s(2)
    assert desk.steps() == once


def test_a_scoring_that_was_changed_is_recorded_and_applies_to_what_came_after_it_alone(desk: Desk) -> None:
    risks = desk.open()
    desk.happen("tool_blocked", 2)
    risks.apply(scoring(weights_milli=dict.fromkeys(SIGNALS, 2 * POINT)))
    desk.happen("tool_blocked", 2)
    risks.apply(scoring(weights_milli=dict.fromkeys(SIGNALS, 2 * POINT)))
    assert risks.level(WEB, "") == "elevated"
    assert len(desk.rows("control", SCORING_APPLIED)) == 2, "the same one again is no change"
    before = risks.snapshot()
    desk.close()
    again = desk.open(scoring(weights_milli=dict.fromkeys(SIGNALS, 2 * POINT)))
    assert again.snapshot() == before


def test_a_bundle_that_was_replaced_while_the_worker_was_down_rules_from_the_start(desk: Desk) -> None:
    desk.open()
    desk.happen("tool_blocked", 3)
    desk.close()
    harder = scoring(
        rises_at_milli={"elevated": 1_000, "high": 2_000, "critical": 40_000},
        falls_at_milli={"elevated": 500, "high": 1_000, "critical": 20_000},
    )
    assert desk.open(harder).level(WEB, "") == "high"
    assert {step[1:] for step in desk.steps()} == {("normal", "high")}


def test_a_level_that_the_journal_cannot_take_is_in_force_and_recorded_later(desk: Desk) -> None:
    risks = desk.open()
    desk.is_full = True
    row = {"name": "tool_blocked", "org": "acme", "team": "search", "app": "web", "value": 10, "ts_us": desk.now_us}
    risks.consume(row)
    assert risks.level(WEB, "") == "high"
    desk.pass_s(3)
    assert desk.steps() == []
    desk.is_full = False
    desk.pass_s(1)
    assert sorted(desk.steps()) == [("app acme/search/web", "normal", "high"), ("team acme/search", "normal", "high")]
    desk.pass_s(10)
    assert len(desk.steps()) == 2


def test_more_level_changes_than_can_be_recorded_at_once_are_recorded_in_the_ticks_that_follow(desk: Desk) -> None:
    risks, count = desk.open(), TOLD_MAX // 2 + 10
    row = {"name": "tool_blocked", "org": "acme", "team": "", "app": "", "value": 4, "ts_us": desk.now_us}
    for number in range(2 * count):
        risks.consume({**row, "run_id": f"run-{number}"})
    assert desk.steps() == []
    risks.apply(
        scoring(
            rises_at_milli={"elevated": 1_000, "high": 10_000, "critical": 20_000},
            falls_at_milli={"elevated": 500, "high": 5_000, "critical": 10_000},
        )
    )
    assert len(desk.steps()) >= TOLD_MAX
    desk.pass_s(2)
    assert len(desk.steps()) == len(set(desk.steps())) == 2 * count
    assert not risks.is_behind


def test_a_scoring_that_cannot_be_recorded_is_not_applied(desk: Desk) -> None:
    risks = desk.open()
    desk.happen("tool_blocked", 4)

    def refuse(_: object) -> None:
        raise JournalFull("there is no room")

    risks.on_scoring = refuse
    with pytest.raises(JournalFull):
        risks.apply(scoring(rises_at_milli={"elevated": 3_000, "high": 10_000, "critical": 20_000}))
    assert risks.level(WEB, "") == "normal"


def test_a_recorded_scoring_that_this_version_cannot_read_does_not_keep_it_from_starting(desk: Desk) -> None:
    desk.open()
    assert desk.journal is not None
    document = scoring().document() | {"weights_milli": {"from_the_future": 1}}
    desk.journal.append("control", {"action": SCORING_APPLIED, "detail": document})
    desk.close()
    with capture_logs() as logs:
        desk.open()
    assert [entry["event"] for entry in logs] == ["the scoring of before cannot be read"]
    assert "weights_milli" in logs[0]["reason"]
    risks = Risks()
    with capture_logs() as logs:
        risks.replay("snapshot", {"risks": {"tracker": {"scoring": document, "scopes": []}}})
    assert [entry["event"] for entry in logs] == ["the scores of before cannot be read"]


def test_a_journal_of_before_there_were_scores_is_read_as_one_without() -> None:
    risks = Risks()
    risks.replay("snapshot", {"spent": [], "holds": []})
    risks.replay("signal", {"name": "overage", "org": "acme", "team": "search", "app": "web", "value": 1, "ts_us": 0})
    assert risks.snapshot() == Risks().snapshot()


def test_an_app_that_spends_far_more_than_it_is_used_to_is_noticed_even_after_a_restart(desk: Desk) -> None:
    risks, usd = desk.open(), 1_000_000_000
    for _ in range(60):
        assert not risks.is_outburst("acme", "search", "web", usd)
        desk.now_us += 60 * US
    kept = Risks()
    kept.now_us = lambda: desk.now_us
    kept.replay("snapshot", orjson.loads(orjson.dumps({"risks": risks.snapshot()})))
    assert not kept.is_outburst("acme", "search", "web", 5 * usd)
    assert kept.is_outburst("acme", "search", "web", usd)
    assert not kept.is_outburst("acme", "search", "web", usd)


@pytest.mark.parametrize(
    "scope",
    [Scope(TEAM, ("acme", "search")), Scope(APP, ("acme", "search", "web")), Scope(RUN, ("acme", "run-1"))],
    ids=lambda scope: scope.text,
)
def test_a_row_names_its_scope(scope: Scope) -> None:
    assert scope_of(names_of(scope)) == scope


def test_the_estimate_of_a_snapshot_is_no_less_than_the_snapshot(desk: Desk) -> None:
    risks = desk.open()
    for number in range(500):
        desk.happen("tool_blocked", 6, run_id=f"0192f0c4-7e1a-7000-8000-{number:012d}")
    assert risks.snapshot_bytes() >= len(orjson.dumps(risks.snapshot()))


def test_the_shipped_scoring_can_be_read() -> None:
    data = orjson.loads((ROOT / "rego" / "bursar" / "risk" / "data.json").read_bytes())
    assert parse_scoring(data["score"]).document() == data["score"]
