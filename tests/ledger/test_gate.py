"""Only one harmless read passes the gate."""

import contextlib
import time

import pytest

from ledger.gate import SQL_BYTES_MAX, Function, Gate, Refused

GATE = Gate(
    [
        *("file", "url", "s3", "remote", "numbers", "view", "viewIfPermitted", "executable", "format", "merge", "eval"),
        *("loop", "mergeTreeIndex", "clusterAllReplicas", "input", "mysql", "values", "viewExplain"),
    ],
    [
        Function("sum", "Aggregate Functions", ""),
        Function("flameGraph", "Aggregate Functions", ""),
        Function("arrayReduce", "Arrays", ""),
        Function("editDistanceUTF8", "String", ""),
        Function("levenshtein", "", "editDistance"),
        Function("upper", "String", ""),
        Function("ucase", "", "upper"),
        Function("version", "Other", ""),
        Function("format", "String Replacement", ""),
        Function("file", "Other", ""),
        Function("sleep", "Other", ""),
        Function("FQDN", "Other", ""),
        Function("fullHostName", "", "FQDN"),
        Function("aiGenerate", "AI", ""),
        Function("dictGet", "Dictionary", ""),
        Function("addressToLine", "Introspection", ""),
        Function("hasColumnInTable", "Other", ""),
        Function("brandNew", "Brand new", ""),
    ],
)


def admit(sql, **parameters):
    return GATE.admit(sql, parameters)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        " (select 1) ;  ",
        "WITH /* the */ 1 AS x SELECT x",
        "SELECT count() FROM usage WHERE team = 'a;b--c' /* why */ GROUP BY org",
        "SELECT 'it''s \\' file(' AS `a b`",
        "SELECT * FROM numbers(10)",
        "SELECT * FROM (SELECT 1) AS view",
        "SHOW TABLES",
        "SHOW FULL TABLES FROM default",
        "SHOW CREATE TABLE usage",
        "DESCRIBE TABLE usage",
        "EXISTS usage",
        "EXPLAIN SYNTAX SELECT 1",
        "EXPLAIN QUERY TREE SELECT 1",
        "SELECT {x:Int64}, [1, 2], {'a': 1}, -1.5e-3 % 2",
        "SELECT 'ünï'",
        "SELECT format('{}', 1), version(), ucase('a')",
        "SELECT settings, format FROM usage",
        "SELECT count() FROM usage AS a JOIN events AS b ON a.org = 'it' AND b.org IN ('a', 'b') WHERE a.team = 'x'",
        "SELECT 'a', 'b' FROM usage GROUP BY 'a', 'b' LIMIT 1, 2",
        "SELECT arrayReduce('sum', [1]), arrayReduce('quantile(0.5)', [1])",
        "SELECT name FROM system.functions WHERE database = 'system'",
    ],
)
def test_reading_statements_pass_as_they_are(sql):
    assert admit(sql).sql == sql.rstrip("; ")


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "INSERT INTO usage VALUES (1)",
        "DROP TABLE usage",
        "SET readonly = 0",
        "KILL QUERY WHERE 1",
        "USE system",
        "SYSTEM SHUTDOWN",
        "TABLE usage",
        "SELECT 1; DROP TABLE usage",
        "SELECT 1; SELECT 2",
        "SELECT 1 INTO OUTFILE 'x.csv'",
        "SELECT file('/etc/passwd')",
        "SELECT FiLe /* */ ('/etc/passwd')",
        "SELECT `file`('/etc/passwd')",
        'SELECT "upper"(1)',
        "SELECT `f\\x69le`('/etc/passwd')",
        "SELECT arrayMap(file, ['/etc/passwd'])",
        "SELECT arrayMap(`file`, ['/etc/passwd'])",
        "SELECT * APPLY(upper) FROM usage",
        "SELECT aiGenerate('x')",
        "SELECT arrayMap(`aiGenerate`, ['x'])",
        "SELECT dictGet('a', 'b', 1)",
        "SELECT fullHostName()",
        "SELECT addressToLine(1)",
        "SELECT flameGraph(x) FROM usage",
        "SELECT brandNew(1)",
        "SELECT editDistanceUTF8('a', 'b')",
        "SELECT levenshtein('a', 'b')",
        "SELECT flameGraphIf(1)(1, 1)",
        "SELECT aggThrowIf(0.5)(number, 1)",
        "SELECT `aggThrowOrNull`(1)",
        "SELECT arrayReduce('flameGraph', [1])",
        "SELECT arrayReduce('AggThrowIf(0.5)', [1], [1])",
        "SELECT arrayReduce('flame\\x47raph', [1])",
        "SELECT arrayReduce(concat('flame', 'Graph'), [1])",
        "SELECT arrayReduce('flame' || 'Graph', [1])",
        "SELECT initializeAggregation({a:String}, 1)",
        "WITH 'flameGraph' AS f SELECT arrayReduceInRanges(f, [(1, 1)], [1])",
        "SELECT hasColumnInTable('elsewhere', 'db', 't', 'c')",
        "SELECT * FROM file('/etc/passwd')",
        "SELECT * FROM url ('http://x')",
        "SELECT * FROM mysql('x', 'y', 'z', 'u', 'p')",
        "SELECT * FROM input('a Int8')",
        "DESCRIBE TABLE s3('x')",
        "SELECT * FROM view(SELECT 1)",
        "SELECT * FROM viewIfPermitted(SELECT 1 ELSE null('x Int8'))",
        "SELECT * FROM eval('SELECT 1')",
        "SELECT * FROM executable('id', CSV, 'a String')",
        "SELECT * FROM merge('default', 'usage')",
        "SELECT * FROM mergeTreeIndex(default, usage)",
        "SELECT * FROM loop(usage)",
        "SELECT * FROM clusterAllReplicas('x', 'y', 'z')",
        "SELECT * FROM usage PREWHERE org = 'x'",
        "SELECT * FROM (EXPLAIN SELECT 1)",
        "EXPLAIN SELECT * FROM usage",
        "EXPLAIN PLAN SELECT * FROM usage",
        "EXPLAIN ESTIMATE SELECT * FROM usage",
        "EXPLAIN indexes = 1 SELECT * FROM usage",
        "EXPLAIN PLAN indexes = 1 SELECT * FROM usage",
        "EXPLAIN QUERY TREE run_passes = 0 SELECT 1",
        "EXPLAIN PIPELINE SELECT 1",
        "EXPLAIN AST SELECT 1",
        "EXPLAIN INSERT INTO usage SELECT * FROM usage",
        "SHOW PROCESSLIST",
        "SHOW USERS",
        "SHOW GRANTS",
        "SHOW SETTINGS LIKE '%'",
        "SHOW CREATE USER default",
        "SHOW FULL PROCESSLIST",
        "SELECT * FROM system.query_log",
        "SELECT * FROM system . `processes`",
        'SELECT * FROM "system"."parts"',
        "SELECT * FROM SYSTEM.users",
        "SELECT * FROM system/* */.parts",
        "SELECT * FROM {a:Identifier}.parts",
        "SELECT * FROM system.{b:Identifier}",
        "SELECT * FROM {c:Identifier}",
        "SELECT * FROM {d:Identifier}",
        "SELECT * FROM {a /* hidden */ : Identifier}",
        "SELECT * FROM {missing:Identifier}",
        "SHOW TABLES FROM system",
        "DESCRIBE information_schema.tables",
        "SELECT * FROM served.settings",
        "EXISTS DATABASE system",
        "SELECT * FROM (SELECT 1 SETTINGS max_threads = 1)",
        "SELECT 1 SETTINGS additional_table_filters = {}",
        "SELECT 1 SETTINGS additional_table_filters = {'default.usage': '1'}",
        "SELECT 1 SETTINGS max_threads = 1 UNION ALL SELECT 2",
        "SELECT 1 SETTINGS a = 'it''s'",
        "SELECT 1 SETTINGS a = 1 SETTINGS b = 1",
        "SELECT count() FROM usage WHERE throwIf(_partition_id = '202511')",
        "SELECT max(`_part_offset`) FROM usage",
        "SELECT 1 # a comment that other lexers see",
        "SELECT $x$ text $x$",
        "SELECT upper\u00a0('a')",
        "SELECT 'never closed",
        "SELECT /* never closed",
        "EXISTS TABLE `/etc/passwd`",
        'SELECT 1 FROM "../secrets/signing.key"',
        "DESCRIBE `C:x`",
        "EXISTS TABLE 'Makefile'",
        "DESC '/etc/passwd'",
        "SHOW COLUMNS FROM '/etc/passwd'",
        "SELECT 1 FROM '/etc/passwd'",
        "SELECT 1 FROM usage, '/etc/passwd'",
        "SELECT 1 FROM usage JOIN '/etc/passwd' ON 1",
        "SELECT (SELECT count() FROM 'Makefile')",
        "SELECT * FROM usage AS \"limit\", '/etc/shadow'",
        "SELECT * FROM usage \"limit\" FINAL, '/etc/shadow'",
        "SELECT * FROM usage AS where, '/etc/shadow'",
        "SELECT * FROM usage AS sample, '/etc/shadow'",
        "SELECT * FROM usage AS using FINAL, '/etc/shadow'",
        "SELECT * FROM usage select, '/etc/shadow'",
        "SELECT * FROM usage AS a JOIN events AS b ON a.seq = b.seq, '/etc/shadow'",
        "SELECT * FROM usage AS a JOIN events AS b USING (seq), '/etc/shadow'",
        "SELECT * FROM usage SAMPLE 1/2, '/etc/shadow'",
        "WITH 1 AS x SELECT x FROM usage WHERE 1 IN (SELECT 1 FROM usage, 'Makefile')",
        "SELECT \0",
        "SELECT '" + "x" * SQL_BYTES_MAX + "'",
    ],
)
def test_everything_else_is_refused_with_a_reason(sql):
    with pytest.raises(Refused) as refused:
        admit(sql, a="system", b="parts", c="system.parts", d="us`age")
    assert str(refused.value)


@pytest.mark.parametrize(
    ("sql", "rest", "output_format", "settings"),
    [
        ("SELECT 1 FORMAT JSON", "SELECT 1", "JSON", {}),
        ("SELECT 1 FORMAT JSON;", "SELECT 1", "JSON", {}),
        ("SELECT 1\n FORMAT Native -- so", "SELECT 1", "Native", {}),
        ("SELECT 1 -- INTO OUTFILE '/dev/fd/3' APPEND FORMAT CSV", "SELECT 1", "", {}),
        ("EXPLAIN SYNTAX SELECT 1 /* INTO */ ; -- OUTFILE", "EXPLAIN SYNTAX SELECT 1", "", {}),
        ("SELECT 1 SETTINGS a = 1, b = 'x y'", "SELECT 1", "", {"a": "1", "b": "x y"}),
        ("SELECT 1 SETTINGS a = -1 FORMAT CSV", "SELECT 1", "CSV", {"a": "-1"}),
        ("SELECT 1 FORMAT CSV SETTINGS a = true", "SELECT 1", "CSV", {"a": "true"}),
        ("SELECT 1 AS format FORMAT CSV", "SELECT 1 AS format", "CSV", {}),
        ("SELECT format('{}', 'FORMAT JSON')", "SELECT format('{}', 'FORMAT JSON')", "", {}),
        ("SELECT format FROM usage", "SELECT format FROM usage", "", {}),
    ],
)
def test_what_closes_a_statement_is_taken_out_of_it(sql, rest, output_format, settings):
    assert admit(sql)[:3] == (rest, output_format, settings)


def test_names_that_are_parameters_are_put_in_their_places():
    assert admit("SELECT {c:Identifier} FROM {t : Identifier}", c="team", t="default.usage").sql == (
        "SELECT `team` FROM `default`.`usage`"
    )


def test_views_stand_in_the_place_of_tables_that_show_too_much():
    assert admit("SELECT system.tables.name FROM `system`.tables").sql == (
        "SELECT served.tables.name FROM served.tables"
    )
    assert admit("SELECT 'system.tables' FROM system.one").sql == "SELECT 'system.tables' FROM system.one"


def test_reading_a_statement_takes_a_time_that_grows_with_its_length_alone():
    """Each is as long as a statement may be, and would take minutes if words were read again for every word."""
    for repeated in ("format ", "settings a=1 ", "settings a=1 format x ", "(", "settings=1,", "a.", "{x:Int8} "):
        sql = "SELECT 1 " + repeated * ((SQL_BYTES_MAX - 20) // len(repeated))
        began_s = time.process_time()
        with contextlib.suppress(Refused):
            admit(sql)
        assert time.process_time() - began_s < 20


def test_only_explain_keeps_its_own_output():
    assert admit("EXPLAIN SYNTAX SELECT 1").explains
    assert not admit("SELECT 1 AS explain").explains
