"""A nest: one organisation whose teams, apps and keys are held by five hard budgets, each within the one above.

Every stream holds the same amounts, so the streams that fit are counted in whole places, and because the budgets nest,
every order of arrival fills the same number of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ORG_PLACES, TEAM_PLACES, SLOTS, APP_PLACES, KEY_PLACES = 340, 140, 50, 100, 60
CONTENT = "say {:04d}"
OUTPUT_TOKENS = 40
# The template's allowance, the role and the content, a token for each byte.
INPUT_BOUND = 4 + 4 + len("user") + len(CONTENT.format(0))
INPUT_NUSD, OUTPUT_NUSD = 150, 600
COST_NUSD = INPUT_BOUND * INPUT_NUSD + OUTPUT_TOKENS * OUTPUT_NUSD
MODEL = "sim-small"
_SLOTTED = ("research", "eval")


class Caller(NamedTuple):
    """One key and how many streams it opens."""

    team: str
    app: str
    streams: int


# Each of the five budgets becomes full: the slots of `eval`, the tokens of research by its chat besides, the output of
# search's chat, the requests of the first key of batch, and the organisation's cost, which has a place for each that
# its teams have, and so is full when they are. The streams leave in any order: `eval` has so many that its slots are
# taken long before research is full.
CALLERS = (
    Caller("research", "eval", 300),
    Caller("research", "chat", 75),
    Caller("research", "chat", 75),
    Caller("search", "chat", 125),
    Caller("search", "chat", 125),
    Caller("search", "batch", 250),
    Caller("search", "batch", 50),
)


def places() -> int:
    """How many of the callers' streams fit at once: at each level the fewer of its own places and those within it."""
    within: dict[tuple[str, str], int] = {}
    for caller in CALLERS:
        app = (caller.team, caller.app)
        room = SLOTS if app == _SLOTTED else APP_PLACES
        within[app] = min(room, within.get(app, 0) + min(KEY_PLACES, caller.streams))
    research = min(TEAM_PLACES, sum(count for (team, _), count in within.items() if team == "research"))
    return min(ORG_PLACES, research + sum(count for (team, _), count in within.items() if team != "research"))


def bodies(*, ignore_eos: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The index of the caller and the body of each stream; with `ignore_eos` every answer reaches its cap."""
    serial = 0
    for index, caller in enumerate(CALLERS):
        for _ in range(caller.streams):
            yield (
                index,
                {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": CONTENT.format(serial)}],
                    "max_tokens": OUTPUT_TOKENS,
                    "stream": True,
                    "ignore_eos": ignore_eos,
                },
            )
            serial += 1


def write_config(path: Path, *, hold_ttl_s: int, time_scale: float) -> None:
    """A configuration whose embedded simulator keeps all admitted streams in flight, `time_scale` times as fast."""
    runtime = {
        "id": "sim",
        "owner": "platform",
        "url": "sim://",
        "sim": {"max_num_seqs": 512, "max_waiting": 1024, "num_blocks": 16_384, "time_scale": time_scale},
    }
    price = {"valid_from": "2025-01-01", "input_nusd_per_mtok": INPUT_NUSD * 10**6}
    model = {
        "id": MODEL,
        "owner": "platform",
        "runtimes": ["sim"],
        "endpoints": ["chat"],
        "context_tokens": 2048,
        "template_tokens_per_message": 4,
        "template_tokens_fixed": 4,
        "price": [price | {"output_nusd_per_mtok": OUTPUT_NUSD * 10**6}],
    }
    config = {
        "version": 1,
        "policy": {"url": "embedded:"},
        "book": {"hold_ttl_s": hold_ttl_s},
        "runtimes": [runtime],
        "models": [model],
        "budgets": _budgets(),
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _budgets() -> list[dict[str, Any]]:
    tokens = INPUT_BOUND + OUTPUT_TOKENS
    org, team, eval_app = {"org": "acme"}, {"team": "research"}, dict(zip(("team", "app"), _SLOTTED, strict=True))
    app = org | {"team": "*", "app": "*"}
    return [
        _budget("org-day-cost", org, "list_cost_nusd", ORG_PLACES * COST_NUSD, "day"),
        _budget("team-month-tokens", org | team, "tokens", TEAM_PLACES * tokens, "month"),
        _budget("app-slots", org | eval_app, "concurrency", SLOTS, "total"),
        _budget("app-total-output", app, "output_tokens", APP_PLACES * OUTPUT_TOKENS, "total"),
        _budget("key-total-requests", app | {"key": "*"}, "requests", KEY_PLACES, "total"),
    ]


def _budget(name: str, scope: dict[str, str], resource: str, limit: int, window: str) -> dict[str, Any]:
    return {
        "id": name,
        "owner": "finance",
        "scope": scope,
        "resource": resource,
        "limit": limit,
        "window": window,
        "mode": "hard",
    }
