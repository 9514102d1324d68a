"""A ledger of before signals named runs, and before tool calls were recorded, goes on with what it has."""

from collections.abc import Callable
from pathlib import Path

import pytest

import ledger.store
from ledger.access import Access
from ledger.cluster import statements
from ledger.journal import Journal
from ledger.migrations import shipped
from ledger.readers import Question, Readers
from ledger.shipper import Shipper
from ledger.store import Store
from ledger.tables import Table

BEFORE = 16


def old_store(home: Path) -> Store:
    """A store as the version before made it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger.store, "shipped", lambda: shipped()[:BEFORE])
        return Store(f"chdb://{home}/ledger")


def test_an_old_ledger_and_journal_go_on(make_journal: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make_journal()
    old = old_store(tmp_path)
    journal.append("signal", {"event_id": "old", "name": "overage", "org": "acme", "value": 5})
    columns = ("ts_us", "event_id", "name", "org", "writer", "seq")
    row = b'{"ts_us":1763596800000000,"event_id":"old","name":"overage","org":"acme","writer":"gateway-0","seq":2}'
    old.insert(Table("signal", columns), row, "gateway-0:2-2:signal:before")
    assert {str(row[0]) for row in old.select("SHOW TABLES")} & {"tool_call"} == set()
    old.close()

    journal.append("signal", {"event_id": "older-shape", "name": "drift", "org": "acme", "value": 1})
    new = {"event_id": "new", "name": "policy_violation", "org": "acme", "run_id": "run-1", "request_id": "r1"}
    journal.append("signal", {**new, "value": 7})
    journal.append("tool_call", {"org": "acme", "tool": "shell", "verdict": "blocked", "tool_kind": "function"})
    store = Store(f"chdb://{tmp_path}/ledger")
    try:
        assert store.migrated == [migration.name for migration in shipped()[BEFORE:]]
        shipper = Shipper(tmp_path / "journal", store)
        shipper.round()
        assert shipper.stalled() == {}
        rows = store.select("SELECT event_id, run_id, request_id FROM signal ORDER BY seq")
        assert rows == [("old", "", ""), ("older-shape", "", ""), ("new", "run-1", "r1")]
        assert store.select("SELECT tool, verdict, tool_kind FROM tool_call") == [("shell", "blocked", "function")]
        named = store.select("SELECT kind, request_id FROM events WHERE request_id != ''")
        assert named == [("signal", "r1")]
    finally:
        store.close()


def test_a_key_sees_the_tool_calls_of_its_organisation_only(
    make_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make_journal()
    for org in ("acme", "evil", "acme"):
        journal.append("tool_call", {"org": org, "tool": f"tool of {org}"})
    store = Store(f"chdb://{tmp_path}/ledger")
    try:
        Shipper(tmp_path / "journal", store).round()
        readers = Readers(store)
        sql = "SELECT DISTINCT tool FROM tool_call ORDER BY tool"
        acme = readers.query(Question(sql, "TSV", {}, {}), Access("acme", ("acme",)))
        everyone = readers.query(Question(sql, "TSV", {}, {}), Access("all", None))
        readers.close()
    finally:
        store.close()
    assert acme.split(b"\n") == [b"tool of acme", b""]
    assert everyone.split(b"\n") == [b"tool of acme", b"tool of evil", b""]


def test_on_a_cluster_both_columns_come_to_both_tables_and_a_row_of_tool_calls_lies_with_its_organisation() -> None:
    made = list(statements(shipped(), "main"))
    added = [each for each in made if each.startswith("ALTER TABLE signal")]
    assert [each.split()[2] for each in added] == ["signal_local", "signal"]
    assert all("run_id String" in each and "request_id String" in each for each in added)
    assert "CODEC" not in added[1]
    [distributed] = [each for each in made if each.startswith("CREATE TABLE IF NOT EXISTS tool_call ON")]
    assert distributed.endswith("tool_call_local, cityHash64(org))")
