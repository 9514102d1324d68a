"""Reconciliation: one comparison of counters, runtimes and journal with the ledger, its drift announced and mended.

Mending lowers nothing, because what was not seen is never refunded: of a counter and the ledger's sum the higher
stands, and a correction row raises the other. Where a runtime and the ledger disagree nobody can be charged; a new
baseline can be asked for, and is recorded with what was set aside by it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from domain.ids import uuid7
from gateway import adjustments
from gateway.adjustments import Adjustments
from gateway.controls import Controls
from gateway.scraping import ScrapeFailed, scrape
from ledger import reconcile
from ledger.book import Book
from ledger.client import LedgerClient, LedgerUnavailable
from ledger.journal import Journal
from ledger.reconcile import COUNTER, Account, Baseline, Cut, Totals
from runtime.port import RuntimeSpec

US = 1_000_000
# How many drifting accounts are kept, and mended, at a time.
DRIFTING_MAX = 1_000
SIGNALS_MAX = 100
SAMPLES_MAX = 3
_BASELINE_SQL = """
SELECT detail FROM control WHERE action = 'runtime_baseline' AND subject = {runtime:String}
ORDER BY ts DESC, seq DESC LIMIT 1
"""


class NotComparable(Exception):
    """A runtime cannot be compared now; the message says why."""


Sample = Callable[[RuntimeSpec], Awaitable[Totals]]


@dataclass(frozen=True, slots=True)
class Result:
    """What one comparison found; `drifts` are the first of those that drift, `not_compared` says what was left out."""

    writer: str
    seq: int
    accounts: int
    drifted: int
    mended: int
    drifts: tuple[dict[str, Any], ...]
    not_compared: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    """What is kept while the accounts go by."""

    accounts: int = 0
    drifted: int = 0
    drifting: list[Account] = field(default_factory=list)
    drift: dict[tuple[str, str], int] = field(default_factory=dict)
    not_compared: list[str] = field(default_factory=list)

    def take(self, accounts: Iterable[Account]) -> None:
        """Count accounts and keep the first of those that drift."""
        for account in accounts:
            self.accounts += 1
            key = account.kind, account.quantity
            self.drift[key] = self.drift.get(key, 0) + abs(account.drift)
            self.drifted += bool(account.drift)
            if account.drift and len(self.drifting) < DRIFTING_MAX:
                self.drifting.append(account)


class Reconciliation:
    """Compares for one worker; `drift` has by kind and quantity how far all accounts together were off last time."""

    def __init__(
        self,
        book: Book,
        journal: Journal,
        now_us: Callable[[], int],
        controls: Controls,
        adjusting: Adjustments,
        find_ledger: Callable[[], LedgerClient | None],
        publish: Callable[[dict[str, Any]], None] = lambda signal: None,
    ) -> None:
        self._publish = publish
        self._book = book
        self._journal = journal
        self._now_us = now_us
        self._controls = controls
        self._adjusting = adjusting
        self._find_ledger = find_ledger
        self._one_at_a_time = asyncio.Lock()
        self.drift: dict[tuple[str, str], int] = {}

    async def run(
        self, runtimes: Mapping[str, RuntimeSpec], sample: Sample, actor: str, *, mend: bool, rebase: bool
    ) -> Result:
        """Compare everything; `mend` posts correction rows, `rebase` takes what runtimes have now for settled.

        Drift is a `signal` row and stays in `drift` until the next time. LedgerUnavailable, QueryFailed, JournalError.
        """
        async with self._one_at_a_time:
            client = await asyncio.to_thread(self._find_ledger)
            if client is None:
                raise LedgerUnavailable("no ledger process runs on this home: start `bursar up`")
            at = reconcile.cut(self._book, self._journal.writer, self._journal.tail_seq, self._now_us() // US)
            found = await asyncio.to_thread(_compared, client, at)
            for name, spec in runtimes.items():
                try:
                    found.take(await self._of_runtime(client, name, spec, sample, actor, rebase=rebase))
                except NotComparable as why:
                    found.not_compared.append(f"runtime {name}: {why}")
            self.drift = found.drift
            self._announce(found.drifting)
            mended = self._mend(found.drifting, actor) if mend else 0
        shown = tuple(_view(account) for account in found.drifting)
        return Result(at.writer, at.seq, found.accounts, found.drifted, mended, shown, tuple(found.not_compared))

    async def _of_runtime(
        self, client: LedgerClient, name: str, spec: RuntimeSpec, sample: Sample, actor: str, *, rebase: bool
    ) -> tuple[Account, ...]:
        """A runtime beside the ledger since its baseline, which is taken now when there is none that holds."""
        if not spec.speaks_vllm:
            raise NotComparable("it does not serve the counters of vLLM")
        if self._book.is_shared:
            raise NotComparable("other gateways of the shared book may use it too, and it counts for all together")
        now, seq = await self._at_rest(name, spec, sample)
        base = await asyncio.to_thread(_baseline, client, name)
        why = _unfit(base, now, self._journal.writer)
        if base is None or why:
            self._record_baseline(name, Baseline(self._journal.writer, seq, now), actor, why)
            raise NotComparable(f"{why}; what it has counted until now is the baseline of the next time")
        accounts = await asyncio.to_thread(_of_runtime, client, name, base, seq, now)
        drift = {account.quantity: account.drift for account in accounts if account.drift}
        if rebase and drift:
            self._record_baseline(name, Baseline(self._journal.writer, seq, now), actor, f"drift set aside: {drift}")
        return accounts

    async def _at_rest(self, name: str, spec: RuntimeSpec, sample: Sample) -> tuple[Totals, int]:
        """What a runtime has counted and the last record of the journal, at a moment when neither moves."""
        last: Totals | None = None
        for _ in range(SAMPLES_MAX):
            if any(hold.row.get("runtime") == name for hold in self._book.holds.values()):
                raise NotComparable("requests are in flight on it")
            before = self._journal.tail_seq
            totals = await sample(spec)
            if totals == last:
                # Nothing was counted since the sample before, so what the runtime has is that of the rows up to there.
                return totals, before
            last = totals
            await asyncio.sleep(0.1)
        raise NotComparable("it was not at rest")

    def _record_baseline(self, name: str, base: Baseline, actor: str, why: str) -> None:
        detail = {"writer": base.writer, "seq": base.seq, **base.totals._asdict(), "why": why}
        self._controls.record("runtime_baseline", actor, name, detail=detail)

    def _announce(self, drifting: Iterable[Account]) -> None:
        """Leave a `signal` row for each of the first accounts that drift."""
        for account in list(drifting)[:SIGNALS_MAX]:
            now_us = self._now_us()
            signal = {
                "ts_us": now_us,
                "event_id": uuid7(now_us // 1000),
                "name": "drift",
                "subject": account.subject,
                "level": "alarm",
                "value": account.drift,
                "detail": _view(account),
            }
            self._journal.append("signal", signal)
            self._publish(signal)

    def _mend(self, drifting: Iterable[Account], actor: str) -> int:
        """Raise the lower of each counter and its sum; returns how many were mended."""
        now_us = self._now_us()
        rows = []
        for account in drifting:
            if account.kind == COUNTER and account.charge is not None:
                missing = [account.charge._replace(amount=abs(account.drift))]
                make = adjustments.of_ledger if account.drift > 0 else adjustments.of_counters
                rows.append(make(missing, now_us))
        return self._adjusting.post(rows, reason="reconcile", actor=actor)


async def sample(spec: RuntimeSpec) -> Totals:
    """What a vLLM, or the simulator, says at `/metrics` that it has counted; NotComparable."""
    try:
        counters = (await scrape(spec.base_url)).counters
    except ScrapeFailed as error:
        raise NotComparable(str(error)) from error
    return Totals(counters.prompt_tokens_total, counters.generation_tokens_total, counters.prefix_cache_hits)


def _compared(client: LedgerClient, at: Cut) -> _Found:
    """Counters and journal beside the ledger, which has everything up to the cut when this begins to count."""
    client.flush()
    found = _Found()
    ask = _asking(client)
    found.take(reconcile.counters(ask, at))
    found.take(reconcile.store(ask, at.writer, at.seq))
    return found


def _of_runtime(client: LedgerClient, name: str, base: Baseline, seq: int, now: Totals) -> tuple[Account, ...]:
    client.flush()
    return reconcile.runtime(_asking(client), name, base, seq, now)


def _baseline(client: LedgerClient, name: str) -> Baseline | None:
    """The baseline of a runtime that was recorded last."""
    rows = client.rows(_BASELINE_SQL, runtime=name)
    if not rows:
        return None
    detail = orjson.loads(rows[0]["detail"])
    totals = Totals(*(detail[name] for name in Totals._fields))
    return Baseline(detail["writer"], detail["seq"], totals)


def _unfit(base: Baseline | None, now: Totals, writer: str) -> str:
    """Why a baseline says nothing about what a runtime has counted since."""
    if base is None:
        return "it has no baseline yet"
    if base.writer != writer:
        return "its baseline is of a journal that is gone"
    if any(now_has < had for now_has, had in zip(now, base.totals, strict=True)):
        return "it was started again"
    return ""


def _asking(client: LedgerClient) -> reconcile.Ask:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        return client.rows(sql, **parameters)

    return ask


def _view(account: Account) -> dict[str, Any]:
    return {
        "kind": account.kind,
        "subject": account.subject,
        "quantity": account.quantity,
        "ledger_least": account.least,
        "ledger_most": account.most,
        "found": account.found,
        "drift": account.drift,
    }
