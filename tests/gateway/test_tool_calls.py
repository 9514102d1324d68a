"""Rows of tool calls tell what was blocked, denied and called, and stay few."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from domain.decision import Reason
from gateway.tool_calls import BLOCKED, CALLED, OFFERED, ROWS_MAX, Ruling, ToolLog, blocked, rows_of
from ledger.journal import JournalFull
from ledger.tables import BY_KIND

NOW_US = 1_772_280_000_000_000
HOUR_US = 3_600_000_000
ROW = {"request_id": "r1", "decision_id": "d1", "org": "acme", "team": "search", "app": "web", "key_id": "k1"}
DENIED = Ruling("deny", (Reason("not_registered", "Nobody registered it."),), "disks", "mcp")


@dataclass
class FakeJournal:
    """Keeps what it is given, or refuses."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    is_full: bool = False

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        if self.is_full:
            raise JournalFull("no room")
        assert kind == "tool_call"
        self.rows.append(dict(body))
        return len(self.rows)


def brief(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["tool"], row["phase"], row["verdict"]) for row in rows]


def test_a_row_has_who_what_and_why() -> None:
    [row] = rows_of({**ROW, "run_id": "run", "model": "m", "hold_id": "h"}, NOW_US, CALLED, ["wipe"], {"wipe": DENIED})
    assert row.pop("event_id")
    assert json.loads(row.pop("reasons")) == [{"code": "not_registered", "message": "Nobody registered it."}]
    assert row == {
        **ROW,
        "run_id": "run",
        "ts_us": NOW_US,
        "tool": "wipe",
        "server": "disks",
        "tool_kind": "mcp",
        "phase": "called",
        "verdict": "deny",
    }


def test_every_member_of_a_row_is_a_column() -> None:
    [row] = rows_of({**ROW, "run_id": "run"}, NOW_US, CALLED, ["wipe"], {"wipe": DENIED})
    assert row.keys() == set(BY_KIND["tool_call"].columns) - {"writer", "seq"}


def test_the_rows_of_a_request_are_bounded_and_say_what_they_leave_out() -> None:
    tools = [f"tool-{number}" for number in range(200)]
    rulings = {"tool-150": BLOCKED, "tool-199": DENIED, "tool-7": Ruling("verify")}
    rows = rows_of(ROW, NOW_US, OFFERED, tools, rulings)
    assert len(rows) == ROWS_MAX
    assert [row["verdict"] for row in rows[:4]] == ["blocked", "deny", "verify", "allow"]
    assert rows[-1]["tool"] == ""
    assert (
        json.loads(rows[-1]["reasons"])[0]["message"]
        == f"{200 - ROWS_MAX + 1} more tools were offered and are not listed."
    )
    assert len(rows_of(ROW, NOW_US, OFFERED, tools[:ROWS_MAX], {})) == ROWS_MAX


def test_an_offer_that_is_allowed_is_written_once_an_hour_and_everything_else_each_time() -> None:
    journal, now = FakeJournal(), [NOW_US]
    log = ToolLog(journal, lambda: True, lambda: now[0])
    for _ in range(5):
        log.offered(ROW, ("search", "shell"), blocked(("shell",)))
        log.called(ROW, ["search", "search"], {})
    assert brief(journal.rows).count(("search", "offered", "allow")) == 1
    assert brief(journal.rows).count(("shell", "offered", "blocked")) == 5
    assert brief(journal.rows).count(("search", "called", "allow")) == 10
    now[0] += HOUR_US
    log.offered(ROW, ("search",), {})
    log.offered({**ROW, "app": "other"}, ("search",), {})
    assert brief(journal.rows).count(("search", "offered", "allow")) == 3


def test_what_is_remembered_is_bounded() -> None:
    journal = FakeJournal()
    log = ToolLog(journal, lambda: True, lambda: NOW_US, remembered_max=2)
    for tool in ("a", "b", "c", "a", "c"):
        log.offered(ROW, (tool,), {})
    assert [row["tool"] for row in journal.rows] == ["a", "b", "c", "a"]
    assert len(log._hours) == 2


@pytest.mark.parametrize("full", [True, False])
def test_without_room_rows_are_dropped_and_counted(full: bool) -> None:
    journal, room = FakeJournal(is_full=full), [full]
    log = ToolLog(journal, lambda: room[0], lambda: NOW_US)
    log.called(ROW, ["a", "b", "c"], {})
    assert (journal.rows, log.dropped) == ([], 3)
    journal.is_full, room[0] = False, True
    log.called(ROW, ["a"], {})
    assert brief(journal.rows) == [("a", "called", "allow")]
