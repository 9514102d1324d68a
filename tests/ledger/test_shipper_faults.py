"""What keeps records from the store is said in one line, changes nothing, and is over when it is mended."""

import errno
import logging
import os
import resource
import subprocess
import sys
import tempfile
from itertools import count

import pytest

from ledger.disk import SystemDisk
from ledger.migrations import shipped
from ledger.segments import segment_paths
from ledger.shipper import Shipper
from ledger.store import Store

HUGE = 1 << 60


@pytest.fixture
def store(tmp_path):
    opened = Store(f"chdb://{tmp_path}/ledger")
    yield opened
    opened.close()


@pytest.fixture
def shipper(store, tmp_path):
    """Its clock goes on by a minute with each look, so that no retry has to be waited for."""
    minutes = count(0, 60)
    return Shipper(tmp_path / "journal", store, monotonic=lambda: float(next(minutes)))


def fill(journal, usage_row, number=50):
    for _ in range(number):
        journal.append("hold", {"action": "opened"})
        journal.append("usage", usage_row())


def is_exact(store, usage, tail):
    levels = [store.select(f"SELECT sum(rows) FROM usage_by_{level}") for level in ("minute", "hour", "day")]  # noqa: S608
    counts = store.row_counts()
    return levels == [[(usage,)]] * 3 and (counts["usage"], counts["hold"], counts["events"]) == (usage, usage, tail)


@pytest.mark.parametrize("table", ["usage", "hold", "events", "usage_by_minute", "usage_by_hour", "usage_by_day"])
def test_a_full_disk_under_any_table_is_one_line_and_then_over(
    store, shipper, make_journal, usage_row, tmp_path, caplog, table
):
    """The engine itself refuses: it is told to want more room than any disk has, where the part would be written."""
    journal = make_journal()
    fill(journal, usage_row)
    shipper.round()
    store.execute(f"ALTER TABLE {table} MODIFY SETTING min_free_disk_bytes_to_perform_insert = {HUGE}")
    fill(journal, usage_row)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            shipper.round()
    assert not shipper.flush(0.01)
    [line] = caplog.messages
    assert "NOT_ENOUGH_SPACE" in shipper.stalled()["gateway-0"] or "space" in line
    assert line.startswith("the journal gateway-0 is not shipped: Code: ")
    assert "\n" not in line
    assert shipper.lag()["gateway-0"].rows == 100
    store.execute(f"ALTER TABLE {table} RESET SETTING min_free_disk_bytes_to_perform_insert")
    shipper.round()
    assert shipper.stalled() == {}
    assert is_exact(store, 100, journal.tail_seq)


@pytest.mark.parametrize("table", ["usage", "usage_by_hour"])
def test_a_full_disk_and_then_another_process_is_as_if_nothing_had_been(
    store, shipper, make_journal, usage_row, tmp_path, table
):
    journal = make_journal()
    store.execute(f"ALTER TABLE {table} MODIFY SETTING min_free_disk_bytes_to_perform_insert = {HUGE}")
    fill(journal, usage_row)
    shipper.round()
    assert list(shipper.stalled()) == ["gateway-0"]
    store.execute(f"ALTER TABLE {table} RESET SETTING min_free_disk_bytes_to_perform_insert")
    fill(journal, usage_row)
    Shipper(tmp_path / "journal", store).round()
    assert is_exact(store, 100, journal.tail_seq)


def test_no_room_for_the_file_through_which_an_insert_travels_stalls_too(store, shipper, make_journal, usage_row):
    journal = make_journal(segment_bytes=1 << 20)
    fill(journal, usage_row)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        shipper.round()
        stalled = shipper.stalled()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(stalled) == ["gateway-0"]
    assert stalled["gateway-0"] == f"{tempfile.gettempdir()}: File too large; free space there"
    shipper.round()
    assert is_exact(store, 50, journal.tail_seq)


class FullDisk(SystemDisk):
    """Takes nothing more, and does not say of which file that is."""

    def sync(self, fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_is_said_with_the_journal_that_lies_on_it(store, make_journal, tmp_path):
    journal = make_journal()
    shipper = Shipper(tmp_path / "journal", store, disk=FullDisk())
    shipper.round()
    said = f"{journal.directory}: No space left on device; free space there or mend the disk"
    assert shipper.stalled() == {"gateway-0": said}


def test_a_damaged_journal_goes_on_when_its_file_is_put_back(store, shipper, make_journal, usage_row, caplog):
    journal = make_journal()
    fill(journal, usage_row)
    path = segment_paths(journal.directory)[0]
    whole = path.read_bytes()
    at = whole.index(b'"seq":40') + 20
    path.write_bytes(whole[:at] + b"!" + whole[at + 1 :])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            shipper.round()
    assert len(caplog.messages) == 1
    assert "record 40 at byte" in caplog.messages[0]
    assert "restore the file from a copy" in caplog.messages[0]
    path.write_bytes(whole)
    shipper.round()
    assert shipper.stalled() == {}
    assert is_exact(store, 50, journal.tail_seq)


def run(*arguments):
    """The exit code of the ledger process, and what it said."""
    done = subprocess.run([sys.executable, "-m", "ledger", *map(str, arguments)], capture_output=True, timeout=60)
    return done.returncode, done.stderr.decode()


def test_a_store_that_is_locked_ends_the_process_with_a_line(store, tmp_path):
    code, said = run("--home", tmp_path)
    assert code == 3
    assert said.startswith(f"bursar ledger: the ledger {tmp_path}/ledger is open in process ")
    assert said.count("\n") == 1


def test_a_schema_from_the_future_ends_the_process_with_a_line_and_stays_as_it_is(tmp_path):
    store = Store(f"chdb://{tmp_path}/ledger")
    newest = len(shipped()) + 1
    store.execute(f"INSERT INTO schema_migrations (version, name, sha256) VALUES ({newest}, 'more', 'x')")  # noqa: S608
    store.close()
    code, said = run("--home", tmp_path)
    assert code == 3
    assert (
        said == f"bursar ledger: the ledger's schema is at version {newest}, newer than this Bursar: upgrade Bursar\n"
    )


def test_a_server_that_is_away_ends_the_process_with_a_line(tmp_path):
    said = "bursar ledger: the ClickHouse server 127.0.0.1:1 is away: Connection refused\n"
    assert run("--home", tmp_path, "--url", "clickhouse://127.0.0.1:1/x") == (3, said)


@pytest.mark.parametrize("url", ["clickhouse://u:p@h/db", "clickhouse://h/a/b", "mysql://h/db"])
def test_a_wrong_url_is_wrong_usage(tmp_path, url):
    code, said = run("--home", tmp_path, "--url", url)
    assert (code, said.count("\n")) == (2, 1)
