"""Runtime samples: a `runtime_sample` row of each runtime every so often, written by one gateway of the home.

A row says what the runtime did since the row before, from its telemetry, and what its counters say now. A runtime that
does not answer has a row with `state` away, so that a gap in its account has a reason. All that a row says of the
account is a difference to the row before, but for `in_flight_us`: that is the level now.
"""

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from domain.ids import uuid7
from gateway.claims import Tally
from gateway.engine_accounts import DONE_MAX, EngineAccounts
from gateway.governance import Governance
from gateway.scraping import Scraped, ScrapeFailed, scrape
from ledger.client import LedgerClient, LedgerUnavailable
from runtime.port import RuntimeSpec

ANSWERS, AWAY = "answers", "away"
_LAST_SQL = """
SELECT sources FROM runtime_sample WHERE runtime = {runtime:String} AND sources != '' ORDER BY ts DESC, seq DESC LIMIT 1
"""


class Lease:
    """The right to write samples, of which a home has one; it is free again when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def is_ours(self) -> bool:
        """Whether this process has it, or can take it now."""
        if self._file >= 0:
            return True
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._file = file
        return True

    def close(self) -> None:
        """Leave it to another."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def accounted(find_ledger: Callable[[], LedgerClient | None], runtime: str) -> dict[str, int]:
    """Up to when each engine of a runtime is in the ledger's samples, by its source; LedgerUnavailable, QueryFailed."""
    client = find_ledger()
    if client is None:
        raise LedgerUnavailable("no ledger process runs on this home")
    client.flush()  # what the process before has written is then there
    rows = client.rows(_LAST_SQL, runtime=runtime)
    sources = orjson.loads(rows[0]["sources"]) if rows else {}
    return {str(source): int(until_us) for source, until_us in sources.items()}


class Sampler:
    """Writes the samples of one runtime, of whose tally `foreign_us` was sampled before."""

    def __init__(self, of: Governance, replica: str, foreign_us: int = 0) -> None:
        self._of = of
        self._replica = replica
        self._foreign_us = foreign_us

    async def sample(
        self, spec: RuntimeSpec, engines: EngineAccounts | None, tally: Tally, gpus: int, *, is_ours: bool
    ) -> None:
        """Ask a runtime and write its row; while the journal has no room, the next row has what this one would have.

        Where the row is not ours but another gateway's to write, all is done but that, so that ours go on from here.
        """
        asked_us = self._of.now_us()
        scraped: Scraped | None = None
        if spec.speaks_vllm:
            try:
                scraped = await scrape(spec.base_url)
            except ScrapeFailed:
                scraped = None
        if engines is not None and scraped is not None:
            is_busy = bool(scraped.counters.running or scraped.counters.waiting)
            engines.rest(asked_us, scraped.engines, is_busy=is_busy)
        if (scraped is None and engines is None) or (is_ours and not self._of.has_room()):
            return
        row = {**self._head(spec, gpus), **_shown(scraped)}
        if engines is not None:
            row |= self._account(engines, tally)
        if is_ours:
            self._of.journal.append("runtime_sample", row)

    def _head(self, spec: RuntimeSpec, accelerators: int) -> dict[str, Any]:
        now_us = self._of.now_us()
        return {
            "ts_us": now_us,
            "event_id": uuid7(now_us // 1000),
            "runtime": spec.id,
            "replica": self._replica,
            "accelerators": accelerators,
            "nusd_per_hour": spec.rate.nusd_per_hour,
        }

    def _account(self, engines: EngineAccounts, tally: Tally) -> dict[str, Any]:
        """What the engines did since the row before; the next one goes on from here."""
        accelerators, new = engines.since_asked()
        foreign_us, self._foreign_us = tally.foreign_us - self._foreign_us, tally.foreign_us
        in_flight_us = sum(account.in_flight_us for account in engines.accounts.values())
        named = ("steps", "wall_us", "capacity_us", "busy_us", "idle_us", "lost_us", "attributed_us", "unattributed_us")
        return {
            "accelerators": accelerators,
            **{name: getattr(new, name) for name in (*named, "kv_block_us", "energy_uj", "losses", "uncertain")},
            "foreign_us": min(foreign_us, DONE_MAX),
            "in_flight_us": min(in_flight_us, DONE_MAX),
            "energy_source": engines.power.source if new.energy_uj else "",
            "nvml_busy_permille": engines.power.busy_permille,
            "sources": orjson.dumps(engines.known_until_us()).decode(),
        }


def _shown(scraped: Scraped | None) -> Mapping[str, Any]:
    if scraped is None:
        return {"state": AWAY, "nvml_busy_permille": -1}
    counters = scraped.counters
    return {
        "state": ANSWERS,
        "running": counters.running,
        "waiting": counters.waiting,
        "kv_usage_permille": round(1_000 * counters.kv_cache_usage),
        "prompt_tokens": counters.prompt_tokens_total,
        "generation_tokens": counters.generation_tokens_total,
        "prefix_queries": counters.prefix_cache_queries,
        "prefix_hits": counters.prefix_cache_hits,
        "preemptions": scraped.preemptions,
        "nvml_busy_permille": -1,
    }
