"""Identifiers: UUIDv7 strings, which sort by the time they were made."""

import os
import time

_RANDOM_BYTES = 10


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 (RFC 9562) as its 36-character string; `now_ms` is Unix time, by default the system clock's."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(_RANDOM_BYTES), "big")
    high = (now_ms & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (random >> 68)
    low = 0x8000_0000_0000_0000 | (random & 0x3FFF_FFFF_FFFF_FFFF)
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
