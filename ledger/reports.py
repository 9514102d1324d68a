"""Reports: the questions that people ask a ledger most, as SQL built from fixed parts only."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

DEFAULT_SINCE = "7d"
ROWS_MAX = 1_000
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

_MEASURES = {
    "requests": "countIf(status != 'refused')",
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
    "refused": "count()",
    "first": "toString(min(ts))",
    "last": "toString(max(ts))",
}


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
    "gpu": _Kind(
        "GPU",
        ("model", "runtime"),
        ("requests", "gpu_s", "kv_block_s", "queue_s", "energy_j", "gpu_cost_usd"),
        "sum(gpu_us) DESC",
    ),
    "denials": _Kind(
        "Denials", ("team", "error_code"), ("refused", "first", "last"), "count() DESC", "status = 'refused'"
    ),
}


def report(
    kind: str, *, group_by: Sequence[str] = (), since: str = DEFAULT_SINCE, now: datetime | None = None
) -> Report:
    """One of `spend`, `cache`, `gpu`, `denials` over the usage rows since a time; BadReport.

    `since` is `90m`, `24h`, `7d`, `2w` ago or an ISO date or time (UTC unless it says otherwise). Money is in USD with
    all nine decimals. At most ROWS_MAX rows, the largest first, or in the order of time when grouped by it.
    """
    if kind not in KINDS:
        raise BadReport(f"no report {kind!r}; there are {', '.join(KINDS)}")
    spec = KINDS[kind]
    names = tuple(group_by) or spec.group_by
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown or len(set(names)) != len(names):
        raise BadReport(f"cannot group by {', '.join(unknown or names)}; group once by any of {', '.join(DIMENSIONS)}")
    start = _start(since, now or datetime.now(UTC))
    start_us = int(start.timestamp()) * 1_000_000
    keys = [f"{DIMENSIONS[name]} AS `{name}_`" for name in names]
    values = [f"{_MEASURES[name]} AS `{name}_`" for name in spec.measures]
    groups = ", ".join(f"`{name}_`" for name in names)
    order = ", ".join([*(f"`{name}_`" for name in names if name in ("day", "hour")), spec.order])
    inner = (
        f"SELECT {', '.join(keys + values)} FROM usage "  # noqa: S608 every part is a constant of this file or an int
        f"WHERE ts >= fromUnixTimestamp64Micro({start_us}, 'UTC') AND {spec.where} "
        f"GROUP BY {groups} ORDER BY {order} LIMIT {ROWS_MAX}"
    )
    columns = names + spec.measures
    title = f"{spec.title} by {', '.join(names)} since {start:%Y-%m-%d %H:%M} UTC"
    return Report(title, columns, f"SELECT {', '.join(f'`{name}_` AS `{name}`' for name in columns)} FROM ({inner})")  # noqa: S608 as above


def _start(since: str, now: datetime) -> datetime:
    ago = _AGO.fullmatch(since)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        start = datetime.fromisoformat(since)
    except (ValueError, OverflowError):
        raise BadReport(f"cannot read since={since!r}: write 24h, 7d or a date such as 2026-01-31") from None
    return start.astimezone(UTC) if start.tzinfo is not None else start.replace(tzinfo=UTC)
