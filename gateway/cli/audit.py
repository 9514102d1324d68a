"""`bursar ledger verify`, `prove`, `checkpoint` and `consistency`: what an auditor asks of a home."""

import json
import sys
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, printable
from gateway.cli.store import ledger_of
from gateway.home import Home
from ledger.checkpoints import BlockFile, Checkpoint, CheckpointLog, CheckpointsDamaged, Leaves, LeavesMissing, parse
from ledger.client import LedgerClient, QueryFailed
from ledger.exports import FolderTarget
from ledger.merkle import BLOCK_LEAVES, Tree
from ledger.proofs import NotProvable, Prover, newest_checkpoint
from ledger.segments import first_seq, segment_paths
from ledger.signing import is_signed, key_id_of, public_key_in
from ledger.verifier import AMOUNTS, Failed, Record, Report, verified_journal

WriterOption = Annotated[str, typer.Option("--writer", help="One writer, where there are several.")]

_BY_REQUEST_SQL = "SELECT writer, seq FROM usage WHERE request_id = {id:String} AND event_id = {id:String} LIMIT 2"
_BY_EVENT_SQL = "SELECT writer, seq FROM events WHERE event_id = {id:String} ORDER BY writer, seq LIMIT 2"
_ROWS = "FROM usage WHERE writer = {writer:String} AND seq >= {first:UInt64} AND seq <= {last:UInt64}"
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in AMOUNTS)
_CHARGES_SQL = f"""
SELECT charge.1 AS budget, charge.2 AS counter, toUnixTimestamp(charge.3) AS start_s, charge.4 AS resource,
       sum(charge.5) AS amount
{_ROWS.replace("FROM usage", "FROM usage ARRAY JOIN charges AS charge")} GROUP BY ALL
"""


def verify(
    with_store: Annotated[bool, typer.Option("--store", help="Compare the store with the journal too.")] = False,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A file of exported checkpoints to hold the journal to; may be repeated.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="Trust this public key instead of those in the home; may be repeated.")
    ] = None,
    writer: WriterOption = "",
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Read every journal of the home and hold it to what was signed; the store is not opened unless asked for."""
    at_home = Home.at(home)
    exported = [each for path in checkpoint or () for each in _checkpoints_in(path)]
    reports, failures = {}, {}
    opened = ledger_of(home, config) if with_store else nullcontext()
    with opened as client:
        if client is not None:
            _ship(client)
        for name in [writer] if writer else _writers(at_home, exported):
            try:
                reports[name] = _verified(at_home, name, exported, key or [], client)
            except (Failed, LeavesMissing, CheckpointsDamaged) as failed:
                failures[name] = str(failed)
    if as_json:
        print_json({"verified": {name: each.as_json() for name, each in reports.items()}, "failed": failures})
    else:
        for name, report in reports.items():
            console().print(f"{name}:", *map(printable, report.lines()), sep="\n  ", markup=False, soft_wrap=True)
    for name, why in failures.items():
        complain(f"{name} is NOT PROVED: {why}")
    if not failures and not reports:
        complain(f"there is no journal and nothing signed in {at_home.path}")
    if failures or not reports:
        raise typer.Exit(1)


def prove(
    event_id: Annotated[str, typer.Argument(help="The event's id; of a request's usage it is the request id.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Prove it to this checkpoint instead of the newest.")] = None,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
) -> None:
    """Print the proof that a record is in what was signed; `ledger/verifier.py proof` checks it offline."""
    at_home = Home.at(home)
    with ledger_of(home, config) as client:
        client.flush()
        found = client.rows(_BY_REQUEST_SQL, id=event_id) or client.rows(_BY_EVENT_SQL, id=event_id)
        if len(found) != 1:
            complain(f"there is no event {event_id}" if not found else f"several events are called {event_id}")
            raise typer.Exit(1)
        prover = Prover(at_home.path, found[0]["writer"], _leaves(client))
        signed = (
            newest_checkpoint(at_home.path, prover.writer) if checkpoint is None else _checkpoints_in(checkpoint)[-1]
        )
        proof = prover.inclusion(int(found[0]["seq"]), signed)
    if "payload" not in proof:
        complain("the record's bytes went with the journal's retention: this proves its hash alone")
    _print_line(proof)


def checkpoint(
    writer: WriterOption = "",
    to: Annotated[Path | None, typer.Option("--to", help="A folder to copy it to, with its key.")] = None,
    public: Annotated[bool, typer.Option("--key", help="Print the public key that signed it instead.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Print the newest signed checkpoint, as one line of JSON."""
    at_home = Home.at(home)
    name = _one_writer(at_home, writer)
    newest = newest_checkpoint(at_home.path, name)
    pem = (at_home.checkpoints / f"{newest.key_id}.pub").read_bytes()
    if to is not None:
        FolderTarget(to, pem).deliver(newest)
    sys.stdout.buffer.write(pem if public else newest.line())


def consistency(
    size1: Annotated[int, typer.Argument(help="The size of the older checkpoint.")],
    size2: Annotated[int, typer.Argument(help="The size of the newer checkpoint.")],
    writer: WriterOption = "",
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
) -> None:
    """Print the proof that the records of one checkpoint begin those of another."""
    at_home = Home.at(home)
    name = _one_writer(at_home, writer)
    with ledger_of(home, config) as client:
        _print_line(Prover(at_home.path, name, _leaves(client)).consistency(size1, size2))


def _verified(
    home: Home, writer: str, exported: Iterable[Checkpoint], keys: Iterable[Path], client: LedgerClient | None
) -> Report:
    """One writer's journal against the checkpoints of the home and those that were exported, and against the store."""
    directory = home.journal / writer
    paths = segment_paths(directory)
    if not paths:
        raise Failed(f"{directory} holds no journal segment")
    own = CheckpointLog(home.checkpoints / f"{writer}.jsonl").read()
    given = [each for each in exported if each.writer == writer]
    _check_signatures([*own, *given], home, keys)
    first = first_seq(paths[0])
    gone = -(-(first - 1) // BLOCK_LEAVES)
    blocks = BlockFile(home.checkpoints / f"{writer}.tree").read(0, gone)
    # The tree file is no evidence: what is signed of records that are kept has to confirm it.
    begins_at = first if len(blocks) == gone else 1
    own_json, given_json = ([each.as_json() for each in checkpoints] for checkpoints in (own, given))
    if client is None:
        return verified_journal(directory, given_json, older=own_json, begins_at=begins_at, blocks=blocks)
    stored = _StoredEvents(writer, _leaves(client), first, blocks, [*own, *given])
    both = [*own_json, *given_json]  # the store ties those before the first record kept to the tree
    report = verified_journal(directory, older=both, begins_at=begins_at, blocks=blocks, seen=stored.compare)
    stored.check_end(report)
    _compare_sums(writer, client, report)
    return report


def _check_signatures(checkpoints: list[Checkpoint], home: Home, trusted: Iterable[Path]) -> None:
    """Failed unless every checkpoint is signed: by a key that is trusted, or else by the one beside it in the home."""
    if not checkpoints:
        raise Failed("nothing is signed, so nothing shows a careful change")
    keys = {key_id_of(public): public for public in map(public_key_in, trusted)}
    for key_id in {each.key_id for each in checkpoints} if not keys else ():
        keys[key_id] = public_key_in(home.checkpoints / f"{key_id}.pub")
    for each in checkpoints:
        public = keys.get(each.key_id)
        if public is None or not is_signed(each.message(), each.signature, public):
            raise Failed(f"the checkpoint at record {each.size} is not signed by a key that is trusted here")


class _StoredEvents:
    """The `events` of a store beside a journal that is being read."""

    def __init__(
        self, writer: str, leaves: Leaves, first: int, blocks: list[bytes], checkpoints: Iterable[Checkpoint]
    ) -> None:
        """Compares at once what the journal has no more, which its blocks and older checkpoints stand for."""
        self._newest = leaves.newest(writer)
        end = len(blocks) * BLOCK_LEAVES
        older = sorted((each for each in checkpoints if 0 < each.size <= end), key=lambda each: each.size)
        _compare_beginning(leaves.read(writer, 0, end), blocks, older)
        self._roots = len(older)
        self._sha256s = chain.from_iterable(leaves.read(writer, first - 1, self._newest))

    def compare(self, record: Record) -> None:
        """Failed when the store has another record in this one's place."""
        if record.seq <= self._newest and next(self._sha256s) != record.sha256:
            raise Failed(f"the store has another record {record.seq} than the journal")

    def check_end(self, report: Report) -> None:
        """Failed when the store goes on where the journal ends; notes what was compared."""
        if self._newest > report.last_seq:
            raise Failed(f"the store has {self._newest} records, the journal ends at {report.last_seq}")
        report.notes.append(f"the store has the same records up to {self._newest}")
        if self._roots:
            report.notes.append(f"the store's records have the roots of the first {self._roots} checkpoints")


def _compare_beginning(pages: Iterable[list[bytes]], blocks: list[bytes], older: list[Checkpoint]) -> None:
    """Failed unless records have the hashes of these blocks, and the roots of these checkpoints, smallest first."""
    tree, waiting, wrong = Tree(), deque(older), []
    for page in pages:
        at = 0
        while at < len(page):
            end = min(len(page), at + waiting[0].size - tree.size) if waiting else len(page)
            known = tree.size // BLOCK_LEAVES
            for number, block in enumerate(tree.extend(page[at:end]), start=known):
                if block != blocks[number]:
                    first, last = number * BLOCK_LEAVES + 1, (number + 1) * BLOCK_LEAVES
                    raise Failed(f"the store has others than were signed in records {first} to {last}")
            at = end
            while waiting and waiting[0].size == tree.size:
                checkpoint = waiting.popleft()
                if (checkpoint.root, checkpoint.last_sha256) != (tree.root().hex(), page[end - 1].hex()):
                    wrong.append(checkpoint.size)
    # Only now, because a block says more closely where a record differs.
    if wrong:
        raise Failed(f"the store's first {wrong[0]} records have not the root or last hash that was signed")


def _compare_sums(writer: str, client: LedgerClient, report: Report) -> None:
    """Failed unless the rows of `usage` add up to what the journal's records add up to."""
    _ship(client)
    span = {"writer": writer, "first": str(report.first_seq), "last": str(report.last_seq)}
    by_status = client.rows(f"SELECT status, count() AS n, {_SUMS} {_ROWS} GROUP BY status", **span)
    charges = client.rows(_CHARGES_SQL, **span)
    keys = ("budget", "counter", "start_s", "resource")
    told: dict[str, tuple[Counter[Any], Counter[Any]]] = {
        "rows": (report.rows, Counter({row["status"]: int(row["n"]) for row in by_status})),
        "amounts": (
            report.amounts,
            Counter({name: sum(int(row[name]) for row in by_status) for name in AMOUNTS}),
        ),
        "charges": (
            report.charges,
            Counter({tuple(row[key] for key in keys): int(row["amount"]) for row in charges}),
        ),
    }
    for what, (journal, store) in told.items():
        differing = [key for key in {*journal, *store} if journal[key] != store[key]]
        if differing:
            key = min(differing, key=str)
            raise Failed(f"the store's {what} of {key} are {store[key]}, the journal's {journal[key]}")
    report.notes.append("the store's usage adds up to the same rows, amounts and charges")


def _ship(client: LedgerClient) -> None:
    """Has what is in the journals now shipped as far as it can be: what cannot be is what is being looked for."""
    try:
        client.flush()
    except QueryFailed as failed:
        complain(f"the store is behind the journals: {failed}")


def _leaves(client: LedgerClient) -> Leaves:
    def select(sql: str, **parameters: object) -> list[list[str]]:
        answer = client.query(sql, **{name: str(value) for name, value in parameters.items()})
        return [line.split("\t") for line in answer.decode().splitlines()]

    return Leaves(select)


def _print_line(proof: dict[str, Any]) -> None:
    """Prints a proof as it is to be kept: as small as it can be."""
    sys.stdout.write(json.dumps(proof, separators=(",", ":"), ensure_ascii=False) + "\n")


def _checkpoints_in(path: Path) -> list[Checkpoint]:
    """The checkpoints of an exported file. CheckpointsDamaged when a line is none, or there is none; Exit."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        complain(f"the checkpoints in {path} cannot be read: {error.strerror}")
        raise typer.Exit(2) from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse(line))
        except ValueError as error:
            raise CheckpointsDamaged(f"{path}: line {number} is no checkpoint ({error})") from error
    if not found:
        raise CheckpointsDamaged(f"{path} holds no checkpoint")
    return found


def _writers(home: Home, exported: Iterable[Checkpoint]) -> list[str]:
    """All of which there is a journal or something signed: a journal that is gone must not pass in silence."""
    journals = {path.name for path in home.journal.iterdir() if path.is_dir() and segment_paths(path)}
    signed = {path.stem for path in home.checkpoints.glob("*.jsonl")}
    return sorted({*journals, *signed, *(each.writer for each in exported)})


def _one_writer(home: Home, asked: str) -> str:
    """The writer asked for, or the only one that has checkpoints."""
    known = sorted(path.stem for path in home.checkpoints.glob("*.jsonl"))
    if not known or (asked and asked not in known):
        raise NotProvable(f"no checkpoint was signed for {asked or 'any writer'} in {home.checkpoints}")
    if not asked and len(known) > 1:
        raise typer.BadParameter(f"say which --writer: {', '.join(known)}")
    return asked or known[0]
