"""What comes again soon, by what was seen of its like, is kept."""

import random
from collections.abc import Iterable

from runtime.cache_replay import Access, replay
from runtime.eviction.arc import ArcEviction
from runtime.eviction.lru import LruEviction
from runtime.eviction.reuse import ReuseEviction

S = 1_000_000
Blocks = tuple[int, ...]


def hits(accesses: list[Access], capacity: int) -> tuple[int, int, int]:
    """What LRU, ARC and reuse find."""
    policies = LruEviction(), ArcEviction(capacity), ReuseEviction(capacity)
    lru, arc, reuse = (replay(accesses, capacity, policy).hits for policy in policies)
    return lru, arc, reuse


def each_second(requests: Iterable[Blocks]) -> list[Access]:
    return [Access(second * S, blocks) for second, blocks in enumerate(requests)]


def conversations(seed: int) -> list[Access]:
    """Users of whom most come back after a minute or two with some more text; each prompt's last block is cut short."""
    dice, fresh, accesses = random.Random(seed), iter(range(1_000_000_000)), []
    for _ in range(700):
        at_us, said = dice.randrange(3600) * S, tuple(next(fresh) for _ in range(dice.randint(2, 20)))
        while True:
            accesses.append(Access(at_us, (*said, next(fresh))))
            if dice.random() < 0.4:
                break
            said += tuple(next(fresh) for _ in range(dice.randint(1, 6)))
            at_us += round(dice.lognormvariate(4.5, 0.7) * S)
    return sorted(accesses)


def test_conversations_are_found_more_often_than_by_recency() -> None:
    for seed in (1, 2, 3):
        lru, arc, reuse = hits(conversations(seed), 600)
        assert reuse > max(lru, arc)


def test_a_round_longer_than_the_cache_is_found_in_part() -> None:
    """Whoever gives up what is used longest ago finds nothing of it, for that is what comes next."""
    rounds = [(text * 100, text * 100 + 1) for _ in range(40) for text in range(500)]
    lru, arc, reuse = hits(each_second(rounds), 300)
    assert (lru, arc) == (0, 0)
    assert reuse > 0.2 * 2 * len(rounds)


def test_scans_do_not_push_out_what_many_share() -> None:
    dice, fresh = random.Random(4), iter(range(10_000, 1_000_000_000))
    texts = [tuple(range(text * 100, text * 100 + 10)) for text in range(20)]
    asked = [
        texts[dice.randrange(20)] if dice.random() < 0.5 else tuple(next(fresh) for _ in range(30)) for _ in range(4000)
    ]
    lru, _, reuse = hits(each_second(asked), 300)
    assert reuse > 1.5 * lru


def test_what_changed_is_learned_anew() -> None:
    """After a time of rounds, conversations are found nearly as often as by one that has seen nothing else."""
    rounds = each_second((text * 100, text * 100 + 1) for _ in range(10) for text in range(400))
    begin_us = rounds[-1].at_us + S
    later = [Access(at_us + begin_us, tuple(block + 10**9 for block in blocks)) for at_us, blocks in conversations(5)]
    alone = replay(later, 600, ReuseEviction(600)).hits
    before = replay(rounds, 600, ReuseEviction(600)).hits
    both = replay(rounds + later, 600, ReuseEviction(600)).hits
    assert both - before > 0.85 * alone


def test_until_it_has_learned_it_gives_up_what_was_used_longest_ago() -> None:
    policy = ReuseEviction(8)
    for now, key in enumerate("abcd"):
        policy.insert(key, 10**now)
        policy.release(key, 10**now)
    assert [policy.evict(100_000) for _ in range(4)] == ["a", "b", "c", "d"]
