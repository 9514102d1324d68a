"""Planes: the applications of a worker's two listeners, put together from its parts."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI

from gateway.adjustments import Adjustments
from gateway.admin import AdminPlane, admin_app
from gateway.asgi import BodyBounds, DataPlane
from gateway.calls import Caller
from gateway.config_file import LoadedConfig
from gateway.controls import Controls
from gateway.forward import Forwarder
from gateway.governance import Governance
from gateway.headroom import Headrooms, risk_of
from gateway.home import Home
from gateway.kept import fetching, reading
from gateway.keys import KeyStore
from gateway.live import Live
from gateway.pseudonyms import Pseudonyms
from gateway.public import public_app
from gateway.reconciliation import Reconciliation, Result, sample
from gateway.reviews import Asked
from gateway.second_person import SecondPerson
from gateway.verification import Verifier
from gateway.verifying import verifier_of
from ledger.client import LedgerClient, running
from observability.tracing import Tracing
from policy.checks.process import CheckProcesses


@dataclass(frozen=True, slots=True)
class Parts:
    """What the planes are made of; `loaded` is the configuration in force, and `checks` the process of verification."""

    home: Home
    loaded: Callable[[], LoadedConfig]
    of: Governance
    keys: KeyStore
    live: Live
    tracing: Tracing
    pseudonyms: Pseudonyms
    controls: Controls
    second: SecondPerson
    checks: CheckProcesses
    reload: Callable[[Asked], Awaitable[dict[str, Any]]]


def planes(parts: Parts) -> tuple[DataPlane, FastAPI]:
    """The applications of the public and of the admin listener."""
    of, limits = parts.of, parts.loaded().config.limits
    forwarder = Forwarder(parts.home.secret("cache_salt"))
    bounds = limits.sse_event_bytes_max, limits.response_bytes_max
    verifier = verifier_of(
        parts.loaded().config.verify,
        of,
        parts.checks,
        forwarder,
        parts.live,
        parts.second,
        of.noticing,
        event_bytes_max=limits.sse_event_bytes_max,
        response_bytes_max=limits.response_bytes_max,
    )
    find_ledger = partial(running, parts.home.path)
    fetch = fetching(verifier.kept, parts.second.approvals, of.now_us)
    data_plane = DataPlane(
        of,
        parts.keys,
        parts.live,
        Caller(of, forwarder, *bounds, verifier, noticing=of.noticing),
        parts.tracing,
        parts.pseudonyms,
        BodyBounds(limits.body_bytes_max, limits.body_timeout_s),
        public_app(of, parts.keys, parts.live, parts.pseudonyms, find_ledger, fetch),
    )
    return data_plane, admin_app(_admin_plane(parts, verifier, find_ledger))


def _admin_plane(parts: Parts, verifier: Verifier, find_ledger: Callable[[], LedgerClient | None]) -> AdminPlane:
    of, controls, approvals = parts.of, parts.controls, parts.second.approvals
    adjusting = Adjustments(of.book, of.journal, of.record_usage, controls, of.announce_crossings)
    comparing = Reconciliation(of.book, of.journal, of.now_us, controls, adjusting, find_ledger, of.webhooks.publish)
    of.metrics.watch_drift(lambda: comparing.drift)

    def reconcile(actor: str, mend: bool, rebase: bool) -> Awaitable[Result]:
        specs = {name: client.spec for name, client in of.catalogue.runtimes.items()}
        return comparing.run(specs, sample, actor, mend=mend, rebase=rebase)

    headrooms = Headrooms(
        book=of.book,
        now_us=of.now_us,
        look=of.look,
        principals=lambda: (key.principal for key in parts.keys.list() if key.kind == "app"),
        models=lambda: of.catalogue.offers,
        objectives=lambda: [slo.target for slo in parts.loaded().config.slos],
        find_ledger=find_ledger,
        risk_of=lambda scope: risk_of(of.risks.tracker, scope),
    )
    return AdminPlane(
        of,
        parts.keys,
        controls,
        parts.reload,
        reconcile,
        approvals,
        lambda: parts.loaded().config.approvals,
        parts.second.person,
        reading(verifier.kept, of.now_us),
        headrooms.answer,
        of.risks,
    )
