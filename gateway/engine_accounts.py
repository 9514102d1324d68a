"""Engine accounts: the telemetry of one runtime, followed and shared out a millisecond at a time on the event loop."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gateway.claims import Claim, bursar_id
from gateway.offers import Runtime
from runtime.attribution.engine import Attribution
from runtime.attribution.shares import Totals
from runtime.power import Nvml, Power
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Lost, Parser, Record, Step

READ_BYTES = 256 << 10
# So much at most in one poll: whoever writes a folder may write faster than it is read.
READS_MAX = 16
RECORDS_MAX = 50_000
# As long as this the event loop may be kept, and as long as that it is left to others before what follows.
SLICE_S = 0.001
PAUSE_S = 0.002
ENGINE = "engine-"


class Slices:
    """Lets the event loop breathe between two records whenever a slice of time is used up."""

    def __init__(self) -> None:
        self._until_s = time.perf_counter() + SLICE_S

    async def breathe(self) -> None:
        """Go on at once within the slice, else after a pause."""
        if time.perf_counter() > self._until_s:
            await asyncio.sleep(PAUSE_S)
            self._until_s = time.perf_counter() + SLICE_S


class Told:
    """What was read in one poll, in order; its steps began at `begin_us` and took `busy_us` of all accelerators."""

    def __init__(self, now_us: int) -> None:
        self.records: list[tuple[str, Record]] = []
        self.busy_us = 0
        self.begin_us = now_us

    def add(self, source: str, record: Record, accelerators: int) -> None:
        """Go on with a record of an engine that has so many accelerators."""
        self.records.append((source, record))
        if isinstance(record, Step):
            self.busy_us += max(0, record.end_us - record.begin_us) * accelerators
            self.begin_us = min(self.begin_us, record.begin_us)


class EngineAccounts:
    """Follows the engines of one runtime; `accounts` has the attribution of each by the name of its source.

    `account_from_us` has up to when an account of each was kept before, by a process that has ended; that of others
    begins with `otherwise_us`. With `is_again` shares of before that are not claimed: this process has had them.
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
        self._account_from_us = account_from_us
        self._otherwise_us = otherwise_us
        self._is_again = is_again
        self._follower = Follower(folder)
        self._parsers: dict[str, Parser] = {}

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
        return self._follower.failure or next(iter(off), self.power.failure)

    @property
    def losses(self) -> int:
        """How often something of its telemetry was missing."""
        return sum(self.lost.values()) + sum(account.losses for account in self.accounts.values())

    @property
    def told_until_us(self) -> int:
        """The time at which the last step began of the engine that computed least recently; 0 before any."""
        return min((account.last_begin_us for account in self.accounts.values()), default=0)

    def knows(self, request_id: str) -> bool:
        """Whether an engine has the request in its batch, or will have it back."""
        return any(account.knows(request_id) for account in self.accounts.values())

    def totals(self) -> Totals:
        """The sums over all engines; `until_us` is that of the one known the longest."""
        found = [account.totals for account in self.accounts.values()]
        sums = [sum(column) for column in zip(*[each[1:] for each in found], strict=True)]
        return Totals(max(each.until_us for each in found), *sums) if found else Totals()

    def accelerators(self) -> int:
        """How many accelerators the engines have together; as configured while none has said so."""
        return sum(account.accelerators for account in self.accounts.values()) or self.runtime.gpus

    async def poll(self, now_us: int) -> list[Claim]:
        """What was added since the last time, shared out; where that is a lot, what is left the next time."""
        slices, told = Slices(), Told(now_us)
        for _ in range(READS_MAX):
            for piece in await asyncio.to_thread(self._follower.read, READ_BYTES):
                if not piece.source.startswith(ENGINE):
                    continue  # what the front end counts is for people, and for calibration
                parser = self._parsers.setdefault(piece.source, Parser())
                accelerators = self._account(piece.source).accelerators
                if piece.lost is not None:
                    told.add(piece.source, piece.lost, accelerators)
                for record in parser.records(piece.data):
                    told.add(piece.source, record, accelerators)
                    await slices.breathe()
            if not self._follower.has_more or len(told.records) >= RECORDS_MAX:
                break
        # Once for all that was read, because what the devices drew is known for all of it together.
        await self._set_power(told, now_us)
        claims: list[Claim] = []
        for source, record in told.records:
            claims += self._take(source, record)
            await slices.breathe()
        return claims

    def configure(self, runtime: Runtime) -> None:
        """Go on under other settings; what is in flight has paid by the weights of before until now."""
        if (runtime.power_w, runtime.nvml_devices) != (self.runtime.power_w, self.runtime.nvml_devices):
            self.power = _power_of(runtime)
        self.runtime = runtime
        for account in self.accounts.values():
            account.reweigh(runtime.work.weights)

    def rest(self, now_us: int) -> None:
        """Say that the runtime had nothing to do at this time."""
        for account in self.accounts.values():
            account.rest(now_us)

    def close(self) -> None:
        """Let go of the files."""
        self._follower.close()

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
        return [
            Claim(self.runtime.id, share, self.power.source, self.runtime.rate)
            for share in self._account(source).take(record)
            if not (self._is_again and share.is_replayed)
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


def _power_of(runtime: Runtime) -> Power:
    devices = runtime.nvml_devices
    return Power(runtime.power_w, (lambda: Nvml.open(devices)) if devices else None, max(1, len(devices)))
