"""The gateway worker: one process that owns a book and a journal, serves requests, and drains when told to stop."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import structlog

from gateway import assembly
from gateway.adjustments import Adjustments
from gateway.admin import admin_app
from gateway.asgi import BodyBounds, DataPlane
from gateway.calls import Caller
from gateway.composition import Unready, budgets_of, bundle_of, catalogue_of
from gateway.config_file import ConfigError, LoadedConfig, diff, load
from gateway.controls import Controls, ensure_admin
from gateway.forward import Forwarder
from gateway.governance import Governance, system_now_us
from gateway.home import Home, run_name
from gateway.keys import KeysError, KeyStore
from gateway.live import Live
from gateway.protocol import HeadBounds
from gateway.pseudonyms import Pseudonyms
from gateway.public import public_app
from gateway.reconciliation import Reconciliation, Result, sample
from gateway.server import Server, bind, server
from gateway.sweep import sweep_forever
from ledger.client import LedgerUnavailable, QueryFailed, running
from ledger.lease_keeper import LeaseKeeper
from ledger.shared_store import ServerClock
from observability import names
from observability.metrics import Metrics
from observability.tracing import Tracing
from policy.decider import load_engine
from policy.port import BundleError
from runtime.client import RuntimeClient

log = structlog.get_logger("gateway")
US = 1_000_000
LEDGER_PERIOD_S = 5.0
KEYS_PERIOD_S = 0.5
# Read once at start; a reload names those of them that changed instead of pretending.
FIXED = (
    *("listen", "limits", "book.url", "book.replicas", "book.timeout_ms"),
    *("ledger", "telemetry", "webhooks", "policy.cache_max"),
)


class Worker:
    """Everything one gateway process is made of; build it on the event loop that runs it."""

    def __init__(
        self,
        home: Home,
        loaded: LoadedConfig,
        sim_urls: Mapping[str, str],
        environ: Mapping[str, str] = os.environ,
        replica: str = assembly.REPLICA,
    ) -> None:
        telemetry = loaded.config.telemetry
        self.home = home
        self.loaded = loaded
        self.sim_urls = sim_urls
        self.environ = environ
        self.replica = replica
        self.run_name = run_name(replica)
        self.pseudonyms = Pseudonyms(home.secret("pseudonym"))
        self.keys = KeyStore(home.keys)
        self.live = Live(loaded.config.limits.in_flight_max)
        self.metrics = Metrics()
        self.tracing = Tracing(telemetry.trace_sample, telemetry.otlp_endpoint, console=telemetry.console)
        self.clients: dict[str, RuntimeClient] = {}
        self.ledger_lag = (0, 0)
        self.reloading = asyncio.Lock()
        self.retiring: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain: requests in flight end and settle."""
        listen = self.loaded.config.listen
        sockets = [bind(listen.host, listen.port), bind(listen.admin_host, listen.admin_port)]
        config = self.loaded.config
        link = await assembly.link_of(config, self.environ)
        now_us = system_now_us if link is None else link.clock.now_us
        opened = assembly.open_book(self.home, config, self.pseudonyms, now_us, self.replica)
        try:
            self.clients = await assembly.open_clients(self.loaded, self.sim_urls, self.environ, {})
            of = assembly.governance_of(opened, self.home, self.loaded, self.clients, self.metrics)
            if link is not None:
                self._share(of, assembly.keeper_of(opened, config, link), link.clock)
            self._label(of)
            controls = Controls(of.book, of.journal, self.keys, of.now_us, lambda: self._label(of))
            ensure_admin(self.home, self.keys, controls)
            controls.record("config_applied", "start", str(self.loaded.path), digest=self.loaded.digest)
            log.info("started", ownerless_holds=opened.ownerless, policy=of.decider.revision)
            await self._serve(of, controls, sockets)
        finally:
            await self._close(opened)

    async def _serve(self, of: Governance, controls: Controls, sockets: list[Any]) -> None:
        servers = self._servers(of, controls)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, servers)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self.reload(of, controls, "SIGHUP")))
        self.metrics.watch(names.IN_FLIGHT, lambda: len(self.live.calls))
        self.metrics.watch(names.LEDGER_LAG_ROWS, lambda: self.ledger_lag[0])
        self.metrics.watch(names.LEDGER_LAG_SECONDS, lambda: self.ledger_lag[1])
        background = [
            asyncio.create_task(work)
            for work in (sweep_forever(of, self.live), of.webhooks.run(), self._follow_ledger(), self._follow_keys(of))
        ]
        if of.keeper is not None:
            keeping = asyncio.create_task(of.keeper.run())
            keeping.add_done_callback(lambda task: self._end_without(task, servers))
            background.append(keeping)
        serving = [
            asyncio.create_task(each.serve(sockets=[bound])) for each, bound in zip(servers, sockets, strict=True)
        ]
        while not all(each.started for each in servers):  # noqa: ASYNC110 uvicorn tells by a flag
            await asyncio.sleep(0.01)
        (host, port), (admin_host, admin_port) = (bound.getsockname()[:2] for bound in sockets)
        where = {"host": host, "port": port, "admin_host": admin_host, "admin_port": admin_port}
        self.home.write_run(self.run_name, {**where, "config": str(self.loaded.path.resolve())})
        try:
            await asyncio.gather(*serving)
        finally:
            self.home.remove_run(self.run_name)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await of.webhooks.close()
            if of.keeper is not None:
                await of.keeper.close()

    def _share(self, of: Governance, keeper: LeaseKeeper, clock: ServerClock) -> None:
        """Let the worker hold from the leases of a shared book, and charge windows by its clock."""
        keeper.on_crossings = of.announce_crossings
        keeper.on_away = _say_away
        keeper.on_failing = _say_failing
        of.keeper, of.now_us = keeper, clock.now_us
        self.metrics.watch(names.BOOK_AWAY, lambda: int(of.book.is_away))
        self.metrics.watch(names.BOOK_EXCHANGES, lambda: keeper.stats.exchanges)
        self.metrics.watch(names.BOOK_FETCHES, lambda: keeper.stats.fetches)
        self.metrics.watch(names.BOOK_WAITING, lambda: keeper.leases.waiting)

    def _servers(self, of: Governance, controls: Controls) -> list[Server]:
        limits = self.loaded.config.limits
        bounds = HeadBounds(
            limits.header_bytes_max,
            limits.headers_max,
            limits.url_bytes_max,
            limits.header_timeout_s,
            limits.connections_max,
        )
        caller = Caller(
            of,
            Forwarder(self.home.secret("cache_salt")),
            limits.sse_event_bytes_max,
            limits.response_bytes_max,
        )
        data_plane = DataPlane(
            of,
            self.keys,
            self.live,
            caller,
            self.tracing,
            self.pseudonyms,
            BodyBounds(limits.body_bytes_max, limits.body_timeout_s),
            public_app(of, self.keys, self.live, self.pseudonyms, lambda: running(self.home.path)),
        )
        adjusting = Adjustments(of.book, of.journal, of.record_usage, controls, of.announce_crossings)
        ledger = partial(running, self.home.path)
        comparing = Reconciliation(of.book, of.journal, of.now_us, controls, adjusting, ledger, of.webhooks.publish)
        self.metrics.watch_drift(lambda: comparing.drift)

        def reconcile(actor: str, mend: bool, rebase: bool) -> Awaitable[Result]:
            specs = {name: client.spec for name, client in of.catalogue.runtimes.items()}
            return comparing.run(specs, sample, actor, mend=mend, rebase=rebase)

        admin = admin_app(of, self.keys, controls, lambda actor: self.reload(of, controls, actor), reconcile)
        timeouts = {"idle_timeout_s": limits.idle_timeout_s, "drain_timeout_s": limits.drain_timeout_s}
        return [server(data_plane, bounds, **timeouts), server(admin, bounds, **timeouts)]

    def _end_without(self, keeping: asyncio.Task[None], servers: list[Server]) -> None:
        """Stop where the link to the shared book broke by a fault of ours: what it would grant cannot be trusted."""
        if not keeping.cancelled() and keeping.exception() is not None:
            log.error("the link to the shared book broke", exc_info=keeping.exception())
            self._drain(servers)

    def _drain(self, servers: list[Server]) -> None:
        """Take nothing new, let what is in flight end, and interrupt what takes longer than the drain may."""
        self.live.is_draining = True
        for each in servers:
            each.should_exit = True
        drain_s = self.loaded.config.limits.drain_timeout_s
        asyncio.get_running_loop().call_later(drain_s, self.live.stop_all)
        log.info("draining", in_flight=len(self.live.calls))

    async def reload(self, of: Governance, controls: Controls, actor: str) -> dict[str, Any]:
        """Apply the configuration file and the policy bundle again, whole or not at all; one reload at a time."""
        async with self.reloading:
            return await self._reload(of, controls, actor)

    async def _reload(self, of: Governance, controls: Controls, actor: str) -> dict[str, Any]:
        try:
            # Both can take seconds, in which the requests in flight go on.
            loaded = await asyncio.to_thread(load, self.loaded.path, self.environ)
            engine = await asyncio.to_thread(load_engine, bundle_of(loaded))
            clients = await assembly.open_clients(loaded, self.sim_urls, self.environ, self.clients)
            catalogue = catalogue_of(loaded, clients)
            await asyncio.to_thread(self.keys.reload)
        except (ConfigError, BundleError, Unready, KeysError) as error:
            log.error("reload refused", reason=str(error))
            return {"applied": False, "problems": str(error).splitlines()}
        changes = diff(self.loaded.config, loaded.config)
        old_clients, old_revision = self.clients, of.decider.revision
        of.catalogue, self.clients, self.loaded = catalogue, clients, loaded
        of.book.configure(budgets_of(loaded.config, self.pseudonyms), of.now_us() // US)
        of.hold_ttl_s = loaded.config.book.hold_ttl_s
        if engine.revision != old_revision:
            of.decider.swap(engine)
            controls.record("policy_loaded", actor, engine.revision, digest=engine.revision, detail=old_revision)
        self._label(of)
        controls.record("config_applied", actor, str(loaded.path), digest=loaded.digest, detail=changes)
        self._retire([client for name, client in old_clients.items() if clients.get(name) is not client])
        fixed = [change for change in changes if change.startswith(FIXED)]
        log.info("reloaded", changes=changes, needs_restart=fixed)
        return {
            "applied": True,
            "digest": loaded.digest,
            "changes": changes,
            "needs_restart": fixed,
            "policy_revision": engine.revision,
        }

    def _label(self, of: Governance) -> None:
        """Let the metrics show the names that are configured now."""
        left_out = self.metrics.allow(
            models=of.catalogue.offers,
            teams={key.principal.team for key in self.keys.list()},
            runtimes=of.catalogue.runtimes,
            budgets=of.book.budgets,
        )
        if left_out:
            log.warning("metrics count these as other", names=left_out[:20], count=len(left_out))

    async def _follow_keys(self, of: Governance) -> None:
        """Take what another gateway of this home, or a command, did to the keys: it reaches only one of them."""
        said = ""
        while True:
            await asyncio.sleep(KEYS_PERIOD_S)
            try:
                if await asyncio.to_thread(self.keys.reload):
                    self._label(of)
                said = ""
            except (KeysError, OSError) as error:
                if str(error) != said:
                    log.error("the keys known before stay in force", reason=str(error))
                said = str(error)

    async def _follow_ledger(self) -> None:
        """Ask the ledger process now and then how far it is behind; without one the last answer stands."""
        while True:
            await asyncio.sleep(LEDGER_PERIOD_S)
            self.ledger_lag = await asyncio.to_thread(_lag, self.home, self.ledger_lag)

    def _retire(self, clients: list[RuntimeClient]) -> None:
        """Close clients that are no longer configured, once what they still serve has ended."""
        for client in clients:
            task = asyncio.create_task(_close_when_idle(client))
            self.retiring.add(task)
            task.add_done_callback(self.retiring.discard)

    async def _close(self, opened: assembly.Opened) -> None:
        for client in self.clients.values():
            await client.close()
        for task in list(self.retiring):
            task.cancel()
        self.tracing.close()
        opened.journal.close()
        log.info("stopped", open_holds=len(opened.book.holds))


def _say_away(reason: str) -> None:
    if reason:
        log.error("the shared book cannot be asked", reason=reason)
    else:
        log.info("the shared book answers again")


def _say_failing(tag: str, reason: str) -> None:
    log.error("the shared book cannot be asked about one organisation", organisation=tag, reason=reason)


def _lag(home: Home, last: tuple[int, int]) -> tuple[int, int]:
    """How many rows the ledger is behind, and the age of the oldest in whole seconds."""
    client = running(home.path)
    try:
        status = client.status() if client is not None else None
        return last if status is None else (int(status["lag_rows"]), int(status["lag_s"]))
    except (LedgerUnavailable, QueryFailed):
        return last


async def _close_when_idle(client: RuntimeClient) -> None:
    try:
        while client.in_flight:  # noqa: ASYNC110 looked at twice a second, once in a client's life
            await asyncio.sleep(0.5)
    finally:
        await client.close()
