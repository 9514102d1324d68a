"""Engine accounts: the telemetry of one runtime, followed and shared out a millisecond at a time on the event loop."""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gateway.claims import Claim, bursar_id
from gateway.offers import Runtime
from gateway.slices import Slices
from runtime.attribution.engine import Attribution
from runtime.attribution.shares import Share, Totals, together
from runtime.power import Nvml, Power
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Finished, Lost, Open, Parser, Record, Step
from runtime.telemetry.runs import Heard, left_behind
from runtime.telemetry.writer import VERSION

READ_BYTES = 256 << 10
# So much at most in one poll: whoever writes a folder may write faster than it is read.
READS_MAX = 16
RECORDS_MAX = 50_000
ENGINE = "engine-"
# No engine does so much between two samples; 64 of them still have room in the ledger's Int64.
DONE_MAX = 1 << 54
# The reason under which what an engine says that it did is left out for that.
IMPOSSIBLE = "impossible"


class Told:
    """What was read in one poll, in order; its steps began at `begin_us` and took `busy_us` of all accelerators."""

    def __init__(self, now_us: int) -> None:
        self.records: list[tuple[str, Record]] = []
        self.finished: list[Finished] = []
        self.busy_us = 0
        self.begin_us = now_us

    def add(self, source: str, record: Record, accelerators: int) -> None:
        """Go on with a record of an engine that has so many accelerators."""
        self.records.append((source, record))
        if isinstance(record, Step):
            self.busy_us += max(0, record.end_us - record.begin_us) * accelerators
            self.begin_us = min(self.begin_us, record.begin_us)

    def hear(self, record: Record) -> None:
        """Go on with a record of a front end; what is missing of those makes no account wrong."""
        if isinstance(record, Finished):
            self.finished.append(record)


class EngineAccounts:
    """Follows the engines of one runtime; `accounts` has the attribution of each by the name of its source.

    `account_from_us` has up to when an account of each was kept before, by a process that has ended; that of others
    begins with `otherwise_us`. With `is_again` shares of before that are `had`: this process followed them already.
    `finished` is what the front ends counted of requests that finished, as read in the last poll.
    """

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        account_from_us: Mapping[str, int],
        *,
        otherwise_us: int = 0,
        is_again: bool = False,
    ) -> None:
        self.runtime = runtime
        self.folder = folder
        self.power = _power_of(runtime)
        self.accounts: dict[str, Attribution] = {}
        self.lost: dict[str, int] = {}
        self.finished: list[Finished] = []
        self._account_from_us = account_from_us
        self._otherwise_us = otherwise_us
        self._is_again = is_again
        self._follower = Follower(folder)
        self._parsers: dict[str, Parser] = {}
        self._before: dict[str, Totals] = {}
        self._read_us = 0
        self._shown: int | None = None

    @property
    def is_missing(self) -> bool:
        """Whether there is no folder to follow now."""
        return self._follower.is_missing

    @property
    def trouble(self) -> str:
        """What keeps accelerator time or energy from being known now; empty where nothing does."""
        if self.is_missing:
            return f"there is no folder {self.folder} that can be read"
        off = [f"{source} is not metered: {account.off}" for source, account in self.accounts.items() if account.off]
        foreign = [_in_version(source, each.foreign) for source, each in self._parsers.items() if each.foreign]
        return self._follower.failure or next(iter([*foreign, *off]), self.power.failure)

    @property
    def losses(self) -> int:
        """How often something of its telemetry was missing."""
        return sum(self.lost.values()) + sum(account.losses for account in self.accounts.values())

    @property
    def told_until_us(self) -> int:
        """The time at which the last step began of the engine that computed least recently; 0 before any.

        One that has ended computes no more.
        """
        return min((account.last_begin_us for account in self._running().values()), default=0)

    def knows(self, request_id: str) -> bool:
        """Whether an engine has the request in its batch, or will have it back."""
        return any(account.knows(request_id) for account in self.accounts.values())

    def totals(self) -> Totals:
        """What all engines did."""
        return together((account.accelerators, account.totals) for account in self.accounts.values())

    def since_asked(self) -> tuple[int, Totals]:
        """What the engines did since this was asked the last time, and how many accelerators that was done on."""
        running = self._running()
        accelerators, found = 0, []
        for source, account in self.accounts.items():
            now = account.totals
            new, self._before[source] = now.since(self._before.get(source, Totals())), now
            if max(map(abs, new[1:])) >= DONE_MAX:
                self.lost[IMPOSSIBLE] = self.lost.get(IMPOSSIBLE, 0) + 1
                new = Totals(now.until_us, losses=1)
            if source in running or new.capacity_us:
                accelerators += account.accelerators
                found.append((account.accelerators, new))
            else:
                found.append((0, new))
        return accelerators or self.accelerators(), together(found)

    def accelerators(self) -> int:
        """How many accelerators the engines that run have together; as configured while none has said so."""
        return self.told_accelerators() or self.runtime.gpus

    def told_accelerators(self) -> int:
        """The same, as engines say; 0 while none has."""
        opened = {source: account for source, account in self.accounts.items() if account.began_us}
        counted = self._running() or opened
        return sum(account.accelerators for account in counted.values())

    def known_until_us(self) -> dict[str, int]:
        """Up to when each engine is accounted, those included of which only a process before knew."""
        return {**self._account_from_us, **{source: each.accounted_us for source, each in self.accounts.items()}}

    async def poll(self, now_us: int) -> list[Claim]:
        """What was added since the last time, shared out; where that is a lot, what is left the next time."""
        slices, told = Slices(), Told(now_us)
        for _ in range(READS_MAX):
            for piece in await asyncio.to_thread(self._follower.read, READ_BYTES):
                parser = self._parsers.setdefault(piece.source, Parser())
                if not piece.source.startswith(ENGINE):
                    for record in parser.records(piece.data):
                        told.hear(record)
                        await slices.breathe()
                    continue
                accelerators = self._account(piece.source).accelerators
                if piece.lost is not None:
                    told.add(piece.source, piece.lost, accelerators)
                for record in parser.records(piece.data):
                    told.add(piece.source, record, accelerators)
                    await slices.breathe()
            if not self._follower.has_more or len(told.records) + len(told.finished) >= RECORDS_MAX:
                break
        self.finished = told.finished
        # Once for all that was read, because what the devices drew is known for all of it together.
        await self._set_power(told, now_us)
        claims: list[Claim] = []
        for source, record in told.records:
            claims += self._take(source, record)
            await slices.breathe()
        if not (self._follower.has_more or self.is_missing or self._follower.failure):
            self._read_us = now_us
            claims += self._left_behind()
        return claims

    def configure(self, runtime: Runtime) -> None:
        """Go on under other settings; what is in flight has paid by the weights of before until now."""
        if (runtime.power_w, runtime.nvml_devices) != (self.runtime.power_w, self.runtime.nvml_devices):
            self.power = _power_of(runtime)
        self.runtime = runtime
        for account in self.accounts.values():
            account.reweigh(runtime.work.weights)

    def rest(self, now_us: int, shown: int, *, is_busy: bool) -> None:
        """Say that the runtime answers now, how many engines it shows, and whether it has requests.

        Each of them without requests is idle; none is where no engine has told of any, for who has them is not known.
        """
        self._shown = shown
        running = self._running().values()
        if is_busy and not any(account.seated for account in running):
            return
        for account in running:
            account.rest(min(now_us, self._read_us))

    def close(self) -> None:
        """Let go of the files."""
        self._follower.close()

    def _running(self) -> dict[str, Attribution]:
        """The engines that were started and have not ended, as far as that is known."""
        opened = {source: account for source, account in self.accounts.items() if account.is_open}
        gone = left_behind({source: Heard(each.began_us, each.end_us) for source, each in opened.items()}, self._shown)
        return {source: account for source, account in opened.items() if source not in gone}

    def _left_behind(self) -> list[Claim]:
        """Claim for those that were in the batch of an engine that is gone."""
        running = self._running()
        gone = [each for source, each in self.accounts.items() if each.is_open and source not in running]
        return self._claims([share for account in gone for share in account.end()])

    async def _set_power(self, told: Told, now_us: int) -> None:
        """Take what the devices drew since the last time for the price of the steps that were done since."""
        price = partial(self.power.price_mw, told.busy_us, told.begin_us, now_us, is_late=self._follower.has_more)
        # NVML may take milliseconds to answer.
        price_mw = await asyncio.to_thread(price) if self.runtime.nvml_devices else price()
        for account in self.accounts.values():
            account.power_mw = price_mw

    def _take(self, source: str, record: Record) -> list[Claim]:
        if isinstance(record, Lost):
            self.lost[record.why] = self.lost.get(record.why, 0) + record.missing
        if isinstance(record, Open):
            self._shown = None  # what the runtime showed before an engine was started says nothing of now
        return self._claims(self._account(source).take(record))

    def _claims(self, shares: list[Share]) -> list[Claim]:
        return [
            Claim(self.runtime.id, share, self.power.source, self.runtime.rate, self._is_again and share.is_replayed)
            for share in shares
        ]

    def _account(self, source: str) -> Attribution:
        account = self.accounts.get(source)
        if account is None:
            account = self.accounts[source] = Attribution(
                self.runtime.work.weights,
                self.runtime.gpus,
                account_from_us=self._account_from_us.get(source, self._otherwise_us),
                key=bursar_id,
            )
        return account


def _in_version(source: str, foreign: str) -> str:
    return f"{source} tells in version {foreign}, and this Bursar reads {VERSION}: install its plugin"


def _power_of(runtime: Runtime) -> Power:
    devices = runtime.nvml_devices
    return Power(runtime.power_w, (lambda: Nvml.open(devices)) if devices else None, max(1, len(devices)))
