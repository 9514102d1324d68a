"""Tool calls: what became of the tools that a request offered and that its model called, as rows of the ledger."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import orjson
import structlog

from domain.decision import Reason
from domain.ids import uuid7
from gateway.requests import NAME_CHARS_MAX
from ledger.journal import JournalError

log = structlog.get_logger(__name__)

ROWS_MAX = 32
REMEMBERED_MAX = 10_000
OFFERED = "offered"
CALLED = "called"
FUNCTION = "function"
MORE_TOOLS = "more_tools"
_HOUR_US = 3_600_000_000
# The gravest first: what does not fit into the bound of a request is what tells least.
_ORDER = {"blocked": 0, "deny": 1, "verify": 2, "allow": 3}
_WHOSE = ("request_id", "decision_id", "org", "team", "app", "key_id", "run_id")


class Ruling(NamedTuple):
    """What was decided of one tool: `allow`, `verify`, `deny`, or `blocked` by the obligations of the admission."""

    verdict: str
    reasons: tuple[Reason, ...] = ()
    server: str = ""
    kind: str = FUNCTION


ALLOWED = Ruling("allow")
BLOCKED = Ruling("blocked")
UNOFFERED = Ruling("allow", (Reason("not_offered", "The model called a tool that was not offered to it."),))


class Journal(Protocol):
    """What tool calls need of a journal."""

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        """Writes one record; JournalError."""


def rows_of(
    row: Mapping[str, Any],
    now_us: int,
    phase: str,
    tools: Iterable[str],
    rulings: Mapping[str, Ruling],
) -> list[dict[str, Any]]:
    """A row for each of these tools, the gravest first; `row` is one of the request's, and begins as they all do.

    Beyond the bound one row with no tool's name says how many more there were.
    """
    ruled = sorted(((rulings.get(tool, ALLOWED), tool) for tool in tools), key=lambda each: _ORDER[each[0].verdict])
    left = len(ruled) - ROWS_MAX
    if left > 0:
        more = Reason(MORE_TOOLS, f"{left + 1} more tools were {phase} and are not listed.")
        ruled[ROWS_MAX - 1 :] = [(Ruling("allow", (more,)), "")]
    whose = {name: row[name] for name in _WHOSE if row.get(name)}
    return [
        {
            **whose,
            "ts_us": now_us,
            "event_id": uuid7(now_us // 1000),
            "tool": tool[:NAME_CHARS_MAX],
            "server": ruling.server,
            "tool_kind": ruling.kind,
            "phase": phase,
            "verdict": ruling.verdict,
            "reasons": orjson.dumps([reason._asdict() for reason in ruling.reasons]).decode(),
        }
        for ruling, tool in ruled
    ]


class ToolLog:
    """Writes the rows of one worker.

    An offer that is allowed is written once an hour for each app and tool: a client offers the same tools with every
    request. What is not allowed, and each call, is written every time. Without room in the journal rows are dropped.
    """

    def __init__(
        self,
        journal: Journal,
        has_room: Callable[[], bool],
        now_us: Callable[[], int],
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._journal = journal
        self._has_room = has_room
        self._now_us = now_us
        self._remembered_max = remembered_max
        self._hours: OrderedDict[tuple[str, str, str, str], int] = OrderedDict()
        self._is_dropping = False
        self.dropped = 0

    def offered(self, row: Mapping[str, Any], tools: Iterable[str], rulings: Mapping[str, Ruling]) -> None:
        """Record the tools of a request that was admitted, or refused because of them."""
        now_us = self._now_us()
        told = [tool for tool in tools if tool in rulings or self._is_news(row, tool, now_us)]
        self._write(rows_of(row, now_us, OFFERED, told, rulings))

    def called(self, row: Mapping[str, Any], tools: Iterable[str], rulings: Mapping[str, Ruling]) -> None:
        """Record the calls in an answer, once for each call."""
        self._write(rows_of(row, self._now_us(), CALLED, tools, rulings))

    def _is_news(self, row: Mapping[str, Any], tool: str, now_us: int) -> bool:
        key, hour = (row["org"], row["team"], row["app"], tool), now_us // _HOUR_US
        if self._hours.get(key) == hour:
            return False
        self._hours[key] = hour
        self._hours.move_to_end(key)
        if len(self._hours) > self._remembered_max:
            self._hours.popitem(last=False)
        return True

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for written, row in enumerate(rows):
            try:
                if self._has_room():
                    self._journal.append("tool_call", row)
                    self._is_dropping = False
                    continue
                reason = "the room left in the journal belongs to the settlements of what is open"
            except JournalError as error:
                reason = str(error)
            self.dropped += len(rows) - written
            if not self._is_dropping:
                log.error("rows of tool calls are dropped", reason=reason)
            self._is_dropping = True
            return


def blocked(tools: Iterable[str]) -> dict[str, Ruling]:
    """The rulings of an admission's `blocked_tools`."""
    return dict.fromkeys(tools, BLOCKED)
