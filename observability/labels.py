"""Label values that cannot grow without bound."""

from collections.abc import Iterable

OTHER = "other"
TALLY_KEYS_MAX = 64
"""Distinct keys that one tally keeps before the rest is counted as `other`."""


class LabelBounds:
    """The values that one label may take; every other value is shown as `other`.

    Values are only ever added, because a counter must not go backwards when a configuration drops one.
    """

    __slots__ = ("_allowed", "_max_values")

    def __init__(self, max_values: int) -> None:
        if max_values < 1:
            raise ValueError("a label needs room for at least one value")
        self._max_values = max_values
        self._allowed: set[str] = set()

    def allow(self, values: Iterable[str]) -> list[str]:
        """Admit these values as far as there is room, and return those that found none."""
        left_out = []
        for value in values:
            if value in self._allowed:
                continue
            if len(self._allowed) < self._max_values:
                self._allowed.add(value)
            else:
                left_out.append(value)
        return left_out

    def __contains__(self, value: str) -> bool:
        return value in self._allowed

    def bound(self, value: str) -> str:
        """The value itself where it is allowed, else `other`."""
        return value if value in self._allowed else OTHER


class Tally:
    """Counts per key, where the first keys seen are kept and the rest share `other`."""

    __slots__ = ("_counts", "_keys_max")

    def __init__(self, keys_max: int = TALLY_KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *key: str, count: int = 1) -> None:
        """Add to the count of a key, one part per label."""
        if key not in self._counts and len(self._counts) >= self._keys_max:
            key = (OTHER,) * len(key)
        self._counts[key] = self._counts.get(key, 0) + count

    def items(self) -> list[tuple[tuple[str, ...], int]]:
        """Every key with its count."""
        return list(self._counts.items())
