"""What was used longest ago goes first."""

from runtime.eviction.lru import LruEviction


def released(*keys: str) -> LruEviction:
    policy = LruEviction()
    for now, key in enumerate(keys):
        policy.insert(key, now)
        policy.release(key, now)
    return policy


def test_gives_up_in_order_of_release() -> None:
    policy = released("a", "b", "c")
    assert [policy.evict(9) for _ in range(3)] == ["a", "b", "c"]


def test_a_hit_alone_makes_a_key_the_last() -> None:
    policy = released("a", "b", "c")
    policy.hit("a", 5)
    assert [policy.evict(9) for _ in range(3)] == ["b", "c", "a"]


def test_content_counts_as_used_until_it_is_released() -> None:
    policy = released("a", "b")
    policy.hold("a")
    policy.insert("c", 4)
    policy.release("c", 5)
    policy.release("a", 6)
    assert [policy.evict(9) for _ in range(3)] == ["b", "c", "a"]
