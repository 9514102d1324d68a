"""Claims: from what a runtime says a request took to the correction row of that request, once, also after a restart.

A request is settled with the accelerator time that its tokens are estimated to take. Its share, which attribution finds
out later, is posted as the difference; one that is known in part is the least, and refunds nothing. Shares of what this
worker did not settle are foreign: another worker's, or of traffic past Bursar.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from domain.amounts import Amounts
from domain.charges import Charge
from domain.prices import GpuRate
from gateway import adjustments
from gateway.adjustments import Adjustments
from gateway.governance import Governance
from gateway.slices import Slices
from gateway.token_checks import TokenChecks
from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed
from ledger.journal import JournalError
from ledger.tables import ADJUSTED
from runtime.attribution.shares import Share
from runtime.power import Source
from runtime.telemetry.records import Finished

log = structlog.get_logger(__name__)
REASON = ACTOR = "attribution"
WAITING_MAX = 20_000
PARTS_MAX = 100_000
AT_ONCE = 8
LOOKUPS_AT_ONCE = 500
# The ledger takes what is in the journal as often as this by itself, so asking for it costs nothing more.
FLUSH_US = 5_000_000
AMOUNT_MAX = 1 << 53
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ROWS_SQL = """
SELECT event_id, request_id, org, team, app, user, key_id, run_id, parent_run_id, endpoint, model, served_model,
       runtime, price_version, status, certainty, toString(gpu_us) AS gpu, toString(gpu_cost_nusd) AS cost, writer,
       toString(input_tokens) AS input, toString(cached_input_tokens) AS cached, toString(output_tokens) AS output,
       arrayMap(c -> (c.1, c.2, toUnixTimestamp(c.3), c.4, toString(c.5)), charges) AS charges
FROM usage WHERE request_id IN ({ids}) AND {writer}
"""


class Claim(NamedTuple):
    """A share, of which runtime it is, where its energy comes from, and what the runtime's time cost by then.

    One that was `had` was read by this process before: it was posted, or it is lost.
    """

    runtime: str
    share: Share
    energy_source: Source
    rate: GpuRate
    had: bool = False

    @property
    def is_countable(self) -> bool:
        """Whether its amounts can be those of a request at all: no more than the journal and the ledger can hold."""
        share = self.share
        times = (share.gpu_us, share.kv_block_us, share.energy_uj, share.queue_us)
        return max(*times, self.rate.gpu_cost_nusd(share.gpu_us)) <= AMOUNT_MAX


class _Posted(NamedTuple):
    """What is known of a request by its shares so far, and whether something of one is missing."""

    parts: int = 0
    gpu_us: int = 0
    gpu_cost_nusd: int = 0
    is_least: bool = False

    def after(self, claim: Claim) -> "_Posted":
        """With one more share."""
        share = claim.share
        return _Posted(
            self.parts + 1,
            self.gpu_us + share.gpu_us,
            self.gpu_cost_nusd + claim.rate.gpu_cost_nusd(share.gpu_us),
            self.is_least or share.certainty == "at_least",
        )

    def charged(self, row: Mapping[str, Any]) -> Amounts:
        """What the request is charged by then: its estimate at first, and at least that where something is missing."""
        estimated = Amounts(gpu_us=int(row.get("gpu_us", 0)), gpu_cost_nusd=int(row.get("gpu_cost_nusd", 0)))
        if not self.parts:
            return estimated
        known = Amounts(gpu_us=self.gpu_us, gpu_cost_nusd=self.gpu_cost_nusd)
        return Amounts(*map(max, known, estimated)) if self.is_least else known


@dataclass(slots=True)
class Tally:
    """What became of the shares of one runtime."""

    claimed_us: int = 0
    foreign_us: int = 0
    foreign: int = 0
    posted: int = 0
    dropped: int = 0


def bursar_id(name: str) -> str:
    """The request id that Bursar sent, found in what an engine makes of it; the whole name where there is none."""
    found = _ID.search(name)
    return name if found is None else found[0]


class Claims:
    """The shares that one worker takes for its requests; `tallies` has by runtime what became of them."""

    def __init__(
        self,
        of: Governance,
        adjusting: Adjustments,
        find_ledger: Callable[[], LedgerClient | None],
    ) -> None:
        self._of = of
        self._adjusting = adjusting
        self._find_ledger = find_ledger
        self._began_ms = of.now_us() // 1_000
        self._waiting: OrderedDict[str, list[Claim]] = OrderedDict()
        self._unknown: OrderedDict[str, list[Claim]] = OrderedDict()
        self._flushed: list[str] = []
        self._flushed_us: int | None = None
        self._parts: OrderedDict[str, _Posted] = OrderedDict()
        self._first = self._last = ""
        self._written = 0
        self._said = ""
        self._checks = TokenChecks()
        self.tallies: dict[str, Tally] = {}

    @property
    def waiting(self) -> int:
        """How many requests have a share that waits for their settlement, or for the ledger."""
        return len(self._waiting) + len(self._unknown)

    def tally(self, runtime: str) -> Tally:
        """What became of the shares of a runtime."""
        return self.tallies.setdefault(runtime, Tally())

    def take(self, claims: Iterable[Claim]) -> None:
        """Take up shares; `post` sees to them."""
        for claim in claims:
            if claim.had:
                # Where it was not posted, what else the request took is not all of it.
                if not self.has_claimed(claim.share.request_id):
                    self._remember(claim.share.request_id, _Posted(is_least=True))
            elif claim.is_countable:
                self._put(self._waiting, claim.share.request_id, claim)
            else:
                tally = self.tally(claim.runtime)
                if not tally.dropped:
                    log.error("a share is more than any request can take", runtime=claim.runtime)
                tally.dropped += 1

    async def hear(self, runtime: str, finished: Iterable[Finished]) -> None:
        """Take what the front end of a runtime says of requests that finished, to compare."""
        slices = Slices()
        for each in finished:
            self._checks.hear(runtime, bursar_id(each.request_id), each, self._of.now_us())
            await slices.breathe()

    async def post(self) -> None:
        """Post what has been settled; what has not, waits, and what is of nobody here is counted."""
        held = {str(hold.row["request_id"]) for hold in self._of.book.holds.values()} if self._waiting else set()
        for place, request_id in enumerate(list(self._waiting)):
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            row = self._of.recent.get(request_id)
            if row is None and request_id in held:
                continue
            claims = self._waiting.pop(request_id)
            if row is not None:
                if not self._post(row, claims):
                    self._waiting[request_id] = claims
                    return
            elif self._may_be_older(request_id):
                for claim in claims:
                    self._put(self._unknown, request_id, claim)
            else:
                self._disown(claims)

    async def look_up(self) -> None:
        """Ask the ledger for the rows of requests that are not at hand: what it has not, once flushed, is not ours."""
        try:
            if not self._flushed:
                await self._flush()
            asked = [each for each in self._flushed[:LOOKUPS_AT_ONCE] if each in self._unknown]
            found = await asyncio.to_thread(self._rows_of, asked) if asked else {}
        except (LedgerUnavailable, QueryFailed) as error:
            if str(error) != self._said:
                log.warning("shares of earlier requests wait for the ledger", requests=self.waiting, reason=str(error))
            self._said = str(error)
            return
        for request_id in asked:
            claims = self._unknown.pop(request_id)
            row = found.get(request_id)
            if row is None:
                self._disown(claims)
            elif not self._post(row, claims):
                self._unknown[request_id] = claims
                return
        del self._flushed[:LOOKUPS_AT_ONCE]

    def has_claimed(self, request_id: str) -> bool:
        """Whether a share of this request was posted by this process, or waits."""
        return request_id in self._parts or request_id in self._waiting

    def drifted(self, now_us: int) -> dict[tuple[str, str], int]:
        """By how much the tokens of a runtime were off those charged, by runtime and quantity, for good by now."""
        return self._checks.drifted(now_us)

    def explain(self) -> None:
        """Leave a `control` row for all rows written since the last one; a killed process leaves none for its last."""
        if self._written and self._of.has_room():
            self._adjusting.explain(self._first, self._last, self._written, reason=REASON, actor=ACTOR)
            self._written, self._first = 0, ""

    def _put(self, kept: OrderedDict[str, list[Claim]], request_id: str, claim: Claim) -> None:
        kept.setdefault(request_id, []).append(claim)
        if len(kept) > WAITING_MAX:
            for lost in kept.popitem(last=False)[1]:
                self.tally(lost.runtime).dropped += not lost.share.is_replayed

    def _may_be_older(self, request_id: str) -> bool:
        """Whether this worker may have settled it without having the row at hand now."""
        if not _ID.fullmatch(request_id):
            return False
        return _made_ms(request_id) <= max(self._began_ms, _made_ms(self._of.recent.forgotten))

    def _disown(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            if not claim.share.is_replayed:
                tally = self.tally(claim.runtime)
                tally.foreign += 1
                tally.foreign_us += claim.share.gpu_us

    def _post(self, row: Mapping[str, Any], claims: list[Claim]) -> bool:
        """Write the corrections of one request; False, and the rest stays in the list, while the journal is full."""
        while claims:
            claim = claims[0]
            if claim.runtime != row.get("runtime", ""):
                # Who writes into the folder of one runtime has no say in what another served.
                self._disown([claims.pop(0)])
                continue
            before = self._parts.get(claim.share.request_id, _Posted())
            after = before.after(claim)
            try:
                is_new = self._write(row, claim, before, after)
            except JournalError as error:
                log.error("shares wait for the journal", requests=self.waiting + 1, reason=str(error))
                return False
            claims.pop(0)
            self._remember(claim.share.request_id, after)
            tally = self.tally(claim.runtime)
            tally.posted += is_new
            if not claim.share.is_replayed:
                tally.claimed_us += claim.share.gpu_us
            if is_new:
                is_whole = claim.share.reason == "finished" and not after.is_least
                self._checks.take(claim.runtime, row, claim.share, self._of.now_us(), is_whole=is_whole)
        return True

    def _remember(self, request_id: str, posted: _Posted) -> None:
        self._parts[request_id] = posted
        if len(self._parts) > PARTS_MAX:
            self._parts.popitem(last=False)

    def _write(self, row: Mapping[str, Any], claim: Claim, before: _Posted, after: _Posted) -> bool:
        share, of = claim.share, self._of
        event_id = f"{share.request_id}/attributed/{before.parts}"
        if event_id in row.get("corrected_by", ()):
            return False
        was, now = before.charged(row), after.charged(row)
        difference = Amounts(
            gpu_us=now.gpu_us - was.gpu_us,
            gpu_cost_nusd=now.gpu_cost_nusd - was.gpu_cost_nusd,
            kv_block_us=share.kv_block_us,
            energy_uj=share.energy_uj,
        )
        certainty = "at_least" if after.is_least else share.certainty
        more: dict[str, Any] = {"certainty": certainty, "queue_us": share.queue_us}
        if share.energy_uj:
            more["energy_source"] = claim.energy_source
        if not self._adjusting.write(adjustments.of_request(row, difference, of.now_us(), event_id, more)):
            return False
        self._first, self._last, self._written = self._first or event_id, event_id, self._written + 1
        return True

    async def _flush(self) -> None:
        """Have all in the ledger that was settled by now, once in a while; what waits for it now can then be asked."""
        now_us = self._of.now_us()
        if not self._unknown or (self._flushed_us is not None and 0 <= now_us - self._flushed_us < FLUSH_US):
            return
        waiting = list(self._unknown)
        await asyncio.to_thread(lambda: self._ledger().flush())
        self._flushed, self._flushed_us = waiting, now_us

    def _ledger(self) -> LedgerClient:
        client = self._find_ledger()
        if client is None:
            raise LedgerUnavailable("no ledger process runs on this home")
        return client

    def _rows_of(self, request_ids: list[str]) -> dict[str, dict[str, Any]]:
        """The settlement of each request as the ledger has it, with the corrections that it has had."""
        parameters = {f"r{place}": request_id for place, request_id in enumerate(request_ids)}
        ids = ", ".join(f"{{{name}:String}}" for name in parameters)
        sql = _ROWS_SQL.replace("{ids}", ids).replace("{writer}", "writer = {writer:String}")
        rows = self._ledger().rows(sql, **parameters, writer=self._of.journal.writer)
        corrected: dict[str, list[str]] = {}
        for row in rows:
            if row["status"] == ADJUSTED:
                corrected.setdefault(row["request_id"], []).append(row["event_id"])
        return {
            row["request_id"]: _settlement(row, corrected.get(row["request_id"], []))
            for row in rows
            if row["status"] != ADJUSTED
        }


def _settlement(row: dict[str, Any], corrected_by: list[str]) -> dict[str, Any]:
    """A row of the ledger as the journal has it, with the events that have corrected it."""
    counts = {"gpu_us": "gpu", "gpu_cost_nusd": "cost", "input_tokens": "input"}
    counts |= {"cached_input_tokens": "cached", "output_tokens": "output"}
    charges = [Charge(str(c[0]), str(c[1]), int(c[2]), str(c[3]), int(c[4])) for c in row["charges"]]
    whole = {name: int(row.pop(short)) for name, short in counts.items()}
    return {**row, **whole, "charges": charges, "corrected_by": corrected_by}


def _made_ms(request_id: str) -> int:
    """When a UUIDv7 was made; 0 for no identifier."""
    return int(request_id[:8] + request_id[9:13], 16) if request_id else 0
