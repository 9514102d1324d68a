"""Decisions on record: the distinct inputs that were decided with what they stood for, and the decision on a request.

Distinct inputs come in pages, each a range of their digests, which are spread evenly: a ledger of millions of them is
read without ever being whole in memory, here or in the engine.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from ledger.client import LedgerClient

PAGE_ROWS = 25_000
_PREFIX_DIGITS = 6
# Greater than every digest.
_END = "g"

_SINCE = "{column} >= fromUnixTimestamp64Micro({{since_us:Int64}})"
_IS_SINCE = _SINCE.format(column="ts")
_RANGE = "input_digest >= {begin:String} AND input_digest < {end:String}"
_ENFORCED = "NOT is_shadow AND entry = {entry:String}"
_SHADOW = "is_shadow AND entry = {entry:String}"
_RULING = "tuple(allow, reasons, obligations, policy_revision)"
_SPLIT = """
{name}.1 AS {name}_allow, {name}.2 AS {name}_reasons, {name}.3 AS {name}_obligations, {name}.4 AS {name}_revision
"""
_SUMS = "sum(spent.requests) AS requests, sum(spent.list_cost_nusd) AS list_cost_nusd"

# In a cluster both tables are spread over its servers: each is asked with all names of the other, hence GLOBAL.
# A cached decision is recorded once and serves for as long as its bundle does: what is used since counts too.
_USED = f"decision_id GLOBAL IN (SELECT decision_id FROM usage WHERE {_IS_SINCE} AND decision_id != '')"  # noqa: S608 every part is a constant of this file
_COUNT = f"SELECT uniqExact(input_digest) AS inputs FROM decision_inputs WHERE {_ENFORCED} AND ({_IS_SINCE} OR {_USED})"  # noqa: S608 as above
_SHADOWS_COUNT = f"SELECT uniqExact(input_digest) AS inputs FROM decision_inputs WHERE {_SHADOW} AND {_IS_SINCE}"  # noqa: S608 as above

# What corrects a row of `usage` names no decision, so its difference is in no sum here.
_SPENT = f"""
SELECT decision_id, count() AS requests, sum(list_cost_nusd) AS list_cost_nusd FROM usage
WHERE {_IS_SINCE} AND decision_id GLOBAL IN (SELECT decision_id FROM decision_inputs WHERE {_RANGE})
GROUP BY decision_id
"""  # noqa: S608 as above
_INPUTS = f"""
SELECT input_digest, input, {_SPLIT.format(name="enforced")}, requests, list_cost_nusd
FROM (
    SELECT input_digest, any(decided.input) AS input, argMax({_RULING}, decided.ts) AS enforced, {_SUMS},
           max(decided.ts) AS last
    FROM (SELECT * FROM decision_inputs WHERE {_RANGE} AND {_ENFORCED}) AS decided
    LEFT JOIN ({_SPENT}) AS spent ON spent.decision_id = decided.decision_id
    GROUP BY input_digest
)
WHERE requests > 0 OR {_SINCE.format(column="last")}
"""  # noqa: S608 as above
_SHADOWED = f"""
SELECT input_digest, input, {_SPLIT.format(name="enforced")}, {_SPLIT.format(name="shadow")}, requests, list_cost_nusd
FROM (
    SELECT input_digest, any(decided.input) AS input, argMax(decided.ruling, shade.ts) AS enforced,
           argMax(shade.ruling, shade.ts) AS shadow, {_SUMS}
    FROM (
        SELECT decision_id, input_digest, input, {_RULING} AS ruling FROM decision_inputs WHERE {_RANGE} AND {_ENFORCED}
    ) AS decided
    JOIN (
        SELECT decision_id, ts, {_RULING} AS ruling FROM decision_inputs WHERE {_RANGE} AND {_SHADOW} AND {_IS_SINCE}
    ) AS shade ON shade.decision_id = decided.decision_id
    LEFT JOIN ({_SPENT}) AS spent ON spent.decision_id = decided.decision_id
    GROUP BY input_digest
)
"""  # noqa: S608 as above

_REQUEST = """
SELECT request_id, client_request_id, toString(ts) AS at, org, team, app, endpoint, model, served_model, status,
       http_status, error_code, list_cost_nusd, decision_id, policy_revision
FROM usage WHERE {column} = {{id:String}} AND status != 'adjusted'
ORDER BY ts DESC LIMIT 1
"""
# Of its own name the table has an index.
_NAMES = ("request_id", "client_request_id")
_DECISIONS = """
SELECT decision_id, entry, is_shadow, toString(ts) AS at, input_digest, policy_revision, allow, reasons, obligations,
       input
FROM decision_inputs WHERE decision_id = {id:String}
ORDER BY is_shadow, ts DESC LIMIT 1 BY is_shadow
"""


def count(client: LedgerClient, entry: str, since: datetime) -> int:
    """How many distinct inputs of an entry point were decided or used since. LedgerUnavailable, QueryFailed."""
    return int(client.rows(_COUNT, entry=entry, since_us=_us(since))[0]["inputs"])


def inputs(client: LedgerClient, entry: str, since: datetime, found: int) -> Iterator[dict[str, Any]]:
    """Each distinct input with the ruling that was in force last, `found` being about how many there are.

    `requests` and `list_cost_nusd` are of the rows of `usage` since, that name any decision on it. LedgerUnavailable,
    QueryFailed.
    """
    return _paged(client, _INPUTS, entry, since, found)


def shadowed_count(client: LedgerClient, entry: str, since: datetime) -> int:
    """How many distinct inputs a shadow has decided since. LedgerUnavailable, QueryFailed."""
    return int(client.rows(_SHADOWS_COUNT, entry=entry, since_us=_us(since))[0]["inputs"])


def shadowed(client: LedgerClient, entry: str, since: datetime, found: int) -> Iterator[dict[str, Any]]:
    """Each distinct input that a shadow has decided since, with its last ruling and the one that was in force then."""
    return _paged(client, _SHADOWED, entry, since, found)


def request(client: LedgerClient, request_id: str) -> dict[str, Any] | None:
    """The row of a request, by its own name or by its client's, the last one with that. QueryFailed."""
    for column in _NAMES:
        for row in client.rows(_REQUEST.format(column=column), id=request_id):
            return row
    return None


def decisions(client: LedgerClient, decision_id: str) -> list[dict[str, Any]]:
    """The evaluation with this name, and that of its shadow behind it where there is one. QueryFailed."""
    return client.rows(_DECISIONS, id=decision_id)


def _paged(client: LedgerClient, sql: str, entry: str, since: datetime, found: int) -> Iterator[dict[str, Any]]:
    """The rows of all pages; the next page is asked for while one is gone through."""
    given = {"entry": entry, "since_us": _us(since)}

    def page(begin: str, end: str) -> bytes:
        return client.query(sql, "JSONEachRow", begin=begin, end=end, **given)

    bounds = page_bounds(found)
    with ThreadPoolExecutor(1, thread_name_prefix="page") as thread:
        coming = [thread.submit(page, *bounds[0])]
        for following in [*bounds[1:], None]:
            lines = coming.pop().result()
            if following is not None:
                coming.append(thread.submit(page, *following))
            for line in lines.splitlines():
                yield json.loads(line)


def page_bounds(found: int) -> list[tuple[str, str]]:
    """Ranges of digests that hold about as many of `found` inputs as a page should; together they hold all."""
    pages = min(-(-found // PAGE_ROWS) or 1, 16**_PREFIX_DIGITS)
    starts = [f"{16**_PREFIX_DIGITS * page // pages:0{_PREFIX_DIGITS}x}" for page in range(pages)]
    return list(zip(["", *starts[1:]], [*starts[1:], _END], strict=True))


def _us(moment: datetime) -> str:
    return str(int(moment.timestamp() * 1_000_000))
