"""What was used again stands apart from what was used once, and misses say which of the two needs room."""

from runtime.eviction.arc import ArcEviction


class Cache:
    """A cache of single keys, each held only while it is asked for."""

    def __init__(self, capacity: int) -> None:
        self.policy, self.capacity, self.now = ArcEviction(capacity), capacity, 0
        self.keys: set[object] = set()

    def ask(self, *keys: object) -> int:
        """How many of the keys were found."""
        found = 0
        for key in keys:
            self.now += 1
            if key in self.keys:
                found += 1
                self.policy.hit(key, self.now)
                self.policy.hold(key)
            else:
                if len(self.keys) == self.capacity:
                    self.keys.remove(self.policy.evict(self.now))
                self.policy.insert(key, self.now)
                self.keys.add(key)
            self.policy.release(key, self.now)
        return found


def test_a_scan_does_not_push_out_what_is_used_again() -> None:
    cache = Cache(4)
    cache.ask("a", "b", "a", "b", *range(100))
    assert {"a", "b"} <= cache.keys


def test_what_is_missed_after_one_use_makes_room_for_its_like() -> None:
    """What was used once has the place of the newest; each miss of what was given up so gives it one place more."""
    cache = Cache(4)
    cache.ask("a", "b", "a", "b", "c", "d", "c", "d")
    cache.ask(1, 2)
    assert {1, 2} & cache.keys == {2}
    cache.ask(1, 3, 4, 5)
    assert {3, 4, 5} & cache.keys == {4, 5}


def test_what_is_missed_after_many_uses_takes_the_room_back() -> None:
    cache = Cache(4)
    cache.ask("a", "b", "a", "b", "c", "d", "c", "d")
    cache.ask(1, 2, 1, 3, 4, 5)
    cache.ask("a", "b", 6, 7, 8)
    assert {6, 7, 8} & cache.keys == {8}


def test_where_one_list_is_held_the_other_gives() -> None:
    policy = ArcEviction(2)
    policy.insert("once", 0)
    policy.insert("again", 0)
    policy.hit("again", 1)
    policy.release("again", 2)
    assert policy.evict(3) == "again"
