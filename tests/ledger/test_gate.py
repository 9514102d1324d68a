"""Only one harmless read passes the gate."""

import pytest

from ledger.gate import SQL_BYTES_MAX, Gate, Refused

GATE = Gate(
    ["file", "url", "s3", "remote", "numbers", "view", "viewIfPermitted", "executable", "format", "merge", "eval"],
    ["sum", "aiGenerate", "dictGet", "upper", "file", "format"],
)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        " (select 1) ;  ",
        "WITH 1 AS x SELECT x -- the end",
        "SELECT count() FROM usage WHERE team = 'a;b--c' /* why */ GROUP BY org",
        "SELECT 'it''s \\' file(' AS `a b`",
        "SELECT * FROM numbers(10)",
        "SELECT * FROM (SELECT 1) AS view",
        "SHOW TABLES",
        "DESCRIBE TABLE usage",
        "EXISTS usage",
        "SELECT {x:Int64}, [1, 2], {'a': 1}, -1.5e-3 % 2",
        "SELECT 'ünï'",
        "SELECT format('{}', 1)",
    ],
)
def test_reading_statements_pass_as_they_are(sql):
    assert GATE.admit(sql).sql == sql.removesuffix("  ").removesuffix(";")


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
        "SELECT * FROM file('/etc/passwd')",
        "SELECT * FROM url ('http://x')",
        "DESCRIBE TABLE s3('x')",
        "SELECT * FROM view(SELECT * FROM remote('x', 'y'))",
        "SELECT * FROM viewIfPermitted(SELECT 1 ELSE null('x Int8'))",
        "SELECT * FROM eval('SELECT 1')",
        "SELECT * FROM executable('id', CSV, 'a String')",
        "SELECT 1 # a comment that other lexers see",
        "SELECT $x$ text $x$",
        "SELECT upper\u00a0('a')",
        "SELECT 'never closed",
        "SELECT /* never closed",
        "SELECT \0",
        "SELECT '" + "x" * SQL_BYTES_MAX + "'",
    ],
)
def test_everything_else_is_refused_with_a_reason(sql):
    with pytest.raises(Refused) as refused:
        GATE.admit(sql)
    assert str(refused.value)


def test_a_statement_that_names_its_format_is_known():
    assert GATE.admit("SELECT 1 FORMAT JSON").names_format
    assert not GATE.admit("SELECT format('{}', 'FORMAT JSON')").names_format
