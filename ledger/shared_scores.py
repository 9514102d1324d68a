"""Scores that fade, shared through the Redis of a shared book, so that what one replica sees counts at all of them.

A replica tells what it has added since its last exchange, and is told what has changed since. What fades fades by the
same factor everywhere, so the sum of what was added is the score of all. Nothing here ever lowers a score: where the
store has forgotten one, replicas raise it again to what they know.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
from redis.asyncio import Redis

from domain.ids import uuid7
from ledger.shard_names import text
from ledger.shards import BadReply

SCRIPT = (Path(__file__).parent / "lua" / "scores.lua").read_text(encoding="utf-8")
PREFIX = "bursar:{shared}:scores"
ADDS_MAX = 256
FLOORS_MAX = 256
ANSWER_MAX = 160
KEY_CHARS_MAX = 512
KEEP_S_MIN = 86_400
# After so many half-lives less than a billionth is left of a score.
_HALF_LIVES = 30


class Table(NamedTuple):
    """A table of scores, and how many keys it has at most."""

    name: str
    keys_max: int


class Score(NamedTuple):
    """The score of one key of one table, by the place of the table."""

    table: int
    key: str
    score: int


class Own(Protocol):
    """What a replica knows of the scores itself, in the same whole units, what it has yet to tell included."""

    def scored(self) -> Iterable[tuple[int, str]]:
        """Every table and key with a score."""
        ...

    def score(self, table: int, key: str, now_s: int) -> int:
        """The score of one of them now, 0 of one that is not there."""
        ...


class Terms(NamedTuple):
    """How scores fade and how high they can be; under `faded` one is nothing. All replicas should have the same."""

    half_life_s: int
    score_max: int
    faded: int


class Ask(NamedTuple):
    """One exchange as the script takes it."""

    keys: list[str]
    payload: bytes


@dataclass(slots=True)
class _Added:
    """What was added to one key and not yet told, as it was at `at_s`."""

    amount: int
    at_s: int


class SharedScores:
    """One replica's side of the shared scores; `exchange` is its only I/O."""

    def __init__(self, tables: Sequence[Table], own: Own, terms: Terms) -> None:
        self.terms = terms
        self.exchanges = 0
        self.dropped = 0
        self._tables = tuple(tables)
        self._own = own
        self._pending: list[dict[str, _Added]] = [{} for _ in tables]
        self._begin()

    def _begin(self) -> None:
        """Take a name under which the store has counted nothing yet; the first exchange under it only says so."""
        self._session, self._number, self._epoch = uuid7(), -1, ""
        self._sent: list[dict[str, int]] | None = None
        self._sent_at_s = 0
        self._claim()

    def _claim(self) -> None:
        """Raise all scores again to what is known here, and be told all from the beginning."""
        self._floors = {Score(table, key, 0): None for table, key in self._own.scored() if len(key) <= KEY_CHARS_MAX}
        self._since = [0] * len(self._tables)

    @property
    def is_told(self) -> bool:
        """Whether the store has been told all that there is to tell."""
        return self._sent is None and not self._floors and not any(self._pending)

    def add(self, table: int, key: str, amount: int, now_s: int) -> None:
        """Note what to add to a score; where more keys wait than the table may have, the first are not told at all."""
        pending = self._pending[table]
        if len(key) > KEY_CHARS_MAX:
            self.dropped += 1
            return
        added = pending.get(key)
        if added is None:
            if len(pending) >= self._tables[table].keys_max:
                del pending[next(iter(pending))]
                self.dropped += 1
            pending[key] = _Added(amount, now_s)
            return
        added.amount = min(self._faded(added.amount, now_s - added.at_s) + amount, self.terms.score_max)
        added.at_s = max(added.at_s, now_s)

    def build(self, now_s: int) -> Ask:
        """The next exchange; what it adds stays as it is until it is answered."""
        number = self._number + 1
        if self._sent is None:
            self._sent = self._take(now_s) if number else [{} for _ in self._tables]
            self._sent_at_s = now_s
        floors: list[list[object]] = [[] for _ in self._tables]
        for each in self._next_floors():
            floors[each.table] += [each.key, self._floor(each, now_s)]
        payload = {
            "number": number,
            "epoch": self._epoch,
            "half_ms": self.terms.half_life_s * 1000,
            "score_max": self.terms.score_max,
            "faded": self.terms.faded,
            "age_ms": max(0, now_s - self._sent_at_s) * 1000,
            "keep_s": max(KEEP_S_MIN, _HALF_LIVES * self.terms.half_life_s),
            "answer_max": ANSWER_MAX,
            "tables": [
                {
                    "since": since,
                    "keys_max": table.keys_max,
                    "adds": [each for pair in sent.items() for each in pair],
                    "floors": floor,
                }
                for table, since, sent, floor in zip(self._tables, self._since, self._sent, floors, strict=True)
            ],
        }
        tables = (f"{PREFIX}:{table.name}{part}" for table in self._tables for part in ("", ":order"))
        return Ask([f"{PREFIX}:state", f"{PREFIX}:session:{self._session}", *tables], orjson.dumps(payload))

    def apply(self, reply: Sequence[bytes], now_s: int) -> tuple[list[Score], bool]:
        """What the answer to the last exchange says of scores, with what is yet to be told; and whether there is more.

        BadReply where it is no answer; then nothing has changed here.
        """
        if len(reply) == 2 and reply[0] == b"lost":
            self._take_back(now_s)
            self._begin()
            return [], True
        epoch, found, since, is_cut = self._read(reply)
        self._number, self._sent = self._number + 1, None
        if epoch != self._epoch:
            self._epoch = epoch
            self._claim()
            return [], True
        for each in self._next_floors():
            del self._floors[each]
        self._since = since
        scores = [each._replace(score=each.score + self._untold(each, now_s)) for each in found]
        return scores, is_cut or not self.is_told

    def _next_floors(self) -> list[Score]:
        return list(self._floors)[:FLOORS_MAX] if self._epoch else []

    def _take(self, now_s: int) -> list[dict[str, int]]:
        """What the next exchange adds: of each table in turn, the oldest first."""
        taken: list[dict[str, int]] = [{} for _ in self._tables]
        room = ADDS_MAX
        for pending, sent in zip(self._pending, taken, strict=True):
            for key in list(pending)[:room]:
                added = pending.pop(key)
                amount = self._faded(added.amount, now_s - added.at_s)
                if amount > 0:
                    sent[key] = amount
                    room -= 1
        return taken

    def _take_back(self, now_s: int) -> None:
        """Have what was sent, and did not come to count, told again."""
        passed_s = now_s - self._sent_at_s
        for table, sent in enumerate(self._sent or ()):
            for key, amount in sent.items():
                self.add(table, key, self._faded(amount, passed_s), now_s)
        self._sent = None

    def _floor(self, of: Score, now_s: int) -> int:
        """What is known of a score here beside what is yet to be added to it."""
        untold = self._untold(of, now_s)
        if self._sent is not None:
            untold += self._faded(self._sent[of.table].get(of.key, 0), now_s - self._sent_at_s)
        return max(0, min(self._own.score(of.table, of.key, now_s), self.terms.score_max) - untold)

    def _untold(self, of: Score, now_s: int) -> int:
        added = self._pending[of.table].get(of.key)
        return 0 if added is None else self._faded(added.amount, now_s - added.at_s)

    def _faded(self, score: int, passed_s: int) -> int:
        return score if passed_s <= 0 else int(score * 2.0 ** -(passed_s / self.terms.half_life_s))

    def _read(self, reply: Sequence[bytes]) -> tuple[str, list[Score], list[int], bool]:
        """The epoch, the scores, the versions up to which they are known, and whether there are more; BadReply."""
        try:
            if reply[0] != b"ok":
                raise BadReply(f"the store answered {reply[0]!r:.100} to an exchange of scores")
            epoch, at, is_cut = text(reply[2]), 3, False
            found, since = [], list(self._since)
            for table in range(len(self._tables)):
                count, at = int(reply[at]), at + 1
                is_cut = is_cut or count >= ANSWER_MAX
                for _ in range(count):
                    found.append(Score(table, text(reply[at]), int(reply[at + 1])))
                    since[table], at = int(reply[at + 2]), at + 3
        except (ValueError, IndexError, TypeError) as error:
            raise BadReply(f"the store answered an exchange of scores out of form: {error}") from None
        if at != len(reply):
            raise BadReply(f"the store answered {len(reply) - at} values too many to an exchange of scores")
        return epoch, found, since, is_cut


async def exchange(client: "Redis", of: SharedScores, now_s: int) -> tuple[list[Score], bool]:
    """One round trip: tell what there is to tell, and be told; whether there is more. Raises what `FAULTS` names."""
    ask = of.build(now_s)
    reply = await client.register_script(SCRIPT)(keys=ask.keys, args=[ask.payload])
    of.exchanges += 1
    return of.apply(reply, now_s)
