"""Corrections: what the adjustments of one request come to, as its caller is shown them beside its settlement."""

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.rows import ABSENT

# What is corrected by what the engine told, and of it what no settlement knows.
_AMOUNTS = ("gpu_us", "gpu_cost_nusd", "queue_us", "kv_block_us", "energy_uj")
_UNKNOWN = ("queue_us", "kv_block_us", "energy_uj")

Sum = dict[str, Any]


def added(before: Sum | None, row: Mapping[str, Any]) -> Sum:
    """The sum of a request's corrections with one more `usage` row of status `adjusted`."""
    known = before or {}
    found: Sum = {name: known.get(name, 0) + int(row.get(name, 0)) for name in _AMOUNTS}
    found["energy_source"] = row.get("energy_source") or known.get("energy_source", "")
    found["certainty"] = "at_least" if known.get("certainty") == "at_least" else row["certainty"]
    return found


def summed(rows: Iterable[Mapping[str, Any]]) -> Sum | None:
    """The sum of all corrections of a request; None where it has none."""
    found = None
    for row in rows:
        found = added(found, row)
    return found


def usage_view(row: Mapping[str, Any], corrections: Sum | None) -> dict[str, Any]:
    """The settlement of a request as its caller is shown it, and in `adjusted` what has to be added to it since.

    `adjusted` is None until something is known. What a settlement of used tokens cannot know, and an energy without a
    source, are None instead of zero.
    """
    view = {"object": "usage", **ABSENT, **row}
    view.pop("prompt_blocks", None)  # digests for the deployment's own trace, which tell a caller nothing
    has_used = bool(view["input_tokens"] or view["output_tokens"])
    if has_used:
        view |= dict.fromkeys(_UNKNOWN)
    adjusted = dict(corrections) if corrections else None
    if adjusted and not adjusted["energy_source"]:
        adjusted |= {"energy_uj": None, "energy_source": None}
    return {**view, "gpu_us_is_estimate": has_used, "adjusted": adjusted}
