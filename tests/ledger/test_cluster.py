"""The schema for a cluster follows the shipped one, statement by statement, and is SQL to the engine.

There is no cluster here: that these statements work on one was not tried, only that they are parsed, and what they say.
"""

import re

import pytest

from ledger.cluster import BadCluster, rendered, statements
from ledger.migrations import Migration, shipped
from ledger.rollups import LEVELS
from ledger.store import Store
from ledger.tables import IN_ORDER


@pytest.fixture(scope="module")
def made():
    return list(statements(shipped(), "main"))


def starting(made, head):
    [found] = [statement for statement in made if statement.startswith(head)]
    return found


def test_the_engine_reads_every_statement(made, tmp_path):
    store = Store(f"chdb://{tmp_path}/ledger")
    try:
        for statement in made:
            ddl, _, values = statement.partition(" VALUES ")
            assert store.select(f"EXPLAIN AST {ddl}{' VALUES ' + values if values else ''}"), statement
    finally:
        store.close()


@pytest.mark.parametrize("table", [*(table.name for table in IN_ORDER), *(level.table for level in LEVELS)])
def test_every_table_is_replicated_on_its_shard_and_distributed(made, table):
    local = starting(made, f"CREATE TABLE IF NOT EXISTS {table}_local ON CLUSTER 'main'")
    assert re.search(r"ENGINE = Replicated(Aggregating)?MergeTree\('/clickhouse/tables/\{shard\}/", local)
    assert " replicated_deduplication_window = 1000" in local
    assert "non_replicated" not in local
    distributed = starting(made, f"CREATE TABLE IF NOT EXISTS {table} ON CLUSTER 'main' AS {table}_local")
    keys = dict.fromkeys(("events", "decision_inputs", "control", "runtime_sample"), "writer")
    key = keys.get(table, "org")
    assert distributed.endswith(f"Distributed('main', currentDatabase(), {table}_local, cityHash64({key}))")


def test_the_events_of_a_writer_stay_in_order_on_one_shard(made):
    assert "ORDER BY (writer, seq)" in starting(made, "CREATE TABLE IF NOT EXISTS events_local")


def test_views_stand_between_tables_of_the_same_shard(made):
    views = [statement for statement in made if "MATERIALIZED VIEW" in statement]
    assert len(views) == len(LEVELS)
    for view, level in zip(views, reversed(LEVELS), strict=True):
        assert f"TO {level.table}_local AS\n" in view
        assert f"FROM {level.source}_local AS source" in view


def test_a_new_column_comes_to_both_tables_and_a_setting_to_the_one_that_has_it(made):
    added = [statement for statement in made if "adjusts" in statement and statement.startswith("ALTER")]
    assert [statement.split()[2] for statement in added] == ["usage_local", "usage"]
    assert "CODEC" not in added[1]
    changed = [statement.split()[2] for statement in made if "MODIFY SETTING" in statement]
    assert changed == ["usage_local", "hold_local"]


def test_what_was_applied_is_remembered_as_the_ledger_process_looks_for_it(made):
    told = [statement for statement in made if statement.startswith("INSERT INTO schema_migrations")]
    assert len(told) == len(shipped())
    for statement, migration in zip(told, shipped(), strict=True):
        assert f"VALUES ({migration.version}, '{migration.name}', '{migration.sha256}')" in statement


def test_the_whole_is_one_script():
    script = rendered(shipped(), "main")
    assert script.count(";\n") == len(list(statements(shipped(), "main")))
    assert "internal_replication" in script


@pytest.mark.parametrize("name", ["", "a'b", "1x", "x" * 65, "a b"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(BadCluster):
        rendered(shipped(), name)


def test_a_migration_of_a_new_shape_is_not_passed_over():
    with pytest.raises(AssertionError, match="DROP TABLE usage"):
        list(statements([Migration(99, "0099_drop", "DROP TABLE usage")], "main"))
