"""Reports: the questions that people ask a ledger most, as SQL built from fixed parts only.

Where the rollups know what is asked they are read instead of `usage`: whole days, then whole hours, then minutes.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ledger.gpu_report import accounts, estimates
from ledger.rollups import DIMENSIONS as ROLLED_UP
from ledger.rollups import SUMS
from ledger.tables import ADJUSTED

DEFAULT_SINCE = "7d"
ROWS_MAX = 1_000
LIMIT_MAX = 100_000
_AGO = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

# What may be grouped by, and the expression that stands for it.
_COLUMNS = (
    *("org", "team", "app", "user", "key_id", "run_id", "endpoint", "model", "served_model", "runtime", "replica"),
    *("status", "error_code", "certainty", "degraded", "cache_domain", "risk_level", "pool"),
    *("policy_revision", "price_version", "writer"),
)
DIMENSIONS = {
    **{name: name for name in _COLUMNS},
    "day": "toDate(ts)",
    "hour": "toStartOfHour(ts)",
}

_SIGNAL_COLUMNS = ("name", "org", "team", "app", "run_id", "subject", "level", "writer")
SIGNAL_DIMENSIONS = {
    **{name: name for name in _SIGNAL_COLUMNS},
    "day": DIMENSIONS["day"],
    "hour": DIMENSIONS["hour"],
}

# `rows` is 1 in each row of `usage`, and how many were added up in each row of a rollup. What corrects a row is no
# request of its own.
_MEASURES = {
    "requests": f"sumIf(rows, status NOT IN ('refused', '{ADJUSTED}'))",
    "input_tokens": "sum(input_tokens)",
    "cached_input_tokens": "sum(cached_input_tokens)",
    "output_tokens": "sum(output_tokens)",
    "list_cost_usd": "toDecimalString(toDecimal128(sum(list_cost_nusd), 9) / 1000000000, 9)",
    "gpu_cost_usd": "toDecimalString(toDecimal128(sum(gpu_cost_nusd), 9) / 1000000000, 9)",
    "saved_usd": "toDecimalString(toDecimal128(sum(saved_cost_nusd), 9) / 1000000000, 9)",
    "cached_percent": "if(sum(input_tokens) = 0, 0, round(100 * sum(cached_input_tokens) / sum(input_tokens), 2))",
    "gpu_s": "toDecimalString(toDecimal128(sum(gpu_us), 6) / 1000000, 6)",
    "kv_block_s": "toDecimalString(toDecimal128(sum(kv_block_us), 6) / 1000000, 6)",
    "queue_s": "toDecimalString(toDecimal128(sum(queue_us), 6) / 1000000, 6)",
    "energy_j": "toDecimalString(toDecimal128(sum(energy_uj), 6) / 1000000, 6)",
    "refused": "sum(rows)",
    "rows": "count()",
    "value": "sum(value)",
    "first": "toString(min(ts))",
    "last": "toString(max(ts))",
}


_ROLLED_UP_MEASURES = _MEASURES.keys() - {"first", "last", "value"}
_HOUR_S = 3_600
_DAY_S = 86_400
_END_S = (1 << 32) - 1  # the last second that a DateTime holds


class BadReport(ValueError):
    """A report that does not exist, or a question it does not know; the message names what it knows."""


class Report(NamedTuple):
    """A title, the names of the columns in order, and the statement that fills them."""

    title: str
    columns: tuple[str, ...]
    sql: str


class _Kind(NamedTuple):
    title: str
    group_by: tuple[str, ...]
    measures: tuple[str, ...]
    order: str
    where: str = "1"
    table: str = "usage"

    @property
    def dimensions(self) -> dict[str, str]:
        return SIGNAL_DIMENSIONS if self.table == "signal" else DIMENSIONS


GPU, ESTIMATES = "gpu", "estimates"
KINDS = {
    "spend": _Kind(
        "Spend",
        ("team",),
        ("requests", "input_tokens", "output_tokens", "list_cost_usd", "gpu_cost_usd", "saved_usd"),
        "sum(list_cost_nusd) DESC",
    ),
    "cache": _Kind(
        "Cache",
        ("model",),
        ("requests", "input_tokens", "cached_input_tokens", "cached_percent", "saved_usd"),
        "sum(cached_input_tokens) DESC",
    ),
    GPU: _Kind(
        "GPU",
        ("model", "runtime"),
        ("requests", "gpu_s", "kv_block_s", "queue_s", "energy_j", "gpu_cost_usd"),
        "sum(gpu_us) DESC",
    ),
    "denials": _Kind(
        "Denials", ("team", "error_code"), ("refused", "first", "last"), "count() DESC", "status = 'refused'"
    ),
    "signals": _Kind(
        "Signals", ("name", "team", "app"), ("rows", "value", "first", "last"), "sum(value) DESC", table="signal"
    ),
}


def report(
    kind: str,
    *,
    group_by: Sequence[str] = (),
    since: str = DEFAULT_SINCE,
    now: datetime | None = None,
    limit: int = ROWS_MAX,
) -> Report:
    """One of `spend`, `cache`, `gpu`, `denials` over the usage rows since a time, or `signals` over those; BadReport.

    `gpu` without `group_by` is of runtimes, their samples beside what was charged, and `estimates` always is.

    `since` is `90m`, `24h`, `7d`, `2w` ago or an ISO date or time (UTC unless it says otherwise), and the report begins
    with the minute that it is in. Money is in USD with all nine decimals. The largest rows come first, or in the order
    of time when grouped by it, and one more than `limit`, which shows that there are more.
    """
    if kind not in (*KINDS, ESTIMATES):
        raise BadReport(f"no report {kind!r}; there are {', '.join((*KINDS, ESTIMATES))}")
    if not 1 <= limit <= LIMIT_MAX:
        raise BadReport(f"cannot print {limit} rows: ask for 1 to {LIMIT_MAX}")
    start = moment(since, now or datetime.now(UTC)).replace(second=0, microsecond=0)
    if kind == ESTIMATES or (kind == GPU and not group_by):
        return _of_runtimes(kind, group_by, start, limit)
    spec = KINDS[kind]
    names, known = tuple(group_by) or spec.group_by, spec.dimensions
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) != len(names):
        raise BadReport(f"cannot group by {', '.join(unknown or names)}; group once by any of {', '.join(known)}")
    keys = [f"{known[name]} AS `{name}_`" for name in names]
    values = [f"{_MEASURES[name]} AS `{name}_`" for name in spec.measures]
    groups = ", ".join(f"`{name}_`" for name in names)
    order = ", ".join([*(f"`{name}_`" for name in names if name in ("day", "hour")), spec.order])
    inner = (
        f"SELECT {', '.join(keys + values)} FROM ({_source(spec, names, start)}) "  # noqa: S608 every part is a constant of this file or an int
        f"WHERE {spec.where} GROUP BY {groups} ORDER BY {order} LIMIT {limit + 1}"
    )
    columns = names + spec.measures
    title = f"{spec.title} by {', '.join(names)} since {start:%Y-%m-%d %H:%M} UTC"
    return Report(title, columns, f"SELECT {', '.join(f'`{name}_` AS `{name}`' for name in columns)} FROM ({inner})")  # noqa: S608 as above


def _of_runtimes(kind: str, group_by: Sequence[str], start: datetime, limit: int) -> Report:
    """A report that compares what runtimes say with what was charged, which has its columns once and for all."""
    if group_by:
        raise BadReport("estimates are by runtime only: leave --group-by out")
    start_s = int(start.timestamp())
    if kind == ESTIMATES:
        title, made = "GPU estimates", estimates(start_s, limit)
    else:
        title, made = KINDS[GPU].title, accounts(_source(KINDS[GPU], ("runtime",), start), start_s, limit)
    shown = ", ".join(f"`{name}_` AS `{name}`" for name in made.names)
    sql = f"SELECT {shown} FROM ({made.sql})"  # noqa: S608 as above
    return Report(f"{title} by runtime since {start:%Y-%m-%d %H:%M} UTC", made.names, sql)


def _source(spec: _Kind, names: Sequence[str], start: datetime) -> str:
    """The rows since `start` to be added up: those of `usage`, or of the rollups where these have all that is asked."""
    rolled_up = {*ROLLED_UP, "day", "hour"}
    start_s = int(start.timestamp())
    if spec.table != "usage":
        return f"SELECT * FROM {spec.table} WHERE ts >= toDateTime64({start_s}, 6, 'UTC')"  # noqa: S608 as below
    if not (rolled_up.issuperset(names) and _ROLLED_UP_MEASURES.issuperset(spec.measures)):
        return f"SELECT *, toInt64(1) AS rows FROM usage WHERE ts >= toDateTime64({start_s}, 6, 'UTC')"  # noqa: S608 as below
    hour_s, day_s = -(-start_s // _HOUR_S) * _HOUR_S, -(-start_s // _DAY_S) * _DAY_S
    minutes = _span("usage_by_minute", start_s, hour_s)
    if "hour" in names:
        return f"{minutes} UNION ALL {_span('usage_by_hour', hour_s, _END_S)}"
    hours = _span("usage_by_hour", hour_s, day_s)
    return f"{minutes} UNION ALL {hours} UNION ALL {_span('usage_by_day', day_s, _END_S)}"


def _span(table: str, begin_s: int, end_s: int) -> str:
    columns = ", ".join((*ROLLED_UP, "rows", *SUMS))
    return (
        f"SELECT time AS ts, {columns} FROM {table} WHERE time >= toDateTime({begin_s}) AND time < toDateTime({end_s})"  # noqa: S608 as above
    )


def moment(text: str, now: datetime) -> datetime:
    """The time that `90m`, `24h`, `7d`, `2w` ago or an ISO date or time means, in UTC; BadReport."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        start = datetime.fromisoformat(text)
        return start.astimezone(UTC) if start.tzinfo is not None else start.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadReport(f"cannot read the time {text!r}: write 24h, 7d or a date such as 2026-01-31") from None
