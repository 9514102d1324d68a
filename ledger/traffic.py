"""Traffic: what a runtime was asked to do, as the ledger has it, in the order in which it came and page by page."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ledger.focus import Ask

PAGE_ROWS = 5_000
_US = 1_000_000
_HOUR_US = 3_600 * _US

# What generated tokens; what failed, expired or was refused did no known work, and adjustments are no requests.
_SERVED = "status IN ('ok', 'cut') AND endpoint IN ('chat', 'completions')"
_ARRIVAL = "(toUnixTimestamp64Micro(ts) - duration_us)"
# A bound is charged where no usage was reported, and says nothing of how long a prompt was.
_IS_KNOWN = "certainty != 'at_most' AND input_tokens > 0 AND output_tokens > 0"
_WITHIN = "ts >= fromUnixTimestamp64Micro({since}, 'UTC') AND ts < fromUnixTimestamp64Micro({until}, 'UTC')"
_MODELS_SQL = """
SELECT served_model, countIf({known}) AS requests, countIf(NOT ({known})) AS unknown, max(duration_us) AS longest
FROM usage
WHERE {within} AND {served} AND {arrival} >= {since}
GROUP BY served_model
ORDER BY served_model
"""
_HOURS_SQL = """
SELECT DISTINCT intDiv({arrival}, {hour_us}) AS hour
FROM usage
WHERE {within} AND {served} AND {arrival} >= {since} AND served_model = {{model:String}}
ORDER BY hour
"""
_PAGE_SQL = """
SELECT {arrival} AS arrived, event_id, input_tokens, output_tokens, prompt_bytes, prompt_blocks
FROM usage
WHERE {within} AND {served} AND {known} AND served_model = {{model:String}}
  AND {arrival} < {end} AND (arrived, event_id) > ({after}, {{event_id:String}})
ORDER BY arrived, event_id
LIMIT {limit}
"""


class NoTraffic(Exception):
    """There is no traffic to tell of, or that of several models; the message says what to ask for."""


class Span(NamedTuple):
    """Unix microseconds from `since_us` on and before `until_us`."""

    since_us: int
    until_us: int


class Traffic(NamedTuple):
    """The traffic of one model: how many requests are known, how many are not, and how long the longest took."""

    model: str
    span: Span
    requests: int
    unknown: int
    longest_us: int


class Request(NamedTuple):
    """One request: when it came, in Unix microseconds, its tokens, and its prompt's bytes and blocks where recorded."""

    arrived_us: int
    input_tokens: int
    output_tokens: int
    prompt_bytes: int
    prompt_blocks: tuple[int, ...]


def traffic_of(ask: Ask, span: Span, model: str = "") -> Traffic:
    """What came for a model and ended within a span; NoTraffic where that is nothing, or of several models."""
    rows = ask(_MODELS_SQL.format(**_parts(span, span.until_us)), {})
    known = {str(row["served_model"]): row for row in rows if int(row["requests"])}
    if model and model not in known:
        served = f": there are {', '.join(sorted(known))}" if known else ""
        raise NoTraffic(f"no chat or completion of model {model} was served in that time{served}")
    if not known:
        raise NoTraffic("no chat or completion was served in that time: ask for a longer one with --since")
    if not model and len(known) > 1:
        raise NoTraffic(f"several models served in that time: name one with --model, of {', '.join(sorted(known))}")
    [(name, row)] = [(name, row) for name, row in known.items() if name == model or not model]
    return Traffic(name, span, int(row["requests"]), int(row["unknown"]), int(row["longest"]))


def requests_of(ask: Ask, traffic: Traffic, page_rows: int = PAGE_ROWS) -> Iterator[Request]:
    """Every request of it in order of arrival, reading at most `page_rows` at a time, hour by hour."""
    span, asked = traffic.span, {"model": traffic.model}
    hours = ask(_HOURS_SQL.format(**_parts(span, span.until_us)), asked)
    for hour in (int(row["hour"]) for row in hours):
        end_us = min((hour + 1) * _HOUR_US, span.until_us)
        # Rows are kept by when they ended, which is never before they came.
        within = Span(max(hour * _HOUR_US, span.since_us), min(end_us + traffic.longest_us + 1, span.until_us))
        after, event_id = within.since_us, ""
        while True:
            sql = _PAGE_SQL.format(**_parts(within, end_us), after=after, limit=page_rows)
            rows = ask(sql, {**asked, "event_id": event_id})
            yield from map(_request, rows)
            if len(rows) < page_rows:
                break
            after, event_id = int(rows[-1]["arrived"]), str(rows[-1]["event_id"])


def _parts(span: Span, end_us: int) -> dict[str, str | int]:
    return {
        "within": _WITHIN.format(since=span.since_us, until=span.until_us),
        "since": span.since_us,
        "end": end_us,
        "served": _SERVED,
        "known": _IS_KNOWN,
        "arrival": _ARRIVAL,
        "hour_us": _HOUR_US,
    }


def _request(row: dict[str, Any]) -> Request:
    return Request(
        int(row["arrived"]),
        int(row["input_tokens"]),
        int(row["output_tokens"]),
        int(row["prompt_bytes"]),
        tuple(map(int, row["prompt_blocks"])),
    )
