"""The configuration and the policy of a deployment in front of two vLLM servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from domain.prices import Prices
from tests.e2e.vllm_environment import MODEL as MODEL_FOLDER
from tests.gateway.gateway_process import write_bundle

CHAT_MODEL = "qwen"
EMBED_MODEL = "qwen-embed"
CONTEXT_TOKENS = 4096
# Enough for one whole answer of the test of shrinking and a part of a second one.
SMALL_BUDGET_TOKENS = 400
MIN_OUTPUT_TOKENS = 16
FIRST_PRIORITY, USUAL_PRIORITY, LAST_PRIORITY = 0, 10, 20
PRICES = Prices("2025-01-01", 1_000_000_000, 100_000_000, 4_000_000_000)


def write_configuration(folder: Path, upstream_model: str, generate_url: str, embed_url: str) -> Path:
    """Write `bursar.yaml` and its policy bundle for two vLLM servers, and return the former's path."""
    _write_bundle(folder / "rego")
    path = folder / "bursar.yaml"
    path.write_text(yaml.safe_dump(_configuration(upstream_model, generate_url, embed_url)), encoding="utf-8")
    return path


def _configuration(upstream_model: str, generate_url: str, embed_url: str) -> dict[str, Any]:
    return {
        "version": 1,
        "env": {"name": "e2e"},
        "policy": {"url": "embedded:rego"},
        "runtimes": [_runtime("vllm", generate_url), _runtime("vllm-embed", embed_url)],
        "models": [
            _model(CHAT_MODEL, "vllm", upstream_model, ["chat", "completions"]),
            _model(EMBED_MODEL, "vllm-embed", upstream_model, ["embeddings"]),
        ],
        "budgets": [
            _budget("org-day-cost", {"org": "acme"}, "list_cost_nusd", 1_000_000_000_000, "day"),
            _budget("team-month-tokens", {"org": "acme", "team": "*"}, "tokens", 10_000_000, "month"),
            _budget("team-slots", {"org": "acme", "team": "*"}, "concurrency", 64, "total"),
            _budget("key-hour-gpu", {"key": "*"}, "gpu_us", 3_600_000_000, "hour"),
            _budget("small-total-tokens", {"org": "acme", "team": "small"}, "tokens", SMALL_BUDGET_TOKENS, "total"),
        ],
    }


def _runtime(name: str, url: str) -> dict[str, Any]:
    return {
        "id": name,
        "owner": "platform",
        "url": url,
        "gpu_nusd_per_hour": 2_500_000_000,
        "gpu_us_per_input_mtok": 25_000_000,
        "gpu_us_per_output_mtok": 500_000_000,
    }


def _model(name: str, runtime: str, upstream_model: str, endpoints: list[str]) -> dict[str, Any]:
    # What `tiny_model.CHAT_TEMPLATE` puts around each message: two markers and two line ends; and after the last one:
    # a marker, the name of a role and a line end.
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    role_tokens = len(tokenizer.encode("assistant", add_special_tokens=False).ids)
    price = {
        "valid_from": PRICES.version,
        "input_nusd_per_mtok": PRICES.input_nusd_per_mtok,
        "cached_input_nusd_per_mtok": PRICES.cached_input_nusd_per_mtok,
        "output_nusd_per_mtok": PRICES.output_nusd_per_mtok,
    }
    return {
        "id": name,
        "owner": "platform",
        "runtimes": [runtime],
        "upstream_model": upstream_model,
        "endpoints": endpoints,
        "context_tokens": CONTEXT_TOKENS,
        "max_output_tokens": 256,
        "template_tokens_per_message": 4,
        "template_tokens_fixed": role_tokens + 2,
        "tokenizer": str(MODEL_FOLDER / "tokenizer.json"),
        "price": [price],
    }


def _budget(name: str, scope: dict[str, str], resource: str, limit: int, window: str) -> dict[str, Any]:
    return {"id": name, "owner": "finance", "scope": scope, "resource": resource, "limit": limit, "window": window}


def _write_bundle(folder: Path) -> None:
    """The shipped policies over tables that offer the tiny model to acme's teams."""
    offers = {
        "usual": _offer({"chat": True, "completions": True}, USUAL_PRIORITY),
        "first": _offer({"chat": True, "completions": True}, FIRST_PRIORITY),
        "last": _offer({"chat": True, "completions": True}, LAST_PRIORITY),
        "embed": _offer({"embeddings": True}, USUAL_PRIORITY),
    }
    rows = {
        "acme": {
            "*": _row({CHAT_MODEL: "usual", EMBED_MODEL: "embed"}),
            "urgent": _row({CHAT_MODEL: "first"}),
            "bulk": _row({CHAT_MODEL: "last"}),
        },
        "*": {"*": _row({})},
    }
    write_bundle(folder, {"rows": rows, "offers": offers})


def _row(offers: dict[str, str]) -> dict[str, Any]:
    return {"*": {"offers": offers, "run_depth_max": 4, "blocked_tools": {}}}


def _offer(endpoints: dict[str, bool], priority: int) -> dict[str, Any]:
    """An offer whose output shrinks to what the budget has left once the budget runs low."""
    terms = {
        "min_output_tokens": MIN_OUTPUT_TOKENS,
        "fallback_models": [],
        "cache_domain": "team",
        "priority": priority,
        "queue_ms_max": 1000,
    }
    low = {**terms, "shrink_to_fit": True}
    clearances = {"internal": True}
    bands = {"ok": terms, "warn": low, "critical": low, "exhausted": low}
    return {"endpoints": endpoints, "clearances": clearances, "terms": bands}
