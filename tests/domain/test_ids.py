"""Identifiers: version 7 UUIDs that sort by when they were made and do not repeat."""

import subprocess
import sys
import uuid

from hypothesis import given
from hypothesis import strategies as st

from domain.ids import uuid7

moments = st.integers(0, (1 << 48) - 1)


@given(moments)
def test_an_id_is_a_version_7_uuid_that_holds_its_millisecond(now_ms: int) -> None:
    text = uuid7(now_ms)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_ms


@given(moments, moments)
def test_ids_sort_by_the_time_they_were_made(one_ms: int, other_ms: int) -> None:
    if one_ms < other_ms:
        assert uuid7(one_ms) < uuid7(other_ms)


def test_ids_of_one_millisecond_differ() -> None:
    assert len({uuid7(1_772_280_000_000) for _ in range(10_000)}) == 10_000


def test_forked_processes_make_different_identifiers() -> None:
    # Of a process without threads: a fork of one that has them may copy a lock that nobody will release.
    script = """
import os
from domain.ids import uuid7
reads, writes = os.pipe()
made = [uuid7(1)]
for _ in range(4):
    if os.fork() == 0:
        os.write(writes, "".join(f"{uuid7(1)}\\n" for _ in range(10)).encode())
        os._exit(0)
for _ in range(4):
    os.wait()
os.close(writes)
print(made[0], os.read(reads, 65536).decode())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert len(done.stdout.split()) == len(set(done.stdout.split())) == 41
