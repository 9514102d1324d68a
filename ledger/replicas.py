"""Replicas: those that the store of a shared book has seen, what each has leased and not spent, and its release.

It is for an operator, from outside, while replicas go on exchanging: each key is looked at and changed by one script.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline

from domain.ids import uuid7
from ledger.leases import FENCE
from ledger.shard_names import NAMES
from ledger.windows import parse_window

SCRIPT = (Path(__file__).parent / "lua" / "forget.lua").read_text(encoding="utf-8")
QUIET_S = 60
SHOWN_MAX = 1_000
_SHARDS = 64  # asked in one round trip
_COUNTERS = 64  # in one script, which nothing else of the server runs beside
_US = 1_000_000


class ReplicaActive(Exception):
    """A replica that was to be forgotten has spoken to the store; the message says what to do."""


class Replica(NamedTuple):
    """One replica, how long the store has not heard of it, and the shards that know it."""

    name: str
    unseen_s: float
    tags: list[str]


@dataclass(slots=True)
class Unspent:
    """What a replica has leased, and is not known to have spent, in windows that still count.

    On how many counters, how much of each resource, and the first SHOWN_MAX of the counters.
    """

    counters: int = 0
    amounts: dict[str, int] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, cells: Sequence[str], now_s: int) -> None:
        """Count what was found on one counter, by the start of its cells."""
        budget, resource, text, counter = name.split("|", 3)
        window = parse_window(text)
        starts, amounts = map(int, cells[::2]), map(int, cells[1::2])
        counted = (each for start_s, each in zip(starts, amounts, strict=True) if window.cell_gone_s(start_s) > now_s)
        amount = sum(counted)
        if not amount:
            return
        self.counters += 1
        self.amounts[resource] = self.amounts.get(resource, 0) + amount
        if len(self.shown) < SHOWN_MAX:
            where = {"budget": budget, "counter": counter, "resource": resource, "window": text}
            self.shown.append({**where, "amount": amount})


def seen_replicas(client: "Redis") -> list[Replica]:
    """Every replica that any shard has seen in its present epoch, the one longest unseen first."""
    seconds, micros = client.time()
    unseen: dict[str, float] = {}
    tags: dict[str, dict[str, None]] = {}
    names = dict.fromkeys(client.sscan_iter(NAMES, count=_SHARDS))
    for pages in _scanned(client, names, _scan_state):
        for tag, fields in pages:
            for key, seen_ms in fields.items():
                kind, _, name = key.partition("|")
                if kind == "seen":
                    unseen_s = max(0.0, seconds + micros / _US - int(seen_ms) / 1000)
                    unseen[name] = min(unseen.get(name, unseen_s), unseen_s)
                    tags.setdefault(name, {})[tag] = None
    return [
        Replica(name, unseen[name], list(tags[name])) for name in sorted(tags, key=lambda each: (-unseen[each], each))
    ]


def unspent(client: "Redis", replica: Replica) -> Unspent:
    """What a replica has leased and not spent, as the store knows it."""
    return _each_counter(client, replica, "look", "")


def forget(client: "Redis", replica: Replica) -> Unspent:
    """Let the others have what a replica has leased and not spent, and list it no more; what it has spent stays.

    Whatever it sent before is not taken any more. Raises ReplicaActive when it was seen less than QUIET_S ago, before
    anything is freed, or when it comes back meanwhile. It may be done again where it was interrupted.
    """
    if replica.unseen_s < QUIET_S:
        raise ReplicaActive(
            f"{replica.name} was seen {replica.unseen_s:.0f} s ago and may spend what it holds: stop it for good, and "
            f"forget it once it has not been seen for {QUIET_S} s"
        )
    # A fence of its own each time: what was sent after an earlier one must not pass this one.
    fence = f"{FENCE}{uuid7()}"
    # All shards first: one that has just seen it must be found before anything is freed in another.
    _each_shard(client, replica, "fence", fence)
    freed = _each_counter(client, replica, "free", fence)
    _each_shard(client, replica, "end", fence)
    return freed


def _each_shard(client: "Redis", replica: Replica, step: str, fence: str) -> None:
    """Take a step in every shard that has seen a replica; ReplicaActive."""
    script = client.register_script(SCRIPT)
    args: list[str | int] = [step, replica.name, fence, QUIET_S * 1000]
    for tags in _parts(replica.tags, _SHARDS):
        with client.pipeline(transaction=False) as pipeline:
            for tag in tags:
                script(keys=[_state(tag), f"{_index(tag, replica.name)}:answer"], args=args, client=pipeline)
            _check(replica, pipeline.execute())


def _each_counter(client: "Redis", replica: Replica, step: str, fence: str) -> Unspent:
    """Take a step on every counter of a replica, and sum up what it had there; ReplicaActive."""
    script = client.register_script(SCRIPT)
    total, now_s = Unspent(), client.time()[0]
    for asked in _indexed(client, replica):
        with client.pipeline(transaction=False) as pipeline:
            for tag, names in asked:
                keys = [_state(tag), *(f"bursar:{{{tag}}}:counter:{name}" for name in names)]
                script(keys=keys, args=[step, replica.name, fence], client=pipeline)
            answers = pipeline.execute()
        _check(replica, answers)
        for (_, names), answer in zip(asked, answers, strict=True):
            for name, cells in zip(names, answer, strict=True):
                total.add(name, cells, now_s)
    return total


def _indexed(client: "Redis", replica: Replica) -> Iterator[list[tuple[str, list[str]]]]:
    """The counters on which a replica may have something: as many of each shard as one script takes, of many shards."""

    def scan(pipeline: Pipeline, tag: str, cursor: int) -> None:
        pipeline.sscan(_index(tag, replica.name), cursor, count=_COUNTERS)

    for tags in _parts(replica.tags, _SHARDS):
        # A scan may give a name twice.
        done: dict[str, set[str]] = {tag: set() for tag in tags}
        for pages in _scanned(client, tags, scan):
            found = []
            for tag, page in pages:
                names = dict.fromkeys(name for name in page if name not in done[tag])
                done[tag].update(names)
                found += [(tag, part) for part in _parts(names, _COUNTERS)]
            yield found


def _scan_state(pipeline: Pipeline, tag: str, cursor: int) -> None:
    pipeline.hscan(_state(tag), cursor, count=_COUNTERS)


def _scanned(
    client: "Redis", tags: Iterable[str], scan: Callable[[Pipeline, str, int], None]
) -> Iterator[list[tuple[str, Any]]]:
    """Pages of something in each shard, beside its tag: those of many shards in one round trip."""
    for part in _parts(tags, _SHARDS):
        cursors = dict.fromkeys(part, 0)
        while cursors:
            with client.pipeline(transaction=False) as pipeline:
                for tag, cursor in cursors.items():
                    scan(pipeline, tag, cursor)
                found = dict(zip(cursors, pipeline.execute(), strict=True))
            yield [(tag, page) for tag, (_, page) in found.items()]
            cursors = {tag: cursor for tag, (cursor, _) in found.items() if cursor}


def _check(replica: Replica, answers: Iterable[Any]) -> None:
    if any(answer is None for answer in answers):
        raise ReplicaActive(
            f"{replica.name} has come back, or Redis has begun a new epoch: nothing more was freed; "
            "look at `bursar replica list` again"
        )


def _state(tag: str) -> str:
    return f"bursar:{{{tag}}}:state"


def _index(tag: str, replica: str) -> str:
    return f"bursar:{{{tag}}}:replica:{replica}"


def _parts(of: Iterable[str], count: int) -> Iterator[list[str]]:
    """All of them in order, so many at a time."""
    left = iter(of)
    while part := list(islice(left, count)):
        yield part
