"""Privileges in use: which models, tools and keys the ledger has seen used, and when last."""

from typing import NamedTuple

from ledger.client import LedgerClient

# A fallback is decided for itself, so what served is what was used of a grant.
_MODELS = """
SELECT org, team, app, key_id, endpoint, served_model AS model, toUnixTimestamp(max(ts)) AS last_s
FROM usage WHERE served_model != '' AND status != 'adjusted'
GROUP BY org, team, app, key_id, endpoint, model
"""
_TOOLS = """
SELECT org, team, app, tool, server, tool_kind,
       toUnixTimestamp(maxIf(ts, phase = 'called' AND verdict != 'deny')) AS last_s
FROM tool_call WHERE tool != ''
GROUP BY org, team, app, tool, server, tool_kind
"""
_FIRST = "SELECT toUnixTimestamp(min(ts)) AS first_s FROM events"


class App(NamedTuple):
    """Whose privileges these are."""

    org: str
    team: str
    app: str


class ModelUse(NamedTuple):
    """That a key of an app used a model on an endpoint, at a Unix second for the last time."""

    app: App
    key_id: str
    endpoint: str
    model: str
    last_s: int


class ToolUse(NamedTuple):
    """That a tool was offered to a model by an app, and when it was last called; 0 is never."""

    app: App
    tool: str
    server: str
    kind: str
    last_s: int


class Uses(NamedTuple):
    """All that was ever used, and the Unix second from which on the ledger knows, 0 where it is empty."""

    models: tuple[ModelUse, ...]
    tools: tuple[ToolUse, ...]
    first_s: int


def uses(client: LedgerClient) -> Uses:
    """What the ledger knows of models, tools and keys in use. LedgerUnavailable, QueryFailed."""
    [first] = client.rows(_FIRST)
    return Uses(
        tuple(
            ModelUse(_app(row), row["key_id"], row["endpoint"], row["model"], int(row["last_s"]))
            for row in client.rows(_MODELS)
        ),
        tuple(
            ToolUse(_app(row), row["tool"], row["server"], row["tool_kind"], int(row["last_s"]))
            for row in client.rows(_TOOLS)
        ),
        int(first["first_s"]),
    )


def _app(row: dict[str, str]) -> App:
    return App(row["org"], row["team"], row["app"])
