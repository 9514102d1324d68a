"""Signals are counted by the second, written as few rows, and never lost in count."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from domain.decision import Decision, Obligations, Reason
from gateway import errors, signal_sources, signals
from gateway.errors import Refusal
from gateway.signals import OTHER, PRODUCERS, Signals
from ledger.journal import JournalFull
from policy.quality import Assessment
from policy.scoring import SIGNALS

NOW_US = 1_772_280_000_000_000
ROW = {"request_id": "r1", "org": "acme", "team": "search", "app": "web", "model": "plain", "risk_level": "normal"}


@dataclass
class FakeJournal:
    """Keeps what it is given, or refuses."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    is_full: bool = False

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        if self.is_full:
            raise JournalFull("no room")
        assert kind == "signal"
        self.rows.append(dict(body))
        return len(self.rows)


@dataclass
class Noting:
    """Signals over a fake journal, with what their consumer was given."""

    journal: FakeJournal = field(default_factory=FakeJournal)
    has_room: bool = True
    now_us: int = NOW_US
    consumed: list[Mapping[str, Any]] = field(default_factory=list)

    def signals(self, **options: Any) -> Signals:
        return Signals(self.journal, lambda: self.has_room, lambda: self.now_us, self.consumed.append, **options)


@pytest.fixture
def noting() -> Noting:
    return Noting()


def counted(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], int]:
    return {(row["name"], row["team"], row.get("run_id", ""), row.get("subject", "")): row["value"] for row in rows}


def test_what_happens_in_a_second_is_one_row_with_its_count_and_its_first_request(noting: Noting) -> None:
    of = noting.signals()
    for number in range(1_000):
        row = {**ROW, "request_id": f"r{number}", "run_id": "agent-1"}
        signal_sources.note_of(of, "policy_violation", row, "clearance_too_low", detail={"model": "plain"})
    noting.now_us += 900_000
    assert noting.journal.rows == []
    assert of.flush() == 1
    [row] = noting.journal.rows
    assert row.pop("event_id")
    assert row == {
        "ts_us": NOW_US + 900_000,
        "name": "policy_violation",
        "org": "acme",
        "team": "search",
        "app": "web",
        "run_id": "agent-1",
        "request_id": "r0",
        "subject": "clearance_too_low",
        "level": "warn",
        "value": 1_000,
        "detail": {"model": "plain", "since_us": NOW_US},
    }
    assert of.flush() == of.waiting == 0


def test_scopes_subjects_and_names_are_counted_apart(noting: Noting) -> None:
    of = noting.signals()
    for name in ("policy_violation", "tool_blocked"):
        for team in ("a", "b"):
            for subject in ("x", "y"):
                for run in ("", "1"):
                    of.note(name, org="acme", team=team, subject=subject, run_id=run, count=3)
    assert of.flush() == 16
    assert set(counted(noting.journal.rows).values()) == {3}


def test_each_row_goes_to_the_consumer_once_the_journal_has_it(noting: Noting) -> None:
    of = noting.signals()
    of.note("upstream_error", org="acme")
    noting.journal.is_full = True
    assert of.flush() == 0
    assert noting.consumed == []
    noting.journal.is_full = False
    assert of.flush() == 1
    assert noting.consumed == noting.journal.rows


@pytest.mark.parametrize("why", ["the journal is full", "its room belongs to settlements"])
def test_without_room_counts_wait_and_go_on_growing(noting: Noting, why: str) -> None:
    of = noting.signals()
    noting.journal.is_full, noting.has_room = why == "the journal is full", why == "the journal is full"
    for _ in range(5):
        of.note("policy_violation", org="acme", request_id="first")
        assert of.flush() == 0
    noting.journal.is_full, noting.has_room = False, True
    assert of.flush() == 1
    assert (noting.journal.rows[0]["value"], noting.journal.rows[0]["request_id"]) == (5, "first")


def test_a_flood_of_runs_is_counted_by_app_and_hides_no_other_app(noting: Noting) -> None:
    of = noting.signals(groups_max=10, others_max=10)
    for number in range(10_000):
        of.note("policy_violation", org="acme", team="noisy", app="web", run_id=f"run-{number}", subject="frozen")
    of.note("policy_violation", org="acme", team="quiet", app="web", run_id="only", subject="denied")
    assert of.flush() == 12
    rows = counted(noting.journal.rows)
    assert rows["policy_violation", "noisy", "", OTHER] == 10_000 - 10
    assert rows["policy_violation", "quiet", "", OTHER] == 1
    assert sum(rows.values()) == 10_001
    folded = [row["detail"] for row in noting.journal.rows if row["subject"] == OTHER]
    assert folded == [{"folded": True, "since_us": NOW_US}] * 2


def test_the_number_of_groups_is_bounded_whatever_is_noted(noting: Noting) -> None:
    of = noting.signals(groups_max=10, others_max=10)
    for number in range(10_000):
        of.note("policy_violation", org="acme", team=f"team-{number}", subject=f"s{number}")
        of.note("tool_blocked", org="acme", team=f"team-{number}", subject=f"s{number}")
    assert of.waiting == 22
    of.flush()
    assert sum(row["value"] for row in noting.journal.rows) == 20_000
    [last] = [row for row in noting.journal.rows if row["org"] == "" and row["name"] == "policy_violation"]
    assert (last["subject"], last["team"]) == (OTHER, "")


async def test_it_flushes_while_it_runs_and_once_more_when_it_ends(
    noting: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PERIOD_S", 0.001)
    flushed = asyncio.Event()
    of = Signals(noting.journal, lambda: True, lambda: NOW_US, lambda row: flushed.set())
    running = asyncio.create_task(of.run())
    of.note("rollback")
    await asyncio.wait_for(flushed.wait(), 10)
    of.note("rollback", count=7)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [row["value"] for row in noting.journal.rows] == [1, 7]


def test_every_signal_that_risk_weighs_has_a_producer() -> None:
    assert set(PRODUCERS) == set(SIGNALS)
    assert all(producer.noted_by and producer.means and producer.level for producer in PRODUCERS.values())


def refusal(kind: errors.ErrorKind, *codes: str, allow: bool = False, **detail: Any) -> Refusal:
    reasons = tuple(Reason(code, f"{code}.") for code in codes)
    decision = Decision("d1", allow, reasons, Obligations(), "rev", "digest")
    return Refusal(kind, "No.", detail=detail, decision=decision)


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        (refusal(errors.POLICY_DENIED, "clearance_too_low"), "clearance_too_low"),
        (refusal(errors.POLICY_DENIED, "risk_critical", "run_too_deep"), "run_too_deep"),
        (refusal(errors.POLICY_DENIED), "denied"),
        (refusal(errors.POLICY_DENIED, allow=True, max_input_tokens=5), "max_input_tokens"),
    ],
)
def test_a_403_by_policy_is_a_violation_with_its_reason(noting: Noting, given: Refusal, subject: str) -> None:
    of = noting.signals()
    signal_sources.refused(of, ROW, given)
    of.flush()
    assert [(row["name"], row["subject"]) for row in noting.journal.rows] == [("policy_violation", subject)]


@pytest.mark.parametrize(
    "given",
    [
        refusal(errors.POLICY_DENIED, "risk_critical"),
        refusal(errors.POLICY_DENIED, "frozen", "risk_level_high", "budget_unknown", "tables_malformed"),
        refusal(errors.MODEL_NOT_FOUND, "model_not_offered"),
        refusal(errors.INSUFFICIENT_QUOTA, allow=True),
        refusal(errors.INVALID_REQUEST),
        refusal(errors.OVERLOADED),
        refusal(errors.POLICY_UNAVAILABLE),
    ],
)
def test_what_the_state_of_things_refuses_is_no_violation_so_risk_can_fall(noting: Noting, given: Refusal) -> None:
    of = noting.signals()
    signal_sources.refused(of, ROW, given)
    assert of.waiting == 0


@pytest.mark.parametrize(
    "given",
    [
        refusal(errors.POLICY_DENIED, "clearance_too_low"),
        refusal(errors.POLICY_DENIED, allow=True, max_input_tokens=5),
    ],
)
def test_what_a_raised_level_may_be_the_cause_of_does_not_keep_it_up(noting: Noting, given: Refusal) -> None:
    """A table may ask for a higher clearance at a higher level, and a level may lower a cap."""
    of = noting.signals()
    raised = {**ROW, "risk_level": "high"}
    signal_sources.refused(of, raised, given)
    signal_sources.tool_denied(of, raised, "shell", "", "called", ["clearance_too_low"])
    signal_sources.verified(of)(
        "verification_failed", raised, 1, {"check": "tool_calls", "kinds": ["clearance_too_low"]}
    )
    of.flush()
    assert [row["name"] for row in noting.journal.rows] == ["verification_unmade"]
    signal_sources.refused(of, ROW, given)
    assert of.waiting == 1


def test_a_runtime_that_fails_is_an_upstream_error_and_a_request_that_it_refuses_is_not(noting: Noting) -> None:
    of = noting.signals()
    row = {**ROW, "runtime": "gpu-1", "served_model": "plain"}
    signal_sources.settled(of, row, "failed", 502, "upstream_error")
    signal_sources.settled(of, row, "failed", 504, "upstream_timeout")
    signal_sources.settled(of, row, "failed", 400, "upstream_error")
    signal_sources.settled(of, row, "failed", 503, "overloaded")
    signal_sources.settled(of, row, "cut", 499, "client_left")
    signal_sources.settled(of, row, "ok", 200, "")
    signal_sources.refused(of, ROW, refusal(errors.UPSTREAM_ERROR, allow=True))
    of.flush()
    assert counted(noting.journal.rows) == {
        ("upstream_error", "search", "", "gpu-1"): 2,
        ("upstream_error", "search", "", "plain"): 1,
    }


def test_blocked_tools_are_noted_by_name_and_not_while_risk_itself_may_block_them(noting: Noting) -> None:
    of = noting.signals()
    signal_sources.tools_blocked(of, ROW, ("shell", "search", "browser"), ("browser", "shell", "other-tool"))
    for level in ("elevated", "high", "critical"):
        signal_sources.tools_blocked(of, {**ROW, "risk_level": level}, ("shell",), ("shell",))
    signal_sources.tools_blocked(of, ROW, ("search",), ())
    many = [f"tool-{number}" for number in range(500)]
    signal_sources.tools_blocked(of, {**ROW, "team": "ads"}, many, many)
    of.flush()
    rows = counted(noting.journal.rows)
    assert {key[3] for key in rows if key[1] == "search"} == {"shell", "browser"}
    assert sum(value for key, value in rows.items() if key[1] == "ads") == 500
    assert len(rows) == 2 + signal_sources.TOOLS_MAX + 1


def test_a_denied_tool_is_noted_unless_risk_denied_it(noting: Noting) -> None:
    of = noting.signals()
    signal_sources.tool_denied(of, ROW, "wipe", "disks", "called", ["risk_too_high", "not_registered"])
    signal_sources.tool_denied(of, ROW, "wipe", "disks", "called", ["risk_too_high"])
    of.flush()
    [row] = noting.journal.rows
    assert (row["subject"], row["value"]) == ("wipe", 1)
    assert row["detail"] == {
        "phase": "called",
        "server": "disks",
        "reason": "not_registered",
        "since_us": NOW_US,
    }


def of_check(of: Signals) -> None:
    signal_sources.verified(of)("verification_failed", ROW, 1, {"check": "pii", "kinds": ["EMAIL_ADDRESS"]})


def of_spend(of: Signals) -> None:
    signal_sources.spend_anomaly(of, {**ROW, "run_id": "run-1"})


def of_answer(of: Signals) -> None:
    signal_sources.judged(of, {**ROW, "served_model": "plain"}, Assessment(0, ("empty",), passes=False))


@pytest.mark.parametrize(
    ("noted", "name", "subject"),
    [
        (of_check, "verification_failed", "pii"),
        (of_spend, "spend_anomaly", "list_cost_nusd"),
        (of_answer, "quality_failed", "empty"),
    ],
)
def test_checks_spend_and_answers_are_noted(
    noting: Noting, noted: Callable[[Signals], None], name: str, subject: str
) -> None:
    of = noting.signals()
    noted(of)
    of.flush()
    assert counted(noting.journal.rows)[name, "search", "", subject] == 1


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        (["approval_required"], "verification_unmade"),
        (["busy", "library_missing"], "verification_unmade"),
        (["not_started"], "verification_unmade"),
        (["too_large"], "verification_unmade"),
        (["second_model_failed"], "verification_unmade"),
        (["second_model_refused"], "verification_unmade"),
        (["expired"], "verification_unmade"),
        (["verdict_unclear"], "verification_failed"),
        (["risk_too_high", "frozen"], "verification_unmade"),
        (["risk_too_high", "tool_not_registered"], "verification_failed"),
        (["timeout"], "verification_failed"),
    ],
)
def test_what_fails_an_answer_through_no_fault_of_its_caller_is_no_failed_check(
    noting: Noting, kinds: list[str], name: str
) -> None:
    of = noting.signals()
    signal_sources.verified(of)("verification_failed", ROW, 1, {"check": "human", "kinds": kinds})
    signal_sources.verified(of)("verification_passed", ROW, 1, {"check": "human", "duration_us": 5})
    of.flush()
    assert {row["name"] for row in noting.journal.rows} == {name, "verification_passed"}
    assert {row["name"] for row in noting.consumed} == {name} - {"verification_unmade"}


def test_an_answer_that_passes_is_counted_as_judged_only(noting: Noting) -> None:
    of = noting.signals()
    row = {**ROW, "served_model": "plain"}
    signal_sources.judged(of, row, Assessment(700, ("truncated",), passes=True))
    of.flush()
    [noted] = noting.journal.rows
    assert (noted["name"], noted["level"], noted["subject"]) == ("quality", "ok", "plain")
    assert noted["detail"] == {"flags": ["truncated"], "score_permille": 700, "since_us": NOW_US}


def test_loading_a_bundle_that_was_in_force_before_is_a_rollback(noting: Noting) -> None:
    of = noting.signals()
    revisions = signal_sources.Revisions("one")
    assert [revisions.loaded(of, each) for each in ("one", "two", "three", "two", "two", "four", "one")] == [
        *(False, False, False, True, False, False, True)
    ]
    of.flush()
    [row] = noting.journal.rows
    assert (row["name"], row["subject"], row["value"]) == ("rollback", "policy", 2)
    assert row["detail"] == {"from": "three", "to": "two", "since_us": NOW_US}


def test_revisions_long_gone_are_forgotten(noting: Noting) -> None:
    revisions = signal_sources.Revisions("first", kept_max=3)
    assert not any(revisions.loaded(noting.signals(), each) for each in ("a", "b", "c", "first"))
