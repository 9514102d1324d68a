"""Engine accounts: the telemetry of one runtime, followed and shared out a millisecond at a time on the event loop."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from gateway.claims import Claim, bursar_id
from gateway.offers import Runtime
from runtime.attribution.engine import Attribution
from runtime.attribution.shares import Totals
from runtime.power import Nvml, Power
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Lost, Parser, Record, Step

READ_BYTES = 256 << 10
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
        self._power_at_us = 0

    @property
    def is_missing(self) -> bool:
        """Whether there is no folder to follow now."""
        return self._follower.is_missing

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
        """What was added since the last time, shared out; several times where there is a lot."""
        claims: list[Claim] = []
        while True:
            pieces = await asyncio.to_thread(self._follower.read, READ_BYTES)
            slices = Slices()
            records: list[tuple[str, Record]] = []
            for piece in pieces:
                if not piece.source.startswith(ENGINE):
                    continue  # what the front end counts is for people, and for calibration
                parser = self._parsers.setdefault(piece.source, Parser())
                if piece.lost is not None:
                    records.append((piece.source, piece.lost))
                for record in parser.records(piece.data):
                    records.append((piece.source, record))
                    await slices.breathe()
            await self._set_power(records, now_us)
            for source, record in records:
                claims += self._take(source, record)
                await slices.breathe()
            if not self._follower.has_more:
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

    async def _set_power(self, records: list[tuple[str, Record]], now_us: int) -> None:
        """Take what the devices drew since the last time for the price of the steps that were done since."""
        busy_us = sum(
            max(0, record.end_us - record.begin_us) * self._account(source).accelerators
            for source, record in records
            if isinstance(record, Step)
        )
        wall_us, self._power_at_us = now_us - (self._power_at_us or now_us), now_us
        devices = max(1, len(self.runtime.nvml_devices))
        if self.runtime.nvml_devices:
            # NVML may take milliseconds to answer.
            price_mw = await asyncio.to_thread(self.power.price_mw, busy_us, wall_us * devices)
        else:
            price_mw = self.power.price_mw(busy_us, wall_us)
        for account in self.accounts.values():
            account.power_mw = price_mw

    def _take(self, source: str, record: Record) -> list[Claim]:
        if isinstance(record, Lost):
            self.lost[record.why] = self.lost.get(record.why, 0) + record.missing
        return [
            Claim(self.runtime.id, share, self.power.source)
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
    return Power(runtime.power_w, (lambda: Nvml.open(devices)) if devices else None)
