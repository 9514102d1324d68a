"""Service level objectives: how well requests were served, as SQL built from fixed parts only, and what that leaves.

An objective promises that of all events over a rolling window a share is good. One statement counts the good and the
rest over the window and over the windows of both its alerts; `assess` turns the counts into what is left of the error
budget and how fast it burns. Alerts are those of the Site Reliability Workbook (Beyer et al., O'Reilly 2018, chapter 5,
"Multiwindow, Multi-Burn-Rate Alerts").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from domain.amounts import MILLION, ceil_div

Kind = Literal["availability", "ttft", "inter_token", "e2e"]
State = Literal["ok", "burning", "exhausted", "no_data"]

# What a scope can name, each a column of `usage`, in the order of its index.
DIMENSIONS = ("org", "model", "team", "app")
MILLI = 1_000
QUANTILES = (0.5, 0.95, 0.99)


class Alert(NamedTuple):
    """Two windows in seconds, and the burn rate in thousandths that both must reach; the short one ends it in time."""

    long_s: int
    short_s: int
    burn_milli: int


@dataclass(frozen=True, slots=True)
class Objective:
    """A promise: `objective_ppm` of a million events over `window_s` seconds are good.

    `scope` maps dimensions to values; all requests for which they hold are meant. `threshold_us` is the time that a
    good event takes at most, and of no meaning to availability. With fewer events than `events_min` nothing is said.
    """

    id: str
    owner: str
    scope: tuple[tuple[str, str], ...]
    kind: Kind
    objective_ppm: int
    window_s: int
    fast: Alert
    slow: Alert
    threshold_us: int = 0
    events_min: int = 1


class Counts(NamedTuple):
    """The events of one window, and how many of them were good."""

    total: int = 0
    good: int = 0

    @property
    def bad(self) -> int:
        return self.total - self.good


class Measured(NamedTuple):
    """What the ledger counted; `quantiles_us` are those of QUANTILES, or None where nothing is timed."""

    window: Counts = Counts()
    fast_long: Counts = Counts()
    fast_short: Counts = Counts()
    slow_long: Counts = Counts()
    slow_short: Counts = Counts()
    quantiles_us: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """How an objective stands: thousandths of its error budget left, and burn rates in thousandths.

    A burn of 1000 for as long as the window leaves nothing. `fast_burn_milli` is the lower burn of the fast alert's two
    windows, which is what that alert compares; `slow_burn_milli` likewise.
    """

    objective: Objective
    measured: Measured
    state: State
    remaining_permille: int = 0
    fast_burn_milli: int = 0
    slow_burn_milli: int = 0
    why: str = ""


class Question(NamedTuple):
    """A reading statement, and the values of its `{name:String}`."""

    sql: str
    parameters: dict[str, str]


class _Sli(NamedTuple):
    """Which rows of `usage` are events, the time that each took, and when it was good."""

    event: str
    value: str
    good: str


# What the service did not answer is its fault, whatever part of it failed. What policy or a budget refuses, what was
# asked wrongly (4xx, of the runtime's too), what a client left (499) and what corrects a row is no event.
_AVAILABILITY = _Sli("status IN ('ok', 'expired') OR http_status >= 500", "0", "status = 'ok'")

# Failures are counted by availability, and once. A client that waited for longer than the threshold and left is counted
# with what it waited: otherwise the slowest requests would be the ones that are missing.
_SLIS: Mapping[str, _Sli] = {
    "availability": _AVAILABILITY,
    "ttft": _Sli(
        "stream AND (status IN ('ok', 'cut') AND ttft_us > 0 OR status = 'cut' AND duration_us > {threshold_us})",
        "if(ttft_us > 0, ttft_us, duration_us)",
        "if(ttft_us > 0, ttft_us, duration_us) <= {threshold_us}",
    ),
    "e2e": _Sli(
        "status = 'ok' OR status = 'cut' AND duration_us > {threshold_us}",
        "duration_us",
        "duration_us <= {threshold_us}",
    ),
    "inter_token": _Sli(
        "status = 'ok' AND stream AND ttft_us > 0 AND output_tokens > 1",
        "(duration_us - ttft_us) / (output_tokens - 1)",
        "duration_us - ttft_us <= {threshold_us} * (output_tokens - 1)",
    ),
}


def question(objective: Objective, now_s: int) -> Question:
    """The statement that counts an objective's events, all windows at once, each ending at a Unix second."""
    event, value, good = (part.format(threshold_us=objective.threshold_us) for part in _SLIS[objective.kind])
    named = dict(objective.scope)
    conditions = [f"{dimension} = {{{dimension}:String}}" for dimension in DIMENSIONS if dimension in named]
    conditions += [f"ts >= {_moment(now_s - objective.window_s)}", f"ts < {_moment(now_s)}", f"({event})"]
    counted = ["count() AS window_total", "countIf(good) AS window_good"]
    for name, alert in (("fast", objective.fast), ("slow", objective.slow)):
        for length, seconds in (("long", alert.long_s), ("short", alert.short_s)):
            since = f"ts >= {_moment(now_s - seconds)}"
            counted += [
                f"countIf({since}) AS {name}_{length}_total",
                f"countIf(good AND {since}) AS {name}_{length}_good",
            ]
    if objective.kind != "availability":
        counted.append(f"quantilesTDigest({', '.join(map(str, QUANTILES))})(value) AS quantiles_us")
    inner = f"SELECT ts, {value} AS value, {good} AS good FROM usage WHERE {' AND '.join(conditions)}"  # noqa: S608 every part is a constant of this file or an int
    return Question(f"SELECT {', '.join(counted)} FROM ({inner})", named)  # noqa: S608 as above


def measured(row: Mapping[str, Any]) -> Measured:
    """What the one row that answers the question says."""
    windows = {name: Counts(int(row[f"{name}_total"]), int(row[f"{name}_good"])) for name in Measured._fields[:-1]}
    found = row.get("quantiles_us")
    # Over no rows the engine answers with what is no number.
    quantiles = tuple(round(each) for each in found) if found and windows["window"].total else None
    return Measured(**windows, quantiles_us=quantiles)


def assess(objective: Objective, found: Measured) -> Status:
    """How an objective stands by what was counted; nothing is known of one with too few events."""
    window = found.window
    if window.total < objective.events_min or not window.total:
        why = f"{window.total} events in the window, where at least {objective.events_min} are needed to judge"
        return Status(objective, found, "no_data", why=why)
    left = max(0, MILLI - burn_milli(window, objective.objective_ppm))
    fast = _burn_milli(objective, found.fast_long, found.fast_short)
    slow = _burn_milli(objective, found.slow_long, found.slow_short)
    if not left:
        state: State = "exhausted"
    elif fast >= objective.fast.burn_milli or slow >= objective.slow.burn_milli:
        state = "burning"
    else:
        state = "ok"
    return Status(objective, found, state, left, fast, slow)


def burn_milli(counts: Counts, objective_ppm: int) -> int:
    """How many times as fast as the objective allows events went bad, in thousandths, rounded up; 0 without events."""
    if not counts.total:
        return 0
    return ceil_div(counts.bad * MILLI * MILLION, counts.total * (MILLION - objective_ppm))


def burn_milli_max(objective_ppm: int) -> int:
    """The burn rate, in thousandths, of a time in which every event goes bad; rounded down."""
    return MILLI * MILLION // (MILLION - objective_ppm)


def _burn_milli(objective: Objective, long: Counts, short: Counts) -> int:
    """The lower of the burn rates of an alert's windows; of too few events in the long one nothing can be told."""
    if long.total < objective.events_min:
        return 0
    return min(burn_milli(long, objective.objective_ppm), burn_milli(short, objective.objective_ppm))


def _moment(at_s: int) -> str:
    return f"toDateTime64({at_s}, 6, 'UTC')"
