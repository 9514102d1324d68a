"""Attributing: follows the telemetry of all runtimes beside the requests, posts what they took, and samples them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from domain.ids import uuid7
from gateway.adjustments import Adjustments
from gateway.claims import Claim, Claims, Tally
from gateway.config_file import LoadedConfig
from gateway.controls import Controls
from gateway.engine_accounts import EngineAccounts
from gateway.governance import Governance
from gateway.home import Home
from gateway.offers import Runtime
from gateway.runtime_samples import Lease, Sampler, accounted
from gateway.unheard import Unheard
from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed
from ledger.journal import JournalError
from observability import names
from runtime.attribution.shares import Totals, nothing

log = structlog.get_logger(__name__)
US = 1_000_000
POLL_S = 0.25
AGAIN_S = 2
CLOSE_S_MAX = 10.0
# For as long as this the ledger is asked where an account of before ended; without it, it begins with what comes.
ACCOUNT_S_MAX = 60.0
# After a fault of ours telemetry is followed again, from what comes then; where that fails again, no more often.
RETRY_S = 300


@dataclass(slots=True)
class Followed:
    """One runtime: what is followed of it, its samples, and when the next one is due.

    `engines` is None without a folder of telemetry, and where following it has failed by a fault of ours until
    `retry_us`, which is 0 otherwise. `told` is how many accelerators its engines were last found to have.
    """

    runtime: Runtime
    folder: Path | None
    engines: EngineAccounts | None
    sampler: Sampler
    due_us: int
    sampling: asyncio.Task[None] | None = None
    said: str = ""
    retry_us: int = 0
    told: int = 0

    def close(self) -> None:
        """Let go of it."""
        if self.sampling is not None:
            self.sampling.cancel()
        if self.engines is not None:
            self.engines.close()


class Attributing:
    """The part of a worker that knows what requests took; `run` it beside the rest."""

    def __init__(
        self,
        home: Home,
        replica: str,
        of: Governance,
        controls: Controls,
        loaded: Callable[[], LoadedConfig],
        find_ledger: Callable[[], LedgerClient | None],
    ) -> None:
        def record(row: dict[str, Any]) -> None:
            # Beside the recent rows and not among them, where settlements are looked for.
            of.sequences.append(of.journal, row["org"], row)
            of.recent.correct(row)

        self._home = home
        self._replica = replica
        self._of = of
        self._loaded = loaded
        self._find_ledger = find_ledger
        self._lease = Lease(home.run / "sampler.lock")
        self._followed: dict[str, Followed] = {}
        self._begun: set[str] = set()
        self._known: LoadedConfig | None = None
        self._again_us = 0
        self._round: asyncio.Task[None] | None = None
        self._said = ""
        self._has_failed = False
        self._unheard = Unheard()
        self._newest = ""
        self._began_us = of.now_us()
        self._announced: dict[tuple[str, str], int] = {}
        self.claims = Claims(of, Adjustments(of.book, of.journal, record, controls, of.announce_crossings), find_ledger)
        of.metrics.watch_runtimes(self.shown)
        of.metrics.watch(names.ATTRIBUTION_STOPPED, lambda: self.stopped)
        of.metrics.watch(names.ATTRIBUTION_WAITING, lambda: self.claims.waiting)
        of.metrics.watch(names.ATTRIBUTION_POSTED, lambda: sum(each.posted for each in self.claims.tallies.values()))
        of.metrics.watch(names.ATTRIBUTION_DROPPED, lambda: sum(each.dropped for each in self.claims.tallies.values()))

    async def run(self) -> None:
        """Follow until cancelled; a journal that takes nothing is waited for."""
        while True:
            await asyncio.sleep(POLL_S)
            # A round that is cut short would leave records out, and what follows would be shared out wrongly.
            self._round = asyncio.create_task(self._around())
            try:
                await asyncio.shield(self._round)
            except Exception:
                # What was half posted may not be posted again by this process: the ledger knows, once it is restarted.
                self._has_failed = True
                raise

    @property
    def stopped(self) -> int:
        """How many runtimes are not followed now by a fault of ours; all of them once this part has ended by one."""
        if self._has_failed:
            return max(1, len(self._followed))
        return sum(each.retry_us > 0 for each in self._followed.values())

    async def poll(self, now_us: int) -> None:
        """Once around: take what runtimes have told, post it, and begin the samples that are due."""
        await self._follow(now_us)
        for followed in list(self._followed.values()):
            await self._read(followed, now_us)
        self._hear()
        await self.claims.post()
        # Of a clock that was put back: not for longer than the interval.
        due = [each for each in self._followed.values() if not 0 < each.due_us - now_us <= _interval_us(each.runtime)]
        for followed in due:
            followed.due_us = now_us + _interval_us(followed.runtime)
        if due:
            self.claims.explain()
            self._announce(now_us)
            is_ours = self._lease.is_ours()
            for followed in due:
                if followed.sampling is None or followed.sampling.done():
                    followed.sampling = asyncio.create_task(self._sample(followed, is_ours=is_ours))

    async def _read(self, followed: Followed, now_us: int) -> None:
        """Take what one runtime has told; whatever is wrong with it does not concern the others."""
        if followed.engines is None:
            return
        try:
            self.claims.take(await followed.engines.poll(now_us))
            await self.claims.hear(followed.runtime.id, followed.engines.finished)
            self._say(followed, followed.engines)
        except OSError as error:
            if str(error) != followed.said:
                log.error("telemetry cannot be read now", runtime=followed.runtime.id, reason=str(error))
            followed.said = str(error)
        except Exception:
            log.exception("telemetry is not followed now", runtime=followed.runtime.id, again_in_s=RETRY_S)
            followed.engines.close()
            followed.engines, followed.retry_us = None, now_us + RETRY_S * US

    def _hear(self) -> None:
        """Claim nothing at all for requests that were charged by their bound and that no engine computed."""
        recent = self._of.recent
        engines = {name: each.engines for name, each in self._followed.items() if each.engines is not None}
        new = recent.since(self._newest)
        if new:
            self._newest = new[0]
        for request_id in reversed(new):
            row = recent.get(request_id)
            if row is not None and not self.claims.has_claimed(request_id):
                self._unheard.take(row, engines)
        named = [name for name in engines if self.claims.tally(name).claimed_us]
        for runtime, request_id in self._unheard.never_computed(engines, named):
            if not self.claims.has_claimed(request_id):
                self.claims.take([Claim(runtime, nothing(request_id), "", engines[runtime].runtime.rate)])

    async def sampled(self) -> None:
        """Wait until the samples that were begun are written."""
        await asyncio.gather(*(each.sampling for each in self._followed.values() if each.sampling is not None))

    async def _around(self) -> None:
        now_us = self._of.now_us()
        try:
            await self.poll(now_us)
            await self.claims.look_up()
        except (JournalError, OSError) as error:
            if str(error) != self._said:
                log.error("accelerator time is not attributed now", reason=str(error))
            self._said = str(error)

    async def close(self) -> None:
        """Let the round under way end, take what has come by now, and let go of everything; not for ever."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S_MAX):
                    if self._round is not None:
                        await self._round
                    await self._around()
            with suppress(JournalError):
                self.claims.explain()
        finally:
            for followed in self._followed.values():
                followed.close()
            self._lease.close()

    def shown(self) -> dict[str, dict[tuple[str, str], int]]:
        """What metrics show by runtime: accelerator time by account, what is missing by reason, drift by quantity."""
        times: dict[tuple[str, str], int] = {}
        lost: dict[tuple[str, str], int] = {}
        for name, followed in self._followed.items():
            engines, tally = followed.engines, self.claims.tally(name)
            if engines is not None:
                times |= {(name, account): us for account, us in _accounts(engines.totals(), tally).items()}
                lost |= {(name, why): count for why, count in engines.lost.items()}
        drift = self.claims.drifted(self._of.now_us())
        return {names.ACCELERATOR_TIME: times, names.TELEMETRY_LOST: lost, names.TOKEN_DRIFT: drift}

    async def _follow(self, now_us: int) -> None:
        """Follow what is configured now, and nothing else."""
        loaded = self._loaded()
        if loaded is self._known and now_us < self._again_us:
            return
        self._known, self._again_us = loaded, now_us + AGAIN_S * US
        wanted = {runtime.id: runtime for runtime in loaded.config.runtimes}
        for name, followed in list(self._followed.items()):
            runtime = wanted.get(name)
            folder = None if runtime is None else telemetry_of(runtime, loaded, self._home)
            if runtime is None or folder != followed.folder:
                await self._read(followed, now_us)
                del self._followed[name]
                followed.close()
            elif 0 < followed.retry_us <= now_us:
                del self._followed[name]
                followed.close()
            elif runtime != followed.runtime:
                followed.runtime = runtime
                if followed.engines is not None:
                    followed.engines.configure(runtime)
        for name, runtime in wanted.items():
            if name not in self._followed:
                await self._begin(runtime, telemetry_of(runtime, loaded, self._home), now_us)

    async def _begin(self, runtime: Runtime, folder: Path | None, now_us: int) -> None:
        """Follow a runtime from where its account ended, once that is known."""
        engines = None
        if folder is not None and runtime.id in self._begun:
            # Its shares of before were posted by this very process.
            engines = EngineAccounts(runtime, folder, {}, otherwise_us=now_us, is_again=True)
        elif folder is not None:
            try:
                account_from = await asyncio.to_thread(accounted, self._find_ledger, runtime.id)
                engines = EngineAccounts(runtime, folder, account_from)
            except (LedgerUnavailable, QueryFailed) as error:
                if now_us - self._began_us < ACCOUNT_S_MAX * US:
                    return
                log.warning("an account begins with what comes now", runtime=runtime.id, reason=str(error))
                engines = EngineAccounts(runtime, folder, {}, otherwise_us=now_us)
        self._begun.add(runtime.id)
        sampler = Sampler(self._of, self._replica, self.claims.tally(runtime.id).foreign_us)
        self._followed[runtime.id] = Followed(runtime, folder, engines, sampler, now_us + _interval_us(runtime))

    async def _sample(self, followed: Followed, *, is_ours: bool) -> None:
        client = self._of.catalogue.runtimes.get(followed.runtime.id)
        if client is None:
            return
        tally = self.claims.tally(followed.runtime.id)
        try:
            gpus = followed.runtime.gpus
            await followed.sampler.sample(client.spec, followed.engines, tally, gpus, is_ours=is_ours)
            _compare(followed)
        except JournalError as error:
            log.error("a sample could not be written", runtime=followed.runtime.id, reason=str(error))
        except Exception:
            log.exception("a sample failed", runtime=followed.runtime.id)

    def _say(self, followed: Followed, engines: EngineAccounts) -> None:
        """Log once what keeps accelerator time or energy from being known, and that it is no more so."""
        why = engines.trouble
        if why != followed.said:
            followed.said = why
            log.warning("telemetry", runtime=followed.runtime.id, reason=why or "it is there")

    def _announce(self, now_us: int) -> None:
        """Leave a `signal` row where more tokens of a runtime were off what was charged than the last time."""
        for key, drift in self.claims.drifted(now_us).items():
            more = drift - self._announced.get(key, 0)
            if more and self._of.has_room():
                self._announced[key] = drift
                runtime, quantity = key
                signal = {
                    "ts_us": now_us,
                    "event_id": uuid7(now_us // 1000),
                    "name": "drift",
                    "subject": runtime,
                    "level": "alarm",
                    "value": more,
                    "detail": {"kind": "attribution", "quantity": quantity, "drift": more},
                }
                self._of.journal.append("signal", signal)
                self._of.webhooks.publish(signal)


def telemetry_of(runtime: Runtime, loaded: LoadedConfig, home: Home) -> Path | None:
    """The folder of a runtime's telemetry: as configured, or that of an embedded one in the home; None without one."""
    if runtime.telemetry is not None:
        return loaded.path.parent / runtime.telemetry
    return home.telemetry(f"sim-{runtime.id}") if runtime.is_sim else None


def _compare(followed: Followed) -> None:
    """Say once that engines have other accelerators than are configured: a warning where a number was configured."""
    told = 0 if followed.engines is None else followed.engines.told_accelerators()
    configured = followed.runtime.gpus
    if told in (0, configured, followed.told):
        return
    followed.told = told
    say = log.warning if "gpus" in followed.runtime.model_fields_set else log.info
    say("accelerators", runtime=followed.runtime.id, configured=configured, told=told, counted=told)


def _interval_us(runtime: Runtime) -> int:
    return int(runtime.sample_interval_s * US)


def _accounts(totals: Totals, tally: Tally) -> dict[str, int]:
    return {
        "capacity": totals.capacity_us,
        "busy": totals.busy_us,
        "lost": totals.lost_us,
        "attributed": totals.attributed_us,
        "unattributed": totals.unattributed_us,
        "claimed": tally.claimed_us,
        "foreign": tally.foreign_us,
    }
