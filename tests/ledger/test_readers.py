"""Foreign statements run on connections that can only read, within bounds, on the rows that their key opens."""

import re
import threading
import time

import orjson
import pytest

from ledger.access import ORG_TABLES, Access
from ledger.readers import QueryFailed, Question, Readers
from ledger.store import Store
from ledger.tables import BY_KIND, EVENTS

HOME = Access("home", None, is_home=True)
ALL = Access("auditor", None)
ACME = Access("acme's", ("acme",))
ROWS = 2_000
TIME_US = 1_763_596_800_000_000
# The readers read these on behalf of anyone; the other tables of the schema have rows of nobody or of everybody.
CLOSED = {"control", "decision_inputs", "runtime_sample", "schema_migrations"}


def rows_of_two():
    """Rows of two organisations, turn and turn about, whose every name says whose they are."""
    for number in range(ROWS):
        org = ("acme", "evil")[number % 2]
        names = {name: f"{name}-{org}" for name in ("team", "app", "user", "model", "key_id")}
        yield {
            "ts_us": TIME_US + number * 1_000_000,
            "event_id": f"{org}-{number}",
            "request_id": f"{org}-{number}",
            "org": org,
            "name": "default",
            "list_cost_nusd": number,
            "input_tokens": number,
            "writer": "w",
            "seq": number + 1,
            "kind": "usage",
            "sha256": f"{number:064x}",
            **names,
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One engine for the whole file, with rows of two organisations in every table that has an org."""
    opened = Store(f"chdb://{tmp_path_factory.mktemp('store')}/ledger")
    rows = list(rows_of_two())
    for table in (BY_KIND["usage"], BY_KIND["hold"], BY_KIND["signal"], BY_KIND["tool_call"], EVENTS):
        known = [{name: row[name] for name in table.columns if name in row} for row in rows]
        opened.insert(table, b"\n".join(map(orjson.dumps, known)), f"w:1-{ROWS}:{table.name}")
    others = [{"ts_us": TIME_US, "event_id": "evil", "writer": "w", "seq": ROWS + 1, "detail": "evil"}]
    for name in ("control", "decision_inputs"):
        opened.insert(BY_KIND[name], orjson.dumps(others[0]), f"w:{name}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def readers(store):
    """The readers of that engine."""
    opened = Readers(store)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ask(readers):
    """The rows of a statement as a key sees them."""

    def ask(sql, access=ACME, settings=None, **parameters):
        asked = Question(sql, "JSONCompactEachRow", parameters, settings or {})
        return [orjson.loads(line) for line in readers.query(asked, access).splitlines()]

    return ask


def refused(readers, sql, access=ACME, settings=None):
    """The number and the text of the error that a statement ends in."""
    with pytest.raises(QueryFailed) as error:
        readers.query(Question(sql, "TSV", {}, settings or {}), access)
    assert "DB::Exception" in str(error.value)
    return error.value.code, str(error.value)


# Every way known to name a table whose rows belong to organisations.
SEEN = [
    "SELECT DISTINCT org FROM usage",
    "SELECT DISTINCT org FROM default.usage",
    'SELECT DISTINCT org FROM "default"."usage"',
    "SELECT DISTINCT org FROM `usage` AS x",
    "FROM usage SELECT DISTINCT org",
    "SELECT DISTINCT org FROM usage_by_minute",
    "SELECT DISTINCT org FROM usage_by_hour FINAL",
    "SELECT DISTINCT org FROM usage_by_day",
    "SELECT DISTINCT org FROM events",
    "SELECT DISTINCT org FROM hold",
    "SELECT DISTINCT org FROM signal",
    "SELECT DISTINCT org FROM tool_call",
    "SELECT DISTINCT org FROM (SELECT * FROM (SELECT * FROM usage))",
    "WITH c AS (SELECT * FROM usage) SELECT DISTINCT a.org FROM c AS a JOIN c AS b USING event_id",
    "WITH RECURSIVE c AS (SELECT org FROM usage UNION ALL SELECT org FROM c WHERE 0) SELECT DISTINCT org FROM c",
    "SELECT org FROM usage UNION DISTINCT SELECT org FROM events",
    "SELECT DISTINCT org FROM (SELECT org FROM usage INTERSECT SELECT org FROM events)",
    "SELECT DISTINCT b.org FROM events AS a JOIN usage AS b ON a.writer = b.writer",
    "SELECT DISTINCT b.org FROM (SELECT 'w' AS writer) AS a LEFT JOIN default.usage AS b USING writer",
    "SELECT DISTINCT b.org FROM usage AS b RIGHT JOIN events USING event_id",
    "SELECT DISTINCT org FROM usage ASOF JOIN events USING (writer, ts)",
    "SELECT DISTINCT org FROM usage WHERE org = 'evil' OR 1",
    "SELECT DISTINCT org FROM usage WHERE org IN (SELECT org FROM events)",
    "SELECT DISTINCT org FROM usage QUALIFY row_number() OVER (PARTITION BY org) = 1",
    "SELECT org FROM usage LIMIT 1 BY org",
    "SELECT arrayJoin(groupUniqArray(org)) FROM usage",
    "SELECT arrayJoin((SELECT groupUniqArray(org) FROM usage))",
    "SELECT max(org) FROM usage",
    "SELECT any(org) FROM usage GROUP BY org",
]


@pytest.mark.parametrize("sql", SEEN)
def test_a_key_sees_the_rows_of_its_organisation_only(ask, sql):
    assert ask(sql) == [["acme"]]
    if "max(" not in sql:
        assert {row[0] for row in ask(sql, ALL)} == {"acme", "evil"}


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT count(), min(input_tokens), max(input_tokens) FROM usage", [[ROWS // 2, 0, ROWS - 2]]),
        ("SELECT count() FROM events", [[ROWS // 2]]),
        ("SELECT sum(rows) FROM usage_by_day", [[ROWS // 2]]),
        ("SELECT toUnixTimestamp(max(ts)) FROM usage", [[TIME_US // 1_000_000 + ROWS - 2]]),
        ("SELECT max(rowNumberInAllBlocks()) FROM usage", [[ROWS // 2 - 1]]),
        ("SELECT count() FROM usage GROUP BY ROLLUP(org) ORDER BY 1", [[ROWS // 2], [ROWS // 2]]),
        ("SELECT 'evil-1' IN (SELECT request_id FROM usage)", [[0]]),
        ("SELECT count() FROM (SELECT 'evil-1' AS r) WHERE r GLOBAL IN (SELECT request_id FROM usage)", [[0]]),
        ("SELECT EXISTS(SELECT 1 FROM usage WHERE org = 'evil')", [[0]]),
        ("SELECT (SELECT count() FROM usage WHERE org = 'evil')", [[0]]),
        ("SELECT countIf(org = 'evil') FROM usage", [[0]]),
        ("SELECT count() FROM usage WHERE request_id = 'evil-1'", [[0]]),
        ("SELECT count() FROM usage AS a, usage AS b WHERE b.org != 'acme' AND a.seq = b.seq", [[0]]),
        ("SELECT count() FROM control", [[0]]),
        ("SELECT count() FROM decision_inputs", [[0]]),
        ("SELECT * FROM control AS usage", []),
        ("SELECT *, 'acme' AS org FROM control AS `default.usage`", []),
        ("SELECT org FROM signal AS `system.databases` WHERE org != 'acme'", []),
        ("SELECT org FROM usage AS `default.control`", []),
        ("SELECT DISTINCT org FROM signal AS `default.usage`", [["acme"]]),
        ("SELECT count() FROM usage_to_minute", [[0]]),
        ("SELECT DISTINCT database FROM system.tables", [["default"]]),
        ("SELECT sum(total_rows), sum(total_bytes), sum(length(data_paths)) FROM system.tables", [[0, 0, 0]]),
        ("SELECT sum(data_compressed_bytes + marks_bytes) FROM system.columns", [[0]]),
        ("SELECT count() FROM system.settings WHERE name LIKE 'additional%'", [[0]]),
        ("SHOW DATABASES", [["default"]]),
    ],
)
def test_nothing_counts_or_names_what_a_key_does_not_open(ask, sql, found):
    assert ask(sql) == found


def test_a_key_of_two_organisations_sees_both_and_quotes_in_names_do_no_harm(ask):
    assert ask("SELECT uniqExact(org) FROM usage", Access("both", ("acme", "evil"))) == [[2]]
    for name in ("' OR 1 OR org = '", "\\", "acme\\' OR 1 --", "x'}", "acme') OR ('1'='1"):
        assert ask("SELECT count() FROM usage", Access("odd", (name,))) == [[0]]


def test_every_table_of_the_schema_is_known_to_be_open_or_closed(store):
    """A new one is closed until it is listed with those whose rows belong to organisations."""
    rows = store.select("SELECT name, engine FROM system.tables WHERE database = 'default'")
    tables = {str(name) for name, engine in rows if engine != "MaterializedView"}
    assert tables - ORG_TABLES == CLOSED
    for table in ORG_TABLES:
        assert "org" in {row[0] for row in store.select(f"DESCRIBE TABLE {table}")}


def test_what_is_added_later_is_closed_even_with_an_org(store, ask):
    store.execute("CREATE TABLE later (org String, n Int8) ENGINE = MergeTree ORDER BY n")
    store.execute("CREATE VIEW later_view AS SELECT org FROM usage")
    store.execute("CREATE DATABASE beside")
    store.execute("CREATE TABLE beside.usage (org String) ENGINE = MergeTree ORDER BY org")
    try:
        store.execute("INSERT INTO later VALUES ('acme', 1)")
        store.execute("INSERT INTO beside.usage VALUES ('acme')")
        for table in ("later", "later_view", "beside.usage", "later AS `default.usage`"):
            sql = f"SELECT * FROM {table}"  # noqa: S608 the names stand above
            assert ask(sql) == []
            assert table == "beside.usage" or ask(sql, ALL)
    finally:
        store.execute("DROP DATABASE beside SYNC")
        for name in ("VIEW later_view", "TABLE later"):
            store.execute(f"DROP {name} SYNC")


# Each raises for rows of the other organisation alone, in words that tell what is in them.
ORACLES = [
    "throwIf(org = 'evil') = 0",
    "intDiv(1, if(org = 'evil', 0, 1)) = 1",
    "toUInt8(replaceOne(user, 'user-acme', '1')) = 1",
    "CAST(if(team = 'team-acme', '1', user), 'UInt8') = 1",
]
SHAPES = [
    "SELECT count() FROM usage WHERE {0}",
    "SELECT count() FROM usage WHERE (team = 'z' OR {0}) AND length(user) > 3",
    "SELECT count() FROM usage WHERE NOT (NOT ({0})) AND input_tokens >= 0",
    "SELECT count() FROM (SELECT * FROM usage WHERE input_tokens >= 0) WHERE ({0}) OR team = 'z'",
    "SELECT count() FROM (SELECT *, ({0}) AS z FROM usage) WHERE z",
    "SELECT ({0}) AS z, count() FROM usage GROUP BY z",
    "SELECT ts FROM usage ORDER BY ({0}), ts DESC LIMIT 1",
    "SELECT count() FROM usage AS u JOIN events AS e ON u.event_id = e.event_id WHERE ({0}) OR team = 'z'",
    "SELECT count() FROM events AS e LEFT JOIN (SELECT * FROM usage WHERE ({0}) OR team = 'z') AS u USING event_id",
    "SELECT count() FROM usage WHERE event_id IN (SELECT event_id FROM usage WHERE ({0}) OR team = 'z')",
    "SELECT count() FROM usage WHERE exists(SELECT 1 FROM events WHERE events.event_id = usage.event_id) AND ({0})",
    "WITH c AS (SELECT * FROM usage WHERE ({0}) OR team = 'z') SELECT count() FROM c JOIN c AS d USING event_id",
    "SELECT ts FROM usage WHERE ({0}) OR team = 'z' ORDER BY org LIMIT 1",
    "SELECT count() FROM usage WHERE if(team = 'z', 1, ({0}))",
    "SELECT min(ts) FROM usage WHERE ({0}) OR model = 'z'",
    "SELECT sum(input_tokens) OVER (PARTITION BY ({0})) FROM usage LIMIT 1",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_conditions_never_run_on_hidden_rows_so_their_errors_tell_nothing(ask, shape):
    for oracle in ORACLES:
        sql = shape.format(oracle)
        if " AS u JOIN" in shape:
            sql = re.sub(r"\b(org|user|team)\b(?! -)(?=[ ,])", r"u.\1", sql)
        assert ask(sql)


@pytest.mark.parametrize("table", ["usage_by_minute", "usage_by_hour FINAL", "usage_by_day FINAL", "events", "hold"])
def test_conditions_never_run_on_hidden_rows_of_other_tables(ask, readers, table):
    for oracle in ORACLES[:2]:
        sql = f"SELECT count() FROM {table} WHERE ({oracle}) OR length(org) = 9"  # noqa: S608 the names stand above
        assert ask(sql)[0][0] > 0
        assert refused(readers, sql, ALL)[0] in (395, 153)


def test_an_index_over_everyones_rows_raises_nothing(store, ask):
    """The organisation is the first column of the primary key, whose values are looked at before any row is."""
    rows = [{"ts_us": TIME_US, "event_id": f"n{n}", "org": "1", "writer": "n", "seq": n} for n in range(1, 3)]
    store.insert(BY_KIND["usage"], b"\n".join(map(orjson.dumps, rows)), "n:1-2:usage")
    number = Access("of 1", ("1",))
    for condition in ("toUInt8(org) = 1", "CAST(org, 'UInt8') = 1", "toInt64(org) < 5", "intDiv(1, toUInt8(org)) = 1"):
        sql = f"SELECT count() FROM usage WHERE {condition}"  # noqa: S608 the conditions stand above
        assert ask(sql, number) == [[2]]
        assert ask(sql.replace("usage", "usage_by_day"), number) == [[1]]


def test_the_oracles_raise_where_the_rows_are_seen(readers):
    """Else the test above would show nothing."""
    for oracle in ORACLES:
        assert refused(readers, SHAPES[0].format(oracle), ALL)[0] in (395, 153, 6, 32)


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT 1 SETTINGS readonly = 0", 452),
        ("SELECT 1 SETTINGS max_execution_time = 61", 452),
        ("SELECT 1 SETTINGS max_result_rows = 0", 452),
        ("SELECT 1 SETTINGS additional_table_filters = ''", 164),
        ("SELECT 1 SETTINGS additional_result_filter = '1'", 164),
        ("SELECT 1 SETTINGS max_rows_to_read = 1", 164),
        ("SELECT 1 SETTINGS output_format_schema = 'x'", 164),
        ("SELECT 1 SETTINGS format_schema = 'x'", 164),
        ("SELECT 1 SETTINGS optimize_move_to_prewhere = 1", 164),
        ("SELECT 1 SETTINGS log_comment = 'x'", 164),
        ("SELECT 1 FORMAT Template", 73),
        ("SELECT 1 FORMAT Protobuf", 73),
        ("SELECT * FROM executable('id', CSV, 'a String')", 164),
        ("EXPLAIN INSERT INTO usage SELECT * FROM usage", 164),
        ("SELECT * FROM no_such_table", 60),
        ("SELECT nope FROM usage", 47),
        ("SELECT count( FROM usage", 62),
        ("SELECT 1 AS", 62),
        ("SELECT {x:Int64}", 456),
    ],
)
def test_what_fails_says_why_in_clickhouses_words_and_number(readers, sql, code):
    for access in (ACME, ALL):
        said = refused(readers, sql, access)
        assert said[0] == code
        assert "/dev/fd" not in said[1]


def test_settings_beside_a_statement_are_held_to_the_same_list(readers, ask):
    assert ask("SELECT 1", settings={"max_threads": "1"}) == [[1]]
    assert ask("SELECT number FROM numbers(10)", settings={"limit": "2"}) == [[0], [1]]
    assert refused(readers, "SELECT * FROM usage", settings={"max_result_rows": "3"})[0] == 396
    for name, value in (("additional_table_filters", "{}"), ("max_threads", "9"), ("date_time_output_format", "x")):
        assert refused(readers, "SELECT 1", settings={name: value})[0] in (164, 452)


def test_statistics_do_not_count_hidden_rows(readers):
    said = readers.query(Question("SELECT count() FROM usage FORMAT JSON"), ACME)
    assert orjson.loads(said)["data"] == [{"count()": ROWS // 2}]
    assert b"rows_read" not in said
    some = orjson.loads(readers.query(Question("SELECT org FROM usage LIMIT 1 FORMAT JSON"), ACME))
    assert some.get("rows_before_limit_at_least", 0) <= ROWS // 2
    tree = readers.query(Question("EXPLAIN QUERY TREE SELECT count() FROM usage WHERE org = 'evil'"), ACME).decode()
    assert "QUERY id: 0" in tree
    assert not re.search(r"(?i)granules|parts|rows", tree)


def test_the_gate_knows_the_engines_own_functions(store, readers):
    listed = {str(row[0]) for row in store.select("SELECT name FROM system.table_functions")}
    harmless = {"numbers", "numbers_mt", "zeros", "generateSeries", "generate_series", "values", "format"}
    assert listed >= harmless
    for name in listed - harmless:
        assert refused(readers, f"DESCRIBE TABLE {name}('x')")[0] == 164
    for name in (
        "file",
        "hostName",
        "fullHostName",
        "sleep",
        "dictGet",
        "joinGet",
        "aiGenerate",
        "serverUUID",
        "logTrace",
    ):
        assert "is not served" in refused(readers, f"SELECT {name}('x')")[1]


def test_results_of_keys_are_bounded_and_those_of_the_home_are_streamed(readers):
    assert "TOO_MANY_ROWS" in refused(readers, "SELECT number FROM numbers(2000000)")[1]
    assert refused(readers, "SELECT groupArray(number) FROM numbers(400000000)")[0] in (241, 396)
    running = readers.start(Question("SELECT number FROM numbers(2000000)"), HOME)
    try:
        assert sum(piece.count(b"\n") for piece in iter(running.read, b"")) == 2_000_000
    finally:
        readers.leave(running)


def under_way(store):
    """The marks of the statements that the engine runs."""
    return {row[0] for row in store.select("SELECT Settings['log_comment'] FROM system.processes")}


def test_a_statement_that_is_left_ends_in_the_engine(store, readers):
    """One that has written more than is read, one that writes nothing for long, and one that has not begun."""
    endless = ("SELECT number FROM numbers(100000000000)", "SELECT max(sipHash64(number)) FROM numbers(100000000000)")
    for sql in endless * 4:
        running = readers.start(Question(sql), HOME)
        readers.leave(running)
        assert running.outcome.exception(30) is not None
    for sql in endless:
        running = readers.start(Question(sql), HOME)
        deadline = time.monotonic() + 30
        while running.mark not in under_way(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.mark in under_way(store)
        readers.leave(running)
        assert running.outcome.exception(30) is not None
        assert running.mark not in under_way(store)


def test_a_reader_that_does_not_read_holds_the_engine_back(readers):
    running = readers.start(Question("SELECT number, toString(number) FROM numbers(50000000)"), HOME)
    try:
        first = running.read()
        assert first
        assert not running.outcome.done()
        assert threading.active_count() < 50
    finally:
        readers.leave(running)
    assert running.outcome.exception(30) is not None
