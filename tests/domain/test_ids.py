"""Identifiers: version 7 UUIDs that sort by when they were made and do not repeat."""

import multiprocessing
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
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = [uuid7(1), *pool.map(uuid7, [1] * 40, chunksize=10)]
    assert len(set(made)) == 41
