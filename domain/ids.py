"""Identifiers: UUIDv7 strings, which sort by the time they were made."""

import os
import random
import time

# Identifiers must not collide; nothing is protected by their being hard to guess.
_random = random.Random()  # noqa: S311 seeded by the system, used for uniqueness only
# A forked child would go on with its parent's numbers and make the same identifiers.
os.register_at_fork(after_in_child=_random.seed)
_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 (RFC 9562) as its 36-character string; `now_ms` is Unix time, by default the system clock's."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    bits = _random.getrandbits(74)
    value = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | (bits >> 62) << 64 | bits & 0x3FFF_FFFF_FFFF_FFFF | _VERSION_AND_VARIANT
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
