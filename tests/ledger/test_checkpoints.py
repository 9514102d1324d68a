"""Checkpoints read back as they were written, and their log is bounded without losing the newest."""

import json
import os

import pytest

from ledger.checkpoints import Checkpoint, CheckpointLog, CheckpointsDamaged, parse, thinned
from ledger.verifier import check_signature
from tests.ledger.signed_journal import PUBLIC_KEY, hashes, signed

SECOND_US = 1_000_000


@pytest.fixture
def folder(tmp_path):
    """Where checkpoints lie."""
    return tmp_path / "checkpoints"


def test_a_log_is_bounded_and_keeps_the_newest_and_the_last_of_each_hour(folder):
    folder.mkdir()
    log = CheckpointLog(folder / "w.jsonl", lines_max=100, newest_kept=20)
    made = [Checkpoint("w", size, "", "", size * 60 * SECOND_US, "") for size in range(1, 1001)]
    for checkpoint in made:
        log.append(checkpoint)
        assert len(log.read()) <= 100
    sizes = [checkpoint.size for checkpoint in log.read()]
    assert sizes == sorted(sizes)
    assert sizes[-20:] == list(range(981, 1001))
    hours = [size // 60 for size in sizes[:-90]]
    assert len(hours) == len(set(hours))
    assert CheckpointLog(folder / "w.jsonl").read() == log.read()


def test_thinning_keeps_within_its_bound_over_centuries():
    daily = [Checkpoint("w", day, "", "", day * 86_400 * SECOND_US, "") for day in range(1, 5_000)]
    for lines_max in (50, 200, 4_000, 9_999):
        kept = thinned(daily, lines_max, newest_kept=10)
        assert len(kept) <= lines_max
        assert kept[-10:] == daily[-10:]
    assert thinned(daily, 9_999, 10) == daily


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"format":"bursar-checkpoint/1"}',
        b'{"format":"x","size":1}',
        signed("w", hashes(3)).line().replace(b'"size":3', b'"size":"3"').strip(),
        signed("w", hashes(3)).line().replace(b'"writer":"w"', b'"writer":7').strip(),
    ],
)
def test_what_is_no_checkpoint_is_refused(line, folder):
    with pytest.raises(ValueError):
        parse(line)
    folder.mkdir()
    (folder / "w.jsonl").write_bytes(line + b"\n")
    with pytest.raises(CheckpointsDamaged, match="line 1 is no checkpoint"):
        CheckpointLog(folder / "w.jsonl").read()


def test_a_checkpoint_reads_back_as_it_was_written():
    checkpoint = signed("gateway-ü", hashes(3))
    assert parse(checkpoint.line()) == checkpoint
    check_signature(json.loads(checkpoint.line()), PUBLIC_KEY)
    assert os.linesep.encode() not in checkpoint.message()
