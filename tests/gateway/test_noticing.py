"""What the places of the flow notice becomes signals and rows of tools, once each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from domain.decision import Decision, Obligations, Reason
from domain.intent import Intent, Principal
from gateway.noticing import Noticing
from gateway.quality import Sampler
from gateway.quality_config import Quality
from gateway.signals import Signals
from gateway.tool_calls import ToolLog

NOW_US = 1_772_280_000_000_000
ROW = {"request_id": "r1", "org": "acme", "team": "search", "app": "web", "key_id": "k1", "decision_id": "d1"}


class Ended(NamedTuple):
    status: str = "ok"
    http_status: int = 200
    error_code: str = ""
    ttft_us: int = 0


@dataclass
class FakeJournal:
    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        self.rows.append((kind, dict(body)))
        return len(self.rows)


@dataclass
class Desk:
    """A noticing worker whose apps overspend when they have spent over 100."""

    journal: FakeJournal = field(default_factory=FakeJournal)

    def __post_init__(self) -> None:
        signals = Signals(self.journal, lambda: True, lambda: NOW_US)
        log = ToolLog(self.journal, lambda: True, lambda: NOW_US)
        self.of = Noticing(signals, log, Sampler(signals, Quality(sample=0)), lambda org, team, app, cost: cost > 100)

    def signals(self) -> set[tuple[str, str]]:
        self.of.signals.flush()
        return {(row["name"], row["subject"]) for kind, row in self.journal.rows if kind == "signal"}

    def tools(self) -> list[tuple[str, str, str]]:
        return [(row["tool"], row["phase"], row["verdict"]) for kind, row in self.journal.rows if kind == "tool_call"]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def decided(*reasons: Reason, allow: bool = True, verify: tuple[str, ...] = ()) -> Decision:
    return Decision("d1", allow, reasons, Obligations(verify=verify), revision="", input_digest="")


def intent(*tools: str) -> Intent:
    principal = Principal("acme", "search", "web", "", "k1")
    return Intent("r1", principal, "chat", "plain", stream=False, input_bound=1, max_output_tokens=1, tools=tools)


def test_a_usual_request_leaves_nothing(desk: Desk) -> None:
    desk.of.settled(ROW, (), (), Ended(), 100)
    assert desk.of.collector(intent(), {}, generates=True) is None
    assert (desk.signals(), desk.journal.rows) == (set(), [])


def test_a_settled_call_tells_of_its_tools_its_runtime_and_its_spend(desk: Desk) -> None:
    desk.of.settled({**ROW, "runtime": "gpu"}, ("a", "b"), ("b", "c"), Ended("failed", 504, "upstream_timeout"), 101)
    assert desk.signals() == {("tool_blocked", "b"), ("upstream_error", "gpu"), ("spend_anomaly", "list_cost_nusd")}
    assert desk.tools() == [("b", "offered", "blocked"), ("a", "offered", "allow")]


def test_calls_are_recorded_by_what_policy_said_or_as_they_were_passed_on(desk: Desk) -> None:
    decisions = {
        "wipe": decided(Reason("tool_not_registered", "No."), allow=False),
        "close": decided(verify=("human",)),
        "read": decided(),
    }
    desk.of.ruled(ROW, ["read", "close", "wipe", "read", "undecided"], decisions)
    told = [("wipe", "called", "deny"), ("close", "called", "verify"), *[("read", "called", "allow")] * 2]
    assert desk.tools() == told
    assert desk.signals() == {("tool_blocked", "wipe")}
    offered = {"tools": [{"type": "function", "function": {"name": "find"}}]}
    collector = desk.of.collector(intent("find"), offered, generates=True)
    assert collector is not None
    call = {"type": "function", "function": {"name": "find", "arguments": "{}"}}
    collector.whole({"choices": [{"index": 0, "message": {"tool_calls": [call]}}]})
    desk.of.answered(ROW, collector, is_ruled=True)
    assert len(desk.tools()) == 4
    desk.of.answered(ROW, collector)
    assert desk.tools()[4:] == [("find", "called", "allow")]
