"""Every record of every journal is in the store exactly once, whatever is killed in between."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ledger.destination import InsertFailed
from ledger.segments import segment_paths
from ledger.shipper import Shipper
from ledger.store import Store
from ledger.tables import BY_KIND

# Ships, and kills itself with -9 when it is about to make its Nth insert.
KILLED_SHIPPER = """
import os, signal, sys
from pathlib import Path
from ledger.shipper import Shipper
from ledger.store import Store

class MortalStore(Store):
    left = int(sys.argv[2])
    def insert(self, table, rows, token):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().insert(table, rows, token)

home = Path(sys.argv[1])
Shipper(home / "journal", MortalStore(f"chdb://{home}/ledger")).round()
"""


@pytest.fixture
def store(tmp_path):
    opened = Store(f"chdb://{tmp_path}/ledger")
    yield opened
    opened.close()


def totals(store):
    """Rows, different rows and highest seq of the tables that the tests fill."""
    return {
        table: store.select(f"SELECT count(), uniqExact(writer, seq), max(seq) FROM {table}")[0]  # noqa: S608 constants
        for table in ("usage", "hold", "events")
    }


def test_every_kind_finds_its_table(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    journal.append("usage", usage_row(event_id="u1"))
    journal.append("hold", {"action": "opened", "hold_id": "h1", "charges": [["b", "c", 60, "tokens", 5]], "cap": 7})
    journal.append("decision_inputs", {"input_digest": "d1", "allow": True, "reasons": "[]", "input": '{"a":1}'})
    journal.append("control", {"action": "grant", "grant": {"budget": "b"}, "detail": "{}"})
    journal.append("signal", {"name": "overage", "value": 0.5})
    journal.append("tool_call", {"tool": "search", "reasons": "[]"})
    journal.append("runtime_sample", {"runtime": "sim", "busy_us": 7, "idle_us": -1, "sources": "{}"})
    journal.append("experiment", {"stage": "replay"})
    shipper = Shipper(tmp_path / "journal", store)
    shipper.round()
    assert shipper.shipped() == {"gateway-0": 9}
    assert shipper.lag() == {"gateway-0": (0, 0.0)}
    counts = store.row_counts()
    assert {name: counts[name] for name in BY_KIND} == dict.fromkeys(BY_KIND, 1)
    kinds = store.select("SELECT kind FROM events ORDER BY seq")
    names = ["snapshot", "usage", "hold", "decision_inputs", "control", "signal", "tool_call", "runtime_sample"]
    names.append("experiment")
    assert kinds == [(name,) for name in names]
    usage = store.select("SELECT writer, seq, input_tokens, stream, toString(charges) FROM usage")
    assert usage == [("gateway-0", 2, 100, True, "[('team-day','acme/search','2025-11-20 00:00:00','tokens',110)]")]
    hashes = store.select("SELECT length(sha256) FROM events WHERE match(sha256, '^[0-9a-f]{64}$')")
    assert hashes == [(64,)] * 9


def test_killed_between_any_two_tables_nothing_is_lost_or_doubled(make_journal, usage_row, tmp_path):
    journal = make_journal()
    for inserts in (1, 2, 1, 2):
        for _ in range(40):
            journal.append("hold", {"action": "opened"})
            journal.append("usage", usage_row())
        journal.append("hold", {"action": "renewed"})
        command = [sys.executable, "-c", KILLED_SHIPPER, str(tmp_path), str(inserts)]
        assert subprocess.run(command, cwd=Path.cwd(), timeout=60).returncode == -9
    store = Store(f"chdb://{tmp_path}/ledger")
    try:
        before = store.row_counts()
        Shipper(tmp_path / "journal", store).round()
        assert before["events"] == 0
        assert before["usage"] > 0
        tail = journal.tail_seq
        assert totals(store) == {"usage": (160, 160, tail - 1), "hold": (164, 164, tail), "events": (tail, tail, tail)}
    finally:
        store.close()


def test_a_shipper_that_starts_again_goes_on_where_the_store_ends(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    for _ in range(3):
        for _ in range(200):
            journal.append("usage", usage_row())
        Shipper(tmp_path / "journal", store).round()
    assert totals(store)["usage"] == (600, 600, journal.tail_seq)
    assert totals(store)["events"] == (journal.tail_seq,) * 3


def test_a_batch_over_a_change_of_month_arrives_whole(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    new_year_us = 1_767_225_600_000_000
    for n in range(101):
        journal.append("usage", usage_row(ts_us=new_year_us + (n - 50) * 1_000_000))
        journal.append("hold", {"action": "opened", "ts_us": new_year_us - 10})
    shipper = Shipper(tmp_path / "journal", store)
    shipper.round()
    assert shipper.stalled() == {}
    tail = journal.tail_seq
    assert totals(store) == {"usage": (101, 101, tail - 1), "hold": (101, 101, tail), "events": (tail, tail, tail)}


def test_only_old_shipped_segments_go_and_never_the_last(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    for _ in range(800):
        journal.append("usage", usage_row())
    journal.sync()
    paths = segment_paths(journal.directory)
    for path in paths[:2] + paths[-1:]:
        os.utime(path, (0, time.time() - 1000))
    Shipper(tmp_path / "journal", store, retention_s=500).round()
    assert segment_paths(journal.directory) == paths[2:]
    Shipper(tmp_path / "journal", store, retention_s=0).round()
    assert segment_paths(journal.directory) == paths[-1:]
    journal.append("usage", usage_row())
    Shipper(tmp_path / "journal", store, retention_s=0).round()
    assert totals(store)["events"] == (journal.tail_seq,) * 3


def test_a_journal_that_was_replaced_is_not_taken_for_the_old_one(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    for _ in range(10):
        journal.append("usage", usage_row())
    Shipper(tmp_path / "journal", store).round()
    journal.close()
    for path in segment_paths(journal.directory):
        path.unlink()
    other = make_journal()
    for count in (3, 20):
        for _ in range(count):
            other.append("usage", usage_row())
        shipper = Shipper(tmp_path / "journal", store)
        shipper.round()
        assert "another writer name" in shipper.stalled()["gateway-0"]
        assert not shipper.flush(0.01)
    assert totals(store)["events"] == (11, 11, 11)


def test_a_journal_that_is_replaced_while_it_is_shipped_is_noticed(make_journal, usage_row, store, tmp_path):
    journal, shipper = make_journal(), Shipper(tmp_path / "journal", store)
    for _ in range(10):
        journal.append("usage", usage_row())
    shipper.round()
    journal.close()
    shutil.rmtree(journal.directory)
    other = make_journal()
    other.append("usage", usage_row())
    shipper.round()
    assert "does not join on" in shipper.stalled()["gateway-0"]
    assert shipper.lag()["gateway-0"].rows == 2
    assert totals(store)["events"] == (11, 11, 11)


def test_a_stalled_journal_that_is_moved_away_keeps_nobody_waiting(make_journal, usage_row, store, tmp_path):
    journal, shipper = make_journal(), Shipper(tmp_path / "journal", store)
    for _ in range(5):
        journal.append("usage", usage_row())
    [path] = segment_paths(journal.directory)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"acme"', b'"evil"', 1))
    shipper.round()
    assert list(shipper.stalled()) == ["gateway-0"]
    journal.directory.rename(tmp_path / "away")
    shipper.round()
    assert shipper.stalled() == {}
    path = tmp_path / "away" / path.name
    path.write_bytes(whole)
    path.parent.rename(journal.directory)
    shipper.round()
    assert totals(store)["events"] == (6, 6, 6)


def test_a_damaged_journal_stalls_alone(make_journal, usage_row, store, tmp_path):
    good, bad = make_journal("good"), make_journal("bad")
    for journal in (good, bad):
        for _ in range(5):
            journal.append("usage", usage_row())
    path = segment_paths(bad.directory)[0]
    whole = path.read_bytes()
    at = whole.rindex(b'"seq":4') - 20
    path.write_bytes(whole[:at] + b"!" + whole[at + 1 :])
    shipper = Shipper(tmp_path / "journal", store)
    shipper.round()
    assert shipper.shipped()["good"] == 6
    assert "record 4" in shipper.stalled()["bad"] or "record 3" in shipper.stalled()["bad"]


def test_lag_counts_what_is_not_in_the_store(make_journal, usage_row, store, tmp_path):
    journal = make_journal()
    shipper = Shipper(tmp_path / "journal", store)
    shipper.round()
    for _ in range(30):
        journal.append("usage", usage_row(ts_us=time.time_ns() // 1000 - 5_000_000))
    rows, age_s = shipper.lag()["gateway-0"]
    assert rows == 30
    assert 5 <= age_s < 10
    shipper.round()
    assert shipper.lag() == {"gateway-0": (0, 0.0)}


def test_a_large_snapshot_is_an_event_without_its_body(make_journal, store, tmp_path):
    make_journal(segment_bytes=1 << 20, snapshot=lambda: {"spent": ["x" * 100] * 1000, "org": "acme"})
    Shipper(tmp_path / "journal", store).round()
    assert store.select("SELECT kind, org, seq, toYear(ts) >= 2025 FROM events") == [("snapshot", "acme", 1, 1)]


def test_waits_between_retries_grow_to_a_bound_and_start_small_again(
    store, make_journal, usage_row, tmp_path, monkeypatch
):
    make_journal().append("usage", usage_row())
    now_s, tried_s, tokens = [0.0], [], set()

    def refuse(table, rows, token):
        tried_s.append(now_s[0])
        tokens.add((token, rows))
        raise InsertFailed("no space")

    shipper = Shipper(tmp_path / "journal", store, monotonic=lambda: now_s[0], chance=lambda: 1.0)
    with monkeypatch.context() as broken:
        broken.setattr(store, "insert", refuse)
        while now_s[0] < 130:
            shipper.round()
            now_s[0] += 0.5
    assert tried_s == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5]
    assert len(tokens) == 1
    assert shipper.stalled() == {"gateway-0": "no space"}
    now_s[0] += 30
    shipper.round()
    assert shipper.stalled() == {}
    assert totals(store)["usage"] == (1, 1, 2)


def test_a_batch_is_told_in_order_once_it_is_in_every_table(store, make_journal, usage_row, tmp_path):
    journal, told = make_journal(), []

    def sealed(batch):
        assert store.watermarks(batch.writer)["events"] == batch.last_seq
        told.append((batch.first_seq, batch.last_seq))

    shipper = Shipper(tmp_path / "journal", store, sealed=sealed)
    for _ in range(3):
        journal.append("usage", usage_row())
        shipper.round()
    assert told == [(1, 2), (3, 3), (4, 4)]
