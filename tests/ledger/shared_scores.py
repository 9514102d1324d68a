"""Replicas that share scores over a real Redis whose time the test sets."""

from collections.abc import Iterable, Sequence

import redis

from ledger.shared_scores import SCRIPT, Ask, Score, SharedScores, Table, Terms
from tests.ledger.shared_book import RUN, TIME, Clock

HALF_LIFE_S = 100
SCORE_MAX = 10**12
FADED = 1_000
TERMS = Terms(HALF_LIFE_S, SCORE_MAX, FADED)
TABLES = (Table("team", 5), Table("run", 5))
MANY = (Table("team", 3_000), Table("run", 3_000))
POINT = 1_000_000


class Knows:
    """What one replica knows: it takes what it is told where that is more, as the gateway's tracker does."""

    def __init__(self) -> None:
        self.scores: dict[tuple[int, str], tuple[int, int]] = {}

    def scored(self) -> Iterable[tuple[int, str]]:
        return list(self.scores)

    def score(self, table: int, key: str, now_s: int) -> int:
        score, at_s = self.scores.get((table, key), (0, 0))
        return int(score * 2 ** -(max(0, now_s - at_s) / HALF_LIFE_S))

    def put(self, table: int, key: str, score: int, now_s: int) -> None:
        self.scores[table, key] = score, now_s


class Sharer:
    """One replica; `deliver` is the network between it and the store."""

    def __init__(
        self, client: "redis.Redis[bytes]", clock: Clock, tables: Sequence[Table] = TABLES, terms: Terms = TERMS
    ) -> None:
        assert SCRIPT.count(TIME) == SCRIPT.count(RUN) == 1
        source = SCRIPT.replace(TIME, "{ARGV[2], ARGV[3]}")
        self.script = client.register_script(source.replace(RUN, f"ARGV[4] == '' and {RUN} or 'run_id:' .. ARGV[4]"))
        self.clock = clock
        self.own = Knows()
        self.shared = SharedScores(tables, self.own, terms)

    @property
    def now_s(self) -> int:
        return self.clock.now_ms // 1000

    def add(self, key: str, amount: int, table: int = 0) -> None:
        """Something happens here."""
        self.own.put(table, key, self.score(key, table) + amount, self.now_s)
        self.shared.add(table, key, amount, self.now_s)

    def score(self, key: str, table: int = 0) -> int:
        return self.own.score(table, key, self.now_s)

    def ask(self) -> Ask:
        return self.shared.build(self.now_s)

    def deliver(self, ask: Ask) -> list[bytes]:
        seconds, ms = divmod(self.clock.now_ms, 1000)
        answer: list[bytes] = self.script(keys=ask.keys, args=[ask.payload, seconds, ms * 1000, self.clock.run])
        return answer

    def take(self, reply: Sequence[bytes]) -> bool:
        """Take an answer up; whether there is more."""
        scores, is_more = self.shared.apply(reply, self.now_s)
        for each in scores:
            self._raise(each)
        return is_more

    def _raise(self, told: Score) -> None:
        if told.score > self.own.score(told.table, told.key, self.now_s):
            self.own.put(told.table, told.key, told.score, self.now_s)

    def exchange(self, rounds_max: int = 20) -> int:
        """Exchange until there is no more to tell; how often that was."""
        for number in range(1, rounds_max + 1):
            if not self.take(self.deliver(self.ask())):
                return number
        raise AssertionError(f"{rounds_max} exchanges and no end")


def told(*sharers: Sharer) -> list[int]:
    """What each says of `a` when all have told all."""
    for each in (*sharers, *sharers):
        each.exchange()
    return [each.score("a") for each in sharers]
