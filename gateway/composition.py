"""Composition: from a configuration to the parts that serve it."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from secrets import token_bytes

from tokenizers import Tokenizer

from gateway.affinity import Affinity
from gateway.bounds import Measure, count_bytes
from gateway.catalogue import Catalogue, Offer
from gateway.config import Budget as BudgetConfig
from gateway.config import Config, Model, Runtime
from gateway.config_file import LoadedConfig
from gateway.prompt_blocks import PromptBlocks
from gateway.pseudonyms import Pseudonyms
from ledger.budgets import DIMENSIONS, EVERY, Budget
from ledger.windows import parse_window
from runtime.client import RuntimeClient
from runtime.port import RuntimeSpec
from runtime.routing.least_load import LeastLoad
from runtime.routing.port import RoutingPolicy
from runtime.routing.prefix_affinity import PrefixAffinity
from runtime.routing.round_robin import RoundRobin

# In a checkout the bundle lies beside the packages; an installed distribution carries it inside `policy`.
_PACKAGES = Path(__file__).resolve().parent.parent
SHIPPED_BUNDLE = _PACKAGES / "rego" if (_PACKAGES / "rego").is_dir() else _PACKAGES / "policy" / "bundle"

_ROUTING: Mapping[str, Callable[[], RoutingPolicy]] = {
    "least_load": LeastLoad,
    "round_robin": RoundRobin,
    "prefix_affinity": PrefixAffinity,
}


class Unready(RuntimeError):
    """Something that the configuration names is not there; the message says what to do."""


def budgets_of(config: Config, pseudonyms: Pseudonyms) -> list[Budget]:
    """The budgets of the book; a user named in a scope is known to it by pseudonym only."""
    return [_budget(budget, pseudonyms) for budget in config.budgets]


def specs_of(loaded: LoadedConfig, sim_urls: Mapping[str, str], environ: Mapping[str, str]) -> list[RuntimeSpec]:
    """What the runtime clients are made of; `sim_urls` says where the embedded runtimes listen, by runtime id.

    Raises Unready when an embedded runtime or a secret is missing.
    """
    return [_spec(runtime, loaded, sim_urls, environ) for runtime in loaded.config.runtimes]


def catalogue_of(loaded: LoadedConfig, clients: Mapping[str, RuntimeClient]) -> Catalogue:
    """The offers of a configuration over open runtime clients."""
    env = loaded.config.env
    offers = {model.id: _offer(model, loaded, clients) for model in loaded.config.models}
    return Catalogue(offers, dict(clients), env.name, env.freeze)


def bundle_of(loaded: LoadedConfig) -> Path:
    """The folder of the policy bundle: the configured one, or the one shipped with Bursar; Unready where OPA has it."""
    policy = loaded.config.policy
    if policy.is_remote:
        raise Unready(f"policy.url is {policy.url}: name a bundle's folder with --bundle")
    folder = policy.folder
    return loaded.path.parent / folder if folder else SHIPPED_BUNDLE


def _budget(budget: BudgetConfig, pseudonyms: Pseudonyms) -> Budget:
    scope = budget.scope.model_dump(exclude_none=True)
    if scope.get("user") not in (None, EVERY):
        scope["user"] = pseudonyms.of(scope["user"])
    warn_ratio, critical_ratio = budget.thresholds
    return Budget(
        id=budget.id,
        owner=budget.owner,
        scope=tuple((dimension, scope[dimension]) for dimension in DIMENSIONS if dimension in scope),
        resource=budget.resource,
        limit=budget.limit,
        window=parse_window(budget.window),
        mode=budget.mode,
        warn_ratio=warn_ratio,
        critical_ratio=critical_ratio,
        on_unavailable=budget.on_unavailable,
    )


def _spec(
    runtime: Runtime, loaded: LoadedConfig, sim_urls: Mapping[str, str], environ: Mapping[str, str]
) -> RuntimeSpec:
    url = runtime.url
    if runtime.is_sim:
        if runtime.id not in sim_urls:
            raise Unready(f"runtime {runtime.id} is embedded (sim://): start it with `bursar up`, not `bursar serve`")
        url = sim_urls[runtime.id]
    key = _key(runtime, loaded.path.parent, environ)
    return RuntimeSpec(
        id=runtime.id,
        base_url=url.rstrip("/").removesuffix("/v1"),
        rate=loaded.config.gpu_rate(runtime.id),
        speaks_vllm=runtime.vllm,
        authorization=f"Bearer {key}" if key else None,
        connections_max=runtime.connections_max,
        connect_timeout_s=runtime.connect_timeout_s,
        first_byte_timeout_s=runtime.first_byte_timeout_s,
        idle_timeout_s=runtime.idle_timeout_s,
        retries_max=runtime.retries_max,
        breaker_failures=runtime.breaker_failures,
        breaker_reset_s=runtime.breaker_reset_s,
        hold_rate=runtime.hold_rate,
    )


def _key(runtime: Runtime, base: Path, environ: Mapping[str, str]) -> str | None:
    """The secret that Bursar itself calls a runtime with."""
    if runtime.api_key_env is not None:
        key = environ.get(runtime.api_key_env, "")
        if not key:
            raise Unready(f"runtime {runtime.id} takes its key from {runtime.api_key_env}, which is not set")
        return key
    if runtime.api_key_file is None:
        return None
    path = base / runtime.api_key_file
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unready(f"runtime {runtime.id} takes its key from {path}: {error.strerror}") from error


def _offer(model: Model, loaded: LoadedConfig, clients: Mapping[str, RuntimeClient]) -> Offer:
    measure = Measure(
        _counter(model, loaded),
        model.context_tokens,
        model.template_tokens_per_message,
        model.template_tokens_fixed,
    )
    return Offer(
        model=model.id,
        upstream_model=model.upstream_model,
        endpoints=frozenset(model.endpoints),
        runtimes=tuple(clients[runtime] for runtime in model.runtimes),
        measure=measure,
        max_output_tokens=model.max_output_tokens,
        prices_at=partial(loaded.config.prices_at, model.id),
        routing=_ROUTING[model.routing]() if len(model.runtimes) > 1 else None,
        affinity=_affinity(model) if len(model.runtimes) > 1 else None,
    )


def _affinity(model: Model) -> Affinity | None:
    # What is learned is kept nowhere, so a key of this process's own does.
    return Affinity(PromptBlocks(token_bytes(32)), model.id) if model.routing == "prefix_affinity" else None


def _counter(model: Model, loaded: LoadedConfig) -> Callable[[str], int]:
    if model.tokenizer is None:
        return count_bytes
    path = loaded.path.parent / model.tokenizer
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:
        raise Unready(f"model {model.id}: the tokenizer {path} cannot be read: {error}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
