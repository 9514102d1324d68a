"""The gateway worker: one process that owns a book and a journal, serves requests, and drains when told to stop."""

import asyncio
import os
import signal
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from domain.tasks import end
from gateway import assembly
from gateway.approvals import ApprovalError
from gateway.attributing import Attributing
from gateway.composition import Unready, budgets_of, catalogue_of
from gateway.config_file import ConfigError, LoadedConfig, diff, load
from gateway.controls import Controls, ensure_admin
from gateway.engines import Deciding, Engines
from gateway.governance import Governance, system_now_us
from gateway.home import Home, run_name
from gateway.keys import KeysError, KeyStore
from gateway.ledger_lag import LedgerLag
from gateway.live import Live
from gateway.loadings import Loadings
from gateway.planes import Parts, planes
from gateway.probing import probe, questions
from gateway.protocol import HeadBounds
from gateway.pseudonyms import Pseudonyms
from gateway.reviews import Asked
from gateway.second_person import SecondPerson
from gateway.server import Server, bind, server
from gateway.sweep import sweep_forever
from gateway.verifying import check_processes_of
from ledger.client import running
from ledger.journal import JournalError, JournalFull
from ledger.lease_keeper import LeaseKeeper
from observability import names
from observability.metrics import Metrics
from observability.tracing import Tracing
from policy.checks.process import CheckProcess
from policy.port import BundleError, Engine, EvaluationError
from policy.scoring import scoring_of
from runtime.client import RuntimeClient

log = structlog.get_logger("gateway")
US = 1_000_000
KEYS_PERIOD_S = 0.5
BUNDLE_PERIOD_S = 1.0
SCHEMA_CHECK_S = 2.0
# Read once at start; a reload names those of them that changed instead of pretending.
FIXED = (
    *("listen", "limits", "book.url", "book.replicas", "book.timeout_ms"),
    *("ledger", "telemetry", "webhooks", "policy.cache_max", "verify"),
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
        self.find_ledger = partial(running, home.path)
        self.pseudonyms = Pseudonyms(home.secret("pseudonym"))
        self.keys = KeyStore(home.keys)
        self.live = Live(loaded.config.limits.in_flight_max)
        self.metrics = Metrics()
        self.tracing = Tracing(telemetry.trace_sample, telemetry.otlp_endpoint, console=telemetry.console)
        self.clients: dict[str, RuntimeClient] = {}
        self.ledger_lag = LedgerLag(self.find_ledger)
        self.reloading = asyncio.Lock()
        # The bundle revision whose scoring risk goes by, and why that of the newest is not to be had.
        self.weighed, self.unweighed = "", ""
        self.engines = Engines(environ)
        self.checks = check_processes_of(loaded.config.verify)
        # Of their own, so that a client's schema that takes for ever delays no verification.
        self.schema_checks = CheckProcess(SCHEMA_CHECK_S, ())
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
            deciding = await self.engines.open(self.loaded)
            of = assembly.governance_of(
                opened, self.loaded, self.clients, self.metrics, deciding.engine, self.schema_checks
            )
            self.engines.serve(of.decider, deciding)
            if link is not None:
                self._share(of, assembly.keeper_of(opened, config, link), link)
            await self._weigh(of, deciding.engine)
            self._label(of)
            controls = Controls(of.book, of.journal, self.keys, of.now_us, lambda: self._label(of))
            self.loadings = Loadings(of, controls)
            ensure_admin(self.home, self.keys, controls)
            controls.record("config_applied", "start", str(self.loaded.path), digest=self.loaded.digest)
            second = SecondPerson(self.home, self.replica, self.keys, controls, self.pseudonyms, of.now_us)
            await second.started(self.loaded, of.decider.revision)
            log.info("started", ownerless_holds=opened.ownerless, policy=of.decider.revision)
            try:
                await self._serve(of, controls, second, sockets)
            finally:
                await self.engines.close(of.decider)
        finally:
            await self._close(opened)

    async def _serve(self, of: Governance, controls: Controls, second: SecondPerson, sockets: list[Any]) -> None:
        servers = self._servers(of, controls, second)
        attributing = Attributing(self.home, self.replica, of, controls, lambda: self.loaded, self.find_ledger)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, servers)
        reload = partial(self.reload, of, controls, second)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(reload(second.signalled())))
        self.engines.watch(self.metrics)
        self.metrics.watch(names.CHECK_PROCESSES_ENDED, lambda: self.checks.ended + self.schema_checks.ended)
        self.metrics.watch(names.IN_FLIGHT, lambda: len(self.live.calls))
        self.metrics.watch(names.LEDGER_LAG_ROWS, lambda: self.ledger_lag.rows)
        self.metrics.watch(names.LEDGER_LAG_SECONDS, lambda: self.ledger_lag.age_s)
        background = [
            asyncio.create_task(work)
            for work in (
                sweep_forever(of, self.live),
                of.webhooks.run(),
                of.noticing.signals.run(),
                of.risks.run(),
                second.approvals.run(),
                self.ledger_lag.follow(),
                attributing.run(),
                self._follow_keys(of),
                self._follow_bundle(of),
            )
        ]
        for task in background:
            task.add_done_callback(_say_ended)
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
            await end(background)
            closing = asyncio.create_task(attributing.close())
            closing.add_done_callback(_say_ended)
            await asyncio.wait([closing])
            await of.noticing.close()
            await self.checks.close()
            await self.schema_checks.close()
            await of.webhooks.close()
            if of.keeper is not None:
                await of.keeper.close()

    async def _weigh(self, of: Governance, engine: Engine) -> None:
        """Let risk go by the scoring of the bundle that decides; where none can be had now, it stays as it was."""
        revision, unweighed = engine.revision, ""
        try:
            scoring = await scoring_of(engine)
            if scoring is not None:
                of.risks.apply(scoring)
            self.weighed = revision
        except (EvaluationError, JournalError) as error:
            unweighed = str(error)
        if unweighed and unweighed != self.unweighed:
            log.error("risk goes by the scoring of before", reason=unweighed)
        self.unweighed = unweighed

    async def _follow_bundle(self, of: Governance) -> None:
        """Record a bundle that came without a reload, and take its scoring, or that of one that could not be asked."""
        while True:
            await asyncio.sleep(BUNDLE_PERIOD_S)
            self.loadings.polled()
            if of.decider.revision != self.weighed:
                await self._weigh(of, of.decider.engine)

    def _share(self, of: Governance, keeper: LeaseKeeper, link: assembly.Link) -> None:
        """Let the worker hold from the leases of a shared book, and charge windows by its clock."""
        keeper.on_crossings = of.announce_crossings
        keeper.on_away = _say_away
        keeper.on_failing = _say_failing
        of.keeper, of.now_us = keeper, link.clock.now_us
        of.risks.now_us = link.clock.now_us
        of.risks.link(link.client)
        self.metrics.watch(names.BOOK_AWAY, lambda: int(of.book.is_away))
        self.metrics.watch(names.BOOK_EXCHANGES, lambda: keeper.stats.exchanges)
        self.metrics.watch(names.BOOK_FETCHES, lambda: keeper.stats.fetches)
        self.metrics.watch(names.BOOK_WAITING, lambda: keeper.leases.waiting)
        self.metrics.watch(names.RISK_SCORES_UNTOLD, lambda: 0 if of.risks.shared is None else of.risks.shared.dropped)

    def _servers(self, of: Governance, controls: Controls, second: SecondPerson) -> list[Server]:
        limits = self.loaded.config.limits
        bounds = HeadBounds(
            limits.header_bytes_max,
            limits.headers_max,
            limits.url_bytes_max,
            limits.header_timeout_s,
            limits.connections_max,
        )
        parts = Parts(
            self.home,
            lambda: self.loaded,
            of,
            self.keys,
            self.live,
            self.tracing,
            self.pseudonyms,
            controls,
            second,
            self.checks,
            lambda asked: self.reload(of, controls, second, asked),
        )
        timeouts = {"idle_timeout_s": limits.idle_timeout_s, "drain_timeout_s": limits.drain_timeout_s}
        return [server(plane, bounds, **timeouts) for plane in planes(parts)]

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

    async def reload(self, of: Governance, controls: Controls, second: SecondPerson, asked: Asked) -> dict[str, Any]:
        """Apply the configuration file and the policy bundle again, whole or not at all; one reload at a time.

        What loosens something waits for a second person. Raises ApprovalError where `asked` may not approve.
        """
        async with self.reloading:
            return await self._reload(of, controls, second, asked)

    async def _reload(self, of: Governance, controls: Controls, second: SecondPerson, asked: Asked) -> dict[str, Any]:
        serving = Deciding(of.decider.engine, of.decider.shadow)
        deciding, clients = None, self.clients
        try:
            # Both can take seconds, in which the requests in flight go on.
            loaded = await asyncio.to_thread(load, self.loaded.path, self.environ)
            deciding = await self.engines.open(loaded, serving)
            clients = await assembly.open_clients(loaded, self.sim_urls, self.environ, self.clients)
            catalogue = catalogue_of(loaded, clients)
            await asyncio.to_thread(self.keys.reload)
            inputs = questions(of.decider.decisions(), self.keys.list(), catalogue)
            await probe(deciding.engine, serving.engine, inputs, loaded)
            held = await second.held(loaded, deciding.engine, asked, of.decider.decisions())
            if held is None:
                # First what can fail for the disk: a reload is applied whole or not at all.
                if not of.has_room():
                    raise JournalFull("the journal has no room to record a reload; free disk space, then reload again")
                await second.applied(loaded, deciding.engine.revision)
        except (ConfigError, BundleError, Unready, KeysError, ApprovalError, JournalError, OSError) as error:
            await self._discard(deciding, serving, clients)
            log.error("reload refused", reason=str(error))
            if isinstance(error, ApprovalError | JournalError):
                raise
            return {"applied": False, "problems": str(error).splitlines()}
        if held is not None:
            await self._discard(deciding, serving, clients)
            return held
        changes = diff(self.loaded.config, loaded.config)
        old_clients, old_revision = self.clients, of.decider.revision
        of.catalogue, self.clients, self.loaded = catalogue, clients, loaded
        of.book.configure(budgets_of(loaded.config, self.pseudonyms), of.now_us() // US)
        of.hold_ttl_s = loaded.config.book.hold_ttl_s
        self.engines.serve(of.decider, deciding)
        of.decider.last_known_good_s = loaded.config.policy.last_known_good_s
        revision = of.decider.revision
        if revision != old_revision:
            self.loadings.record(asked.by.actor)
            await self._weigh(of, deciding.engine)
        of.noticing.sampler.config = loaded.config.quality
        self._label(of)
        controls.record("config_applied", asked.by.actor, str(loaded.path), digest=loaded.digest, detail=changes)
        self._retire([client for name, client in old_clients.items() if clients.get(name) is not client])
        fixed = [change for change in changes if change.startswith(FIXED)]
        log.info("reloaded", changes=changes, needs_restart=fixed, policy=revision, policy_before=old_revision)
        return {
            "applied": True,
            "digest": loaded.digest,
            "changes": changes,
            "needs_restart": fixed,
            "policy_revision": revision,
            "policy_revision_before": old_revision,
        }

    async def _discard(
        self, deciding: Deciding | None, serving: Deciding, clients: Mapping[str, RuntimeClient]
    ) -> None:
        """Close what was opened for a reload that is not to be."""
        if deciding is not None:
            await self.engines.discard(deciding, serving)
        self._retire([client for name, client in clients.items() if self.clients.get(name) is not client])

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


def _say_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a part of the gateway has stopped", exc_info=task.exception())


def _say_away(reason: str) -> None:
    if reason:
        log.error("the shared book cannot be asked", reason=reason)
    else:
        log.info("the shared book answers again")


def _say_failing(tag: str, reason: str) -> None:
    log.error("the shared book cannot be asked about one organisation", organisation=tag, reason=reason)


async def _close_when_idle(client: RuntimeClient) -> None:
    try:
        while client.in_flight:  # noqa: ASYNC110 looked at twice a second, once in a client's life
            await asyncio.sleep(0.5)
    finally:
        await client.close()
