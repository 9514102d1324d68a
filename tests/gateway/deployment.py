"""The deployment that HTTP tests run against: runtimes on one fake server, and a team for each way to be refused."""

import socket
from pathlib import Path
from typing import Any

from tests.gateway.gateway_process import write_bundle, write_config

KEY_ENV = "BURSAR_TEST_RUNTIME_KEY"
KIB = 1024
MIB = 1024 * KIB
BODY_BYTES_MAX = MIB
EVENT_BYTES_MAX = 64 * KIB
RESPONSE_BYTES_MAX = MIB
CONTEXT_TOKENS = 8192
# What the gateway bounds `hello` by: its bytes, those of its role, and the template's allowance.
HELLO_BOUND = len("hello") + len("user") + 8 + 16
PRICE = {"valid_from": "2025-01-01", "input_nusd_per_mtok": 3_000_000_000, "output_nusd_per_mtok": 15_000_000_000}
_BANDS = ("ok", "warn", "critical", "exhausted")
_GENERATES = {"chat": True, "completions": True}


def closed_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def document(fake_url: str) -> dict[str, Any]:
    """The configuration, whose bundle lies in `rego` beside it."""
    return {
        "version": 1,
        "env": {"name": "test"},
        "policy": {"url": "embedded:rego/"},
        "limits": {
            "body_bytes_max": BODY_BYTES_MAX,
            "header_timeout_s": 1,
            "body_timeout_s": 1,
            "drain_timeout_s": 5,
            "sse_event_bytes_max": EVENT_BYTES_MAX,
            "response_bytes_max": RESPONSE_BYTES_MAX,
        },
        "runtimes": [
            _runtime("fake", fake_url, breaker_failures=10_000),
            _runtime("brief", fake_url, breaker_failures=10_000, first_byte_timeout_s=0.6, idle_timeout_s=0.6),
            _runtime("fragile", fake_url, breaker_failures=2, breaker_reset_s=1, retries_max=0),
            _runtime("foreign", fake_url, vllm=False, api_key_env=KEY_ENV),
            _runtime("dead", f"http://127.0.0.1:{closed_port()}", breaker_failures=10_000),
        ],
        "models": [
            _model("plain", "fake"),
            _model("hidden", "fake"),
            _model("shrinking", "fake"),
            _model("patient", "fake"),
            _model("capped", "fake"),
            _model("renamed", "fake", upstream_model="org/its-own-name"),
            _model("embed", "fake", endpoints=["embeddings"]),
            _model("brief", "brief"),
            _model("fragile", "fragile"),
            _model("foreign", "foreign"),
            _model("absent", "dead"),
            _model("backed", "dead"),
        ],
        "budgets": [
            _budget("org-day", 10**15, "day", org="acme"),
            _budget("quota-day", 100, "day", team="quota"),
            _budget("spent-total", 50, "total", team="spent"),
            _budget("granted-day", 100, "day", team="granted"),
            _budget("ending-total", 50, "total", team="ending"),
            _budget("hour-requests", 2, "rolling:1h", "requests", team="hour"),
            _budget("minute-tokens", 60, "minute", team="small-minute"),
            _budget("one-at-a-time", 1, "total", "concurrency", team="narrow"),
            _budget("one-queued", 1, "total", "concurrency", team="patient"),
            _budget("shrink-day", 200, "day", team="shrink"),
            _budget("roomy-day", 10_000, "day", team="roomy"),
            _budget("overspent-day", 10**9, "day", team="overspent"),
        ],
    }


def tables() -> dict[str, Any]:
    """The tables of the admission bundle: what each model is offered on, and to whom."""
    offers = {
        "plain": _offer(),
        "embed": {**_offer(), "endpoints": {"embeddings": True}},
        "shrinking": _offer(shrink_to_fit=True, min_output_tokens=5),
        "patient": _offer(queue_ms_max=3000),
        "capped": _offer(max_output_tokens=2, max_input_tokens=2000),
        "backed": _offer(fallback_models=["absent", "plain"]),
    }
    named = (
        "plain",
        "renamed",
        "embed",
        "shrinking",
        "patient",
        "capped",
        "brief",
        "fragile",
        "foreign",
        "absent",
        "backed",
    )
    row = {
        "offers": {model: model if model in offers else "plain" for model in named},
        "run_depth_max": 4,
        "blocked_tools": {"shell": True},
    }
    nothing = {"offers": {}, "run_depth_max": 0, "blocked_tools": {}}
    return {
        "rows": {"acme": {"*": {"*": row}, "barred": {"*": nothing}}, "*": {"*": {"*": nothing}}},
        "offers": offers,
    }


def deploy(folder: Path, fake_url: str, **sections: Any) -> Path:
    """Write bundle and configuration; a section given replaces the usual one, a mapping within it is merged."""
    write_bundle(folder / "rego", tables())
    whole = document(fake_url)
    for name, section in sections.items():
        whole[name] = {**whole.get(name, {}), **section} if isinstance(section, dict) else section
    return write_config(folder / "bursar.yaml", whole)


def _runtime(name: str, url: str, **more: Any) -> dict[str, Any]:
    rates = {
        "gpu_nusd_per_hour": 2_500_000_000,
        "gpu_us_per_input_mtok": 25_000_000,
        "gpu_us_per_output_mtok": 500_000_000,
    }
    return {"id": name, "owner": "platform", "url": url, **rates, **more}


def _model(name: str, runtime: str, **more: Any) -> dict[str, Any]:
    sizes = {"context_tokens": CONTEXT_TOKENS, "max_output_tokens": 64}
    offered = {"id": name, "owner": "platform", "runtimes": [runtime], "endpoints": ["chat", "completions"]}
    return {**offered, **sizes, "price": [PRICE], **more}


def _budget(name: str, limit: int, window: str, resource: str = "tokens", **scope: str) -> dict[str, Any]:
    return {"id": name, "owner": "finance", "scope": scope, "resource": resource, "limit": limit, "window": window}


def _offer(**terms: Any) -> dict[str, Any]:
    usual = {"min_output_tokens": 1, "fallback_models": [], "cache_domain": "team", "priority": 10, "queue_ms_max": 0}
    return {
        "endpoints": _GENERATES,
        "clearances": {"internal": True},
        "terms": {band: {**usual, **terms} for band in _BANDS},
    }
