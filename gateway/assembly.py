"""Assembly: the parts of one gateway worker, put together from a home and a configuration."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
from redis.asyncio import Redis

from domain.charges import Charge
from domain.ids import uuid7
from gateway.composition import budgets_of, catalogue_of, specs_of
from gateway.config import Config
from gateway.config_file import LoadedConfig
from gateway.governance import Governance
from gateway.home import Home, run_name
from gateway.noticing import Noticing
from gateway.prompt_blocks import PromptBlocks
from gateway.pseudonyms import Pseudonyms
from gateway.quality import Sampler, by_process
from gateway.recent import Recent
from gateway.repeats import Repeats
from gateway.risks import SCORING_APPLIED, Risks
from gateway.signals import Signals
from gateway.tool_calls import ToolLog
from gateway.views import remaining
from gateway.waiting import Waiting
from gateway.webhooks import Webhooks
from ledger import recovery
from ledger.book import Book
from ledger.client import open_ledger
from ledger.journal import HOLD_BYTES, Journal, JournalFailed, JournalFull, JournalLocked
from ledger.lease_keeper import LeaseKeeper
from ledger.leases import Leases
from ledger.segments import replay_from_snapshot, segment_paths
from ledger.sequences import Sequences
from ledger.shared_store import ServerClock, connect
from observability import names
from observability.metrics import Metrics
from policy.checks.process import CheckProcess
from policy.decider import Decider, Recorded
from policy.port import Engine
from runtime.client import RuntimeClient

US = 1_000_000
REPLICA = "gateway"
LOCK_WAIT_S = 5.0
_LOCK_POLL_S = 0.05
REDIS_PASSWORD = "BURSAR_REDIS_PASSWORD"
_UUID = "[0-9a-f]" * 8 + "-*-*-*-" + "[0-9a-f]" * 12
_UUID_CHARS = 37  # with the dash before it
_SPENT_SQL = """
SELECT charge.1 AS budget, charge.2 AS counter, toUnixTimestamp(charge.3) AS window_start_s, charge.4 AS resource,
       sum(charge.5) AS amount
FROM usage ARRAY JOIN charges AS charge
GROUP BY budget, counter, window_start_s, resource
HAVING amount != 0
"""


@dataclass(frozen=True, slots=True)
class Opened:
    """A rebuilt book with its journal, and risk as it stood; `ownerless` holds were left by a process that died.

    `prompts` hashes prompts with the home's key, where the configuration asks for that.
    """

    book: Book
    journal: Journal
    sequences: Sequences
    risks: Risks
    ownerless: int
    prompts: PromptBlocks | None


class Link(NamedTuple):
    """The way to the store of a shared book: its clock, a client that asks and one that listens."""

    clock: ServerClock
    client: Redis
    listener: Redis


def open_book(
    home: Home, config: Config, pseudonyms: Pseudonyms, now_us: Callable[[], int], replica: str = REPLICA
) -> Opened:
    """Rebuild the book and open its journal: from the last snapshot and its tail, or else from the ledger's sums.

    `bursar key create` and its like hold a journal for a moment: one that no running gateway has is waited for, 5 s.
    Of a shared book only what this replica itself has spent: the store behind it has the rest.
    Raises JournalLocked when another gateway has it, JournalFailed when the disk does not give it back, CorruptJournal
    when it is damaged and LedgerUnavailable when the ledger goes away meanwhile.
    """
    until_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return _opened(home, config, pseudonyms, now_us, replica)
        except JournalLocked:
            if home.alive(run_name(replica)) or time.monotonic() > until_s:
                raise
            time.sleep(_LOCK_POLL_S)


def _opened(home: Home, config: Config, pseudonyms: Pseudonyms, now_us: Callable[[], int], replica: str) -> Opened:
    now_s = now_us() // US
    is_shared = config.book.is_shared
    book, sequences = Book(budgets_of(config, pseudonyms), now_s, is_shared=is_shared), Sequences()
    risks = Risks()
    risks.now_us = now_us
    directory = writer_directory(home, replica)
    # A kill can fall between the folder and its first segment, which holds the first snapshot.
    is_new = not directory.exists() or not segment_paths(directory)
    if is_new and not is_shared:
        recovery.restore_spent(book, _spent_by_ledger(home, config), now_s)
    journal = Journal.open(
        directory,
        segment_bytes=config.ledger.segment_bytes,
        fsync_interval_ms=config.ledger.fsync_interval_ms,
        bytes_max=config.ledger.journal_bytes_max,
        snapshot=lambda: {
            **recovery.snapshot(book),
            "org_seqs": sequences.snapshot(),
            "risks": risks.snapshot(),
        },
    )
    try:
        records = () if is_new else replay_from_snapshot(directory)
        ownerless = 0 if is_new else recovery.rebuild(book, records, now_s, sequences, (risks.replay,))
    except OSError as failed:
        journal.close()
        raise JournalFailed(f"{directory}: {failed.strerror}; mend the disk, then start again") from failed
    prompts = PromptBlocks(home.secret("cache_salt")) if config.ledger.prompt_blocks else None
    return Opened(book, journal, sequences, risks, ownerless, prompts)


def writer_directory(home: Home, replica: str = REPLICA) -> Path:
    """The journal of a gateway of this home; a new one has a new name, because the ledger knows writers by theirs."""
    # Its spare lies beside it, and the journals of other replicas.
    named = (path for path in home.journal.glob(f"{replica}-{_UUID}") if replica_of(path.name) == replica)
    known = sorted(path for path in named if path.is_dir())
    return known[-1] if known else home.journal / f"{replica}-{uuid7()}"


def replicas(home: Home) -> list[str]:
    """The names of the gateways that have left a journal in this home, sorted."""
    return sorted({replica_of(path.name) for path in home.journal.glob(f"?*-{_UUID}") if path.is_dir()})


def replica_of(writer: str) -> str:
    """The name of the gateway that writes the journal of this name."""
    return writer[:-_UUID_CHARS]


async def link_of(config: Config, environ: Mapping[str, str]) -> Link | None:
    """The connections to the store of a shared book, and its clock as far as it answers; None for a book in memory."""
    if not config.book.is_shared:
        return None
    link = Link(ServerClock(), *connect(config.book.url, config.book.timeout_ms, environ.get(REDIS_PASSWORD)))
    await link.clock.ask(link.client)
    return link


def keeper_of(opened: Opened, config: Config, link: Link) -> LeaseKeeper:
    """What keeps the leases of a shared book."""
    leases = Leases(opened.book, opened.journal.writer, config.book.replicas, uuid7())
    return LeaseKeeper(opened.book, leases, *link)


def governance_of(
    opened: Opened,
    loaded: LoadedConfig,
    clients: Mapping[str, RuntimeClient],
    metrics: Metrics,
    engine: Engine,
    checks: CheckProcess,
) -> Governance:
    """The governance of a worker over open runtime clients, a policy engine and a process of checks; raises Unready."""
    config, limits = loaded.config, loaded.config.limits
    journal = opened.journal
    decider = Decider(
        engine,
        cache_max=config.policy.cache_max,
        record=lambda recorded: record_decision(journal, len(opened.book.holds), recorded),
        last_known_good_s=config.policy.last_known_good_s,
    )
    risks = opened.risks

    def has_room() -> bool:
        return journal.room_for(len(opened.book.holds))

    def now_us() -> int:
        return of.now_us()  # which may become the clock of a shared book

    signals = Signals(journal, has_room, now_us, risks.consume)
    tools = ToolLog(journal, has_room, now_us)
    of = Governance(
        book=opened.book,
        journal=journal,
        sequences=opened.sequences,
        decider=decider,
        catalogue=catalogue_of(loaded, clients),
        metrics=metrics,
        webhooks=Webhooks(config.webhooks, aiohttp.ClientSession),
        waiting=Waiting(limits.queued_max),
        recent=Recent(),
        repeats=Repeats(limits.repeats_max, limits.repeats_bytes_max, int(limits.repeats_ttl_s * US)),
        risks=risks,
        noticing=Noticing(signals, tools, Sampler(signals, config.quality, by_process(checks)), risks.is_outburst),
        hold_ttl_s=config.book.hold_ttl_s,
        prompts=opened.prompts,
    )
    risks.on_change = of.announce_risk
    risks.on_scoring = partial(record_scoring, of)
    watch(of)
    return of


def record_scoring(of: Governance, scoring: dict[str, Any]) -> None:
    """Write the scoring that risk goes by from now on, so that it can be told again from the journal."""
    now_us = of.now_us()
    row = {"ts_us": now_us, "event_id": uuid7(now_us // 1000), "action": SCORING_APPLIED, "actor": "policy"}
    of.journal.append("control", {**row, "subject": "risk", "digest": "", "detail": scoring})


async def open_clients(
    loaded: LoadedConfig, sim_urls: Mapping[str, str], environ: Mapping[str, str], old: Mapping[str, RuntimeClient]
) -> dict[str, RuntimeClient]:
    """A client for every configured runtime; those whose settings did not change go on."""
    clients = {}
    for spec in specs_of(loaded, sim_urls, environ):
        kept = old.get(spec.id)
        if kept is None or kept.spec != spec:
            kept = RuntimeClient(spec)
            await kept.open()
        clients[spec.id] = kept
    return clients


def record_decision(journal: Journal, open_holds: int, recorded: Recorded) -> None:
    """Write the input and the answer of a policy evaluation, so that it can be explained later.

    JournalFull where the room that is left belongs to the settlements of the holds that are open.
    """
    decision = recorded.decision
    obligations = decision.obligations
    record = {
        "entry": recorded.entry,
        "is_shadow": recorded.is_shadow,
        "engine_decision_id": decision.engine_decision_id,
        "decision_id": decision.decision_id,
        "input_digest": decision.input_digest,
        "policy_revision": decision.revision,
        "allow": decision.allow,
        "reasons": orjson.dumps([reason._asdict() for reason in decision.reasons]).decode(),
        "obligations": orjson.dumps(obligations).decode(),
        "input": decision.input_json.decode(),
    }
    if not journal.room_for(open_holds + 2 * len(decision.input_json) // HOLD_BYTES):
        raise JournalFull(f"{journal.directory}: no room for a decision; free disk space or raise bytes_max")
    journal.append("decision_inputs", record)


def watch(of: Governance) -> None:
    """Let the metrics read what their owners count anyway."""
    metrics = of.metrics
    metrics.watch(names.HOLDS_OPEN, lambda: len(of.book.holds))
    metrics.watch(names.QUEUE_WAITING, lambda: len(of.waiting))
    metrics.watch(names.JOURNAL_FSYNCS, lambda: of.journal.fsyncs_total)
    metrics.watch(names.JOURNAL_BYTES, lambda: of.journal.bytes_total)
    metrics.watch(names.POLICY_CACHE_HITS, lambda: of.decider.hits)
    metrics.watch(names.POLICY_CACHE_MISSES, lambda: of.decider.misses)
    metrics.watch(names.POLICY_AWAY, lambda: int(of.decider.engine.away_since_s is not None))
    metrics.watch(names.POLICY_BRIDGED, lambda: of.decider.bridged)
    metrics.watch(names.POLICY_SHADOW_FAILURES, lambda: of.decider.shadow_failures)
    metrics.watch(names.TOOL_CALLS_DROPPED, lambda: of.noticing.tools.dropped)
    metrics.watch(names.QUALITY_SKIPPED, lambda: of.noticing.sampler.skipped)
    metrics.watch(names.RISK_SCOPES_DROPPED, lambda: 0 if of.risks.tracker is None else of.risks.tracker.dropped)
    metrics.watch(names.WEBHOOK_EVENTS_DROPPED, lambda: sum(each.dropped for each in of.webhooks.tallies.values()))
    metrics.watch(names.WEBHOOK_EVENTS_FAILED, lambda: sum(each.failed for each in of.webhooks.tallies.values()))
    metrics.watch_revision(lambda: of.decider.revision)
    metrics.watch_budgets(lambda: remaining(of.book, of.now_us() // US))


def _spent_by_ledger(home: Home, config: Config) -> list[Charge]:
    """What the ledger says was charged: the book's source where a store is there and no journal is left."""
    folder = config.ledger.folder(home.path)
    if config.ledger.is_embedded and (not folder.exists() or not any(folder.iterdir())):
        return []
    with open_ledger(home.path, config.ledger.store_url(home.path)) as client:
        rows = client.rows(_SPENT_SQL)
    return [
        Charge(row["budget"], row["counter"], int(row["window_start_s"]), row["resource"], int(row["amount"]))
        for row in rows
    ]
