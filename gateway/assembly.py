"""Assembly: the parts of one gateway worker, put together from a home and a configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
import orjson
from redis.asyncio import Redis

from domain.charges import Charge
from domain.decision import Decision
from domain.ids import uuid7
from gateway.composition import budgets_of, bundle_of, catalogue_of, specs_of
from gateway.config import Config
from gateway.config_file import LoadedConfig
from gateway.governance import Governance
from gateway.home import Home
from gateway.pseudonyms import Pseudonyms
from gateway.recent import Recent
from gateway.repeats import Repeats
from gateway.views import remaining
from gateway.waiting import Waiting
from gateway.webhooks import Webhooks
from ledger import recovery
from ledger.book import Book
from ledger.client import open_ledger
from ledger.journal import HOLD_BYTES, Journal, JournalFailed, JournalFull
from ledger.lease_keeper import LeaseKeeper
from ledger.leases import Leases
from ledger.segments import replay_from_snapshot, segment_paths
from ledger.sequences import Sequences
from ledger.shared_store import ServerClock, connect
from observability import names
from observability.metrics import Metrics
from policy.decider import Decider, load_engine
from runtime.client import RuntimeClient

US = 1_000_000
REPLICA = "gateway"
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
    """A rebuilt book with its journal; `ownerless` holds were left by a process that died."""

    book: Book
    journal: Journal
    sequences: Sequences
    ownerless: int


class Link(NamedTuple):
    """The way to the store of a shared book: its clock, a client that asks and one that listens."""

    clock: ServerClock
    client: Redis
    listener: Redis


def open_book(
    home: Home, config: Config, pseudonyms: Pseudonyms, now_us: Callable[[], int], replica: str = REPLICA
) -> Opened:
    """Rebuild the book and open its journal: from the last snapshot and its tail, or else from the ledger's sums.

    Of a shared book only what this replica itself has spent: the store behind it has the rest.
    Raises JournalLocked when another gateway has it, JournalFailed when the disk does not give it back, CorruptJournal
    when it is damaged and LedgerUnavailable when the ledger goes away meanwhile.
    """
    now_s = now_us() // US
    is_shared = config.book.is_shared
    book, sequences = Book(budgets_of(config, pseudonyms), now_s, is_shared=is_shared), Sequences()
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
        snapshot=lambda: {**recovery.snapshot(book), "org_seqs": sequences.snapshot()},
    )
    try:
        ownerless = 0 if is_new else recovery.rebuild(book, replay_from_snapshot(directory), now_s, sequences)
    except OSError as failed:
        journal.close()
        raise JournalFailed(f"{directory}: {failed.strerror}; mend the disk, then start again") from failed
    return Opened(book, journal, sequences, ownerless)


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
    opened: Opened, home: Home, loaded: LoadedConfig, clients: Mapping[str, RuntimeClient], metrics: Metrics
) -> Governance:
    """The governance of a worker over open runtime clients; raises Unready or BundleError when something is missing."""
    config, limits = loaded.config, loaded.config.limits
    journal = opened.journal
    decider = Decider(
        load_engine(bundle_of(loaded)),
        cache_max=config.policy.cache_max,
        on_new_decision=lambda decision: record_decision(journal, len(opened.book.holds), decision),
    )
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
        hold_ttl_s=config.book.hold_ttl_s,
    )
    watch(of)
    return of


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


def record_decision(journal: Journal, open_holds: int, decision: Decision) -> None:
    """Write the input and the answer of a policy evaluation, so that it can be explained later.

    JournalFull where the room that is left belongs to the settlements of the holds that are open.
    """
    obligations = decision.obligations
    record = {
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
