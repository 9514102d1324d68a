"""Loosening: what a configuration lets through that the one before it did not, found by comparing the two.

Every field has a rule that says when a change of it is looser. What has no rule counts as looser whenever it changes,
so that a new field is never passed over. Bounds that protect the process (`limits`), addresses and timeouts are not
limits on what may be spent or done, and have the rule that they never are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gateway.config import Config
from gateway.loosening_budgets import Loosening, budget_loosenings

SHOWN_MAX = 200
ALWAYS = "it cannot be told whether this is looser, so it counts as such"
_PRICES = ("input_nusd_per_mtok", "cached_input_nusd_per_mtok", "output_nusd_per_mtok")

Compare = Callable[[Any, Any], bool]


class Rule(NamedTuple):
    """When a change is looser, and the sentence that says why."""

    is_looser: Compare
    why: str = ""


def _never(before: Any, after: Any) -> bool:
    return False


def _changed(before: Any, after: Any) -> bool:
    return bool(before != after)


def _raised(before: Any, after: Any) -> bool:
    return bool(after > before)


def _lowered(before: Any, after: Any) -> bool:
    return bool(after < before)


def _off(before: Any, after: Any) -> bool:
    return bool(before) and not after


def _on(before: Any, after: Any) -> bool:
    return bool(after) and not before


def _gained(before: Any, after: Any) -> bool:
    return bool(set(after) - set(before))


def _lost(before: Any, after: Any) -> bool:
    return bool(set(before) - set(after))


def _bridged_longer(before: Any, after: Any) -> bool:
    return _bridged_s(after) > _bridged_s(before)


def _bridged_s(on_unavailable: str) -> int:
    """For how long earlier decisions stand in for a policy engine that is away: `deny`, `last_known_good:<seconds>`."""
    return int(on_unavailable.partition(":")[2] or 0)


def _to_server(before: Any, after: Any) -> bool:
    return before != after and not str(after).startswith("embedded:")


NEUTRAL = Rule(_never)
_HOLDS_LESS = "holds set less aside, so more fits every budget on it"
_JUDGED_LESS = "fewer bad answers are found, and risk hears less of them"
_TELLS_LESS = "fewer are told of what happens"
_EVIDENCE = "what proves the ledger goes to fewer places, or to others"

# The rule of each field; `*` is any item of a list by its id, and a rule of a section is one for all that is in it.
RULES: dict[str, Rule] = {
    "version": NEUTRAL,
    "env.name": Rule(_changed, "policies that go by the environment decide for another one"),
    "env.freeze": Rule(_off, "what policies refuse during a freeze they refuse no more"),
    "listen": NEUTRAL,
    "limits": NEUTRAL,
    "book.url": Rule(_changed, "the counters lie elsewhere, and what was counted so far does not count there"),
    "book.hold_ttl_s": NEUTRAL,
    "book.replicas": Rule(_lowered, "after Redis forgot, budgets are granted before all gateways have reported"),
    "book.timeout_ms": NEUTRAL,
    # A folder is compared by what is in it (`gateway.loosening_bundle`); what a server holds changes without a reload.
    "policy.url": Rule(_to_server, "policies come from another server, which changes them by itself"),
    **{f"policy.{field}": NEUTRAL for field in ("cache_max", "timeout_ms", "shadow", "poll_s", "token_env")},
    "policy.on_unavailable": Rule(_bridged_longer, "earlier decisions stand in for longer while the engine is away"),
    "ledger.url": Rule(_changed, "rows go to another store"),
    "ledger.fsync_interval_ms": Rule(_raised, "losing power loses more of what was spent"),
    "ledger.listen_exposed": Rule(_on, "the ledger is reachable from other machines"),
    "ledger.checkpoint_targets": Rule(_lost, _EVIDENCE),
    "ledger.prompt_blocks": Rule(_on, "it is recorded which prompts begin alike"),
    **{
        f"ledger.{field}": NEUTRAL
        for field in (
            *("journal_bytes_max", "segment_bytes", "retention_s", "listen_host", "listen_port"),
            "checkpoint_token_env",
        )
    },
    "telemetry": NEUTRAL,
    "webhooks.*.url": Rule(_changed, "somebody else is told of what happens"),
    "webhooks.*.secret_env": Rule(_off, "the receiver cannot tell who sends"),
    "webhooks.*.timeout_s": NEUTRAL,
    "webhooks.*.events": Rule(_lost, _TELLS_LESS),
    "runtimes.*.gpu_nusd_per_hour": Rule(_lowered, _HOLDS_LESS),
    "runtimes.*.gpu_us_per_input_mtok": Rule(_lowered, _HOLDS_LESS),
    "runtimes.*.gpu_us_per_output_mtok": Rule(_lowered, _HOLDS_LESS),
    "runtimes.*.hold_factor": Rule(_lowered, _HOLDS_LESS),
    "runtimes.*.telemetry": Rule(_changed, "accelerator time is charged by what another engine says, or by estimate"),
    "runtimes.*.work": Rule(_changed, "accelerator time is shared among requests by other weights"),
    "runtimes.*.vllm": Rule(_off, "the cache is no longer kept apart by the domains that policy draws"),
    **{
        f"runtimes.*.{field}": NEUTRAL
        for field in (
            *("owner", "url", "gpus", "api_key_env", "api_key_file", "connections_max", "connect_timeout_s", "sim"),
            *("first_byte_timeout_s", "idle_timeout_s", "retries_max", "breaker_failures", "breaker_reset_s"),
            *("power_w", "nvml_devices", "sample_interval_s"),
        )
    },
    "models.*.owner": NEUTRAL,
    "models.*.routing": NEUTRAL,
    "models.*.runtimes": Rule(_gained, "the model is served by a runtime that did not serve it"),
    "models.*.upstream_model": Rule(_changed, "another model answers under the same name"),
    "models.*.endpoints": Rule(_gained, "the model is offered on another endpoint"),
    "models.*.context_tokens": Rule(_changed, "larger requests are let through, or " + _HOLDS_LESS),
    "models.*.max_output_tokens": Rule(_raised, "answers may be longer unless their request says otherwise"),
    "models.*.template_tokens_per_message": Rule(_lowered, _HOLDS_LESS),
    "models.*.template_tokens_fixed": Rule(_lowered, _HOLDS_LESS),
    # Without one a text is bounded by its bytes, which no tokenizer exceeds.
    "models.*.tokenizer": Rule(lambda before, after: after is not None, _HOLDS_LESS),
    **{
        f"verify.{field}": NEUTRAL
        for field in ("timeout_s", "waiting_max", "schema_bytes_max", "approval_wait_s", "kept_max", "kept_bytes_max")
    },
    "verify.pii.entities": Rule(_lost, "some personal data is not looked for any more"),
    "verify.pii.score_min": Rule(_raised, "personal data counts only where it is more certain"),
    "verify.second_model": Rule(_changed, "another model or another question decides whether an answer is released"),
    "verify.approval_ttl_s": Rule(_raised, "a withheld answer can be approved for longer"),
    "quality.sample": Rule(_lowered, _JUDGED_LESS),
    "quality.answer_characters_max": Rule(_lowered, _JUDGED_LESS),
    "quality.passes_at_permille": Rule(_lowered, _JUDGED_LESS),
    "approvals.loosening": Rule(_off, "nobody else has to agree any more to what gets looser"),
    "approvals.bundle": Rule(lambda before, after: after == "flips", "some changed bundles need nobody's agreement"),
    "approvals.grants": Rule(_off, "grants need nobody's agreement any more"),
    "approvals.undo_s": Rule(_raised, "a reload can be undone unasked for longer"),
    "approvals.ttl_s": Rule(_raised, "what was asked for can be approved for longer"),
}
# What it means that a list has gained or lost an item; None: nothing by itself.
GAINED: dict[str, str | None] = {
    "webhooks": None,
    "runtimes": None,
    "models": "a model is newly offered",
    "budgets": None,
}
LOST: dict[str, str | None] = {
    "webhooks": _TELLS_LESS,
    "runtimes": None,
    "models": None,
    "budgets": "nothing is limited or counted by this budget any more",
}


def loosenings(before: Config, after: Config, now_s: float) -> list[Loosening]:
    """Everything in which a configuration is looser than the one before, from a Unix time on."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    today = datetime.fromtimestamp(now_s, UTC).date().isoformat()
    return list(_compared("", "", old, new, _Context(today, after.book.is_shared)))


def shown(found: Iterable[Loosening]) -> list[dict[str, Any]]:
    """As JSON, the first `SHOWN_MAX`."""
    return [each._asdict() for each in list(found)[:SHOWN_MAX]]


class _Context(NamedTuple):
    """What a comparison depends on besides the two values: the day in UTC, and whether the book is shared."""

    today: str
    is_shared: bool


def _compared(path: str, pattern: str, before: Any, after: Any, context: _Context) -> Iterator[Loosening]:
    if before == after:
        return
    rule, whole = RULES.get(pattern), WHOLE.get(pattern)
    if whole is not None:
        yield from whole(path, before, after, context)
    elif rule is not None:
        if rule.is_looser(before, after):
            yield Loosening(path, before, after, rule.why)
    elif isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            here, kind = (f"{each}.{name}".removeprefix(".") for each in (path, pattern))
            yield from _compared(here, kind, before.get(name), after.get(name), context)
    elif (items := _items(before, after)) is not None:
        yield from _compared_items(path, pattern, *items, context)
    else:
        yield Loosening(path, before, after, ALWAYS)


def _compared_items(
    path: str, pattern: str, before: dict[str, Any], after: dict[str, Any], context: _Context
) -> Iterator[Loosening]:
    for name in sorted({*before, *after}):
        here = f"{path}.{name}"
        if name in before and name in after:
            yield from _compared(here, f"{pattern}.*", before[name], after[name], context)
            continue
        why = (GAINED if name in after else LOST).get(pattern, ALWAYS)
        if why is not None:
            yield Loosening(here, _brief(before.get(name)), _brief(after.get(name)), why)


def _items(before: Any, after: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both lists by the ids of their items; None where they are not two lists of items with ids."""
    found = []
    for value in (before, after):
        if not isinstance(value, list) or not all(isinstance(item, dict) and "id" in item for item in value):
            return None
        found.append({item["id"]: item for item in value})
    return found[0], found[1]


def _brief(item: Mapping[str, Any] | None) -> Any:
    """What of an item that came or went is worth showing: not its whole, which may be long."""
    named = ("resource", "limit", "window", "mode", "price", "endpoints", "url", "kind", "objective", "threshold_ms")
    return None if item is None else {name: item[name] for name in named if name in item}


def _budget(path: str, before: Any, after: Any, context: _Context) -> Iterator[Loosening]:
    return budget_loosenings(path, before, after, is_shared=context.is_shared)


def _price(path: str, before: Any, after: Any, context: _Context) -> Iterator[Loosening]:
    """A model that is cheaper from some day on, today or later, takes less of every budget on its list cost."""
    days = {context.today, *(row["valid_from"] for table in (before, after) if table != "free" for row in table)}
    for day in sorted(day for day in days if day >= context.today):
        old, new = _price_on(before, day), _price_on(after, day)
        if new is not None and (old is None or any(new[name] < old[name] for name in _PRICES)):
            yield Loosening(path, old, new, f"cheaper from {day} on: more fits every budget on its list cost")
            return


def _price_on(table: Any, day: str) -> dict[str, int] | None:
    """The price in force on a day; None where there is none yet, and nothing is served."""
    if table == "free":
        return dict.fromkeys(_PRICES, 0)
    rows = [row for row in table if row["valid_from"] <= day]
    return {name: rows[-1][name] for name in _PRICES} if rows else None


def _slos(path: str, before: Any, after: Any, context: _Context) -> Iterator[Loosening]:
    """Only a frozen target is held to: one that is not may be changed by whoever may reload."""
    now = {slo["id"]: slo for slo in after}
    for slo in (each for each in before if each["frozen"]):
        here, new = f"{path}.{slo['id']}", now.get(slo["id"])
        if new is None:
            yield Loosening(here, _brief(slo), None, "a frozen target is gone")
            continue
        for name in (name for name in slo if name != "owner"):
            rule = _FROZEN.get(name, Rule(_changed, "a frozen target is measured in another way"))
            if slo[name] != new[name] and rule.is_looser(slo[name], new[name]):
                yield Loosening(f"{here}.{name}", slo[name], new[name], rule.why)


_FROZEN = {
    "objective": Rule(_lowered, "a frozen target promises less"),
    "threshold_ms": Rule(lambda before, after: before is None or after is None or after > before, "slower is good now"),
    "frozen": Rule(_off, "the target may be changed by anyone who may reload"),
}

# Values that are compared as a whole.
WHOLE: dict[str, Callable[[str, Any, Any, _Context], Iterator[Loosening]]] = {
    "budgets.*": _budget,
    "models.*.price": _price,
    "slos": _slos,
}
