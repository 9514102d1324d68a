"""The ledger process ships while it serves, lets nobody write, and leaves nothing behind."""

import base64
import errno
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed, open_ledger, running
from ledger.journal import Journal
from ledger.process import read_or_make_token


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The state directory that the file's one ledger process serves."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ledger(home):
    """A ledger process that this file shares."""
    with open_ledger(home, f"chdb://{home}/ledger") as client:
        yield client


@pytest.fixture(scope="module")
def journal(home):
    """A gateway's journal in the same home."""
    opened = Journal.open(home / "journal" / "gateway-0", segment_bytes=1 << 20, snapshot=dict)
    yield opened
    opened.close()


def ask(ledger, method, target, headers=None, body=None):
    """Status and body of one plain HTTP exchange."""
    connection = http.client.HTTPConnection(*ledger.address, timeout=30)
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def token(home):
    """The token that the process made."""
    return (home / "run" / "ledger.token").read_text()


def test_the_port_file_names_the_process_and_the_token_is_private(home, ledger):
    said = json.loads((home / "run" / "ledger.json").read_text())
    assert said["port"] == ledger.address.port
    os.kill(said["pid"], 0)
    assert (home / "run" / "ledger.token").stat().st_mode & 0o077 == 0
    assert running(home).address == ledger.address


def test_rows_are_there_after_a_flush(ledger, journal, usage_row):
    for _ in range(100):
        journal.append("usage", usage_row(team="flushed"))
    status = ledger.flush()
    assert status["shipped"]["gateway-0"] == journal.tail_seq
    assert (status["lag_rows"], status["stalled"]) == (0, {})
    assert ledger.rows("SELECT count() AS n FROM usage WHERE team = 'flushed'") == [{"n": 100}]


def test_queries_take_get_post_formats_and_parameters(home, ledger):
    key = {"X-ClickHouse-Key": token(home)}
    assert ask(ledger, "GET", "/?query=SELECT%201%2B1", key) == (200, b"2\n")
    assert ask(ledger, "POST", "/?database=default", key, b"SELECT 'a' AS x FORMAT JSONEachRow") == (
        200,
        b'{"x":"a"}\n',
    )
    assert ask(ledger, "POST", "/?query=SELECT", key, b" 7 AS x") == (200, b"7\n")
    assert ledger.query("SELECT {n:Int64} + 1, {s:String}", "CSV", n="41", s="it's") == b'42,"it\'s"\n'
    assert ledger.query("SELECT 7 % 4, '%(n)s'", n="1") == b"3\t%(n)s\n"
    assert ledger.rows("SELECT toDecimal64(1, 2) / 3 AS d, 9007199254740993 AS n") == [
        {"d": "0.33", "n": 9007199254740993}
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO usage (org) VALUES ('x')",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
        "DROP TABLE usage",
        "ALTER TABLE usage DELETE WHERE 1",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT * FROM file('/etc/hostname', 'CSV', 'a String')",
        "SELECT file('/etc/hostname')",
        "SELECT arrayMap(file, ['/etc/hostname'])",
        "SELECT 1 INTO OUTFILE 'never.csv'",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
        "SELECT * FROM s3('http://127.0.0.1:1/b/k', 'CSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
        "SELECT * FROM executable('id', 'CSV', 'a String')",
        "SELECT * FROM python(x)",
        "KILL QUERY WHERE 1",
        "SELECT 1; DROP TABLE usage",
    ],
)
def test_nothing_can_be_written_and_nothing_outside_reached(ledger, sql):
    with pytest.raises(QueryFailed, match=r"\((READONLY|SETTING_CONSTRAINT_VIOLATION)\)"):
        ledger.query(sql)


def test_errors_speak_like_clickhouse(home, ledger):
    key = {"X-ClickHouse-Key": token(home)}
    assert ask(ledger, "POST", "/", key, b"SELECT * FROM nowhere")[0] == 404
    assert ask(ledger, "POST", "/", key, b"DROP TABLE usage")[0] == 403
    status, body = ask(ledger, "POST", "/", key, b"SELECT (1")
    assert status == 400
    assert body.startswith(b"Code: 62. DB::Exception")
    assert ask(ledger, "POST", "/", key, b"")[0] == 400
    assert ask(ledger, "POST", "/", key, b"\xff\xfe")[0] == 400
    assert ask(ledger, "POST", "/", key, b"x" * (2 << 20))[0] == 413
    assert ask(ledger, "POST", "/?default_format=No;pe", key, b"SELECT 1")[0] == 400
    assert ask(ledger, "POST", "/flush?timeout_s=soon", key)[0] == 400
    assert ask(ledger, "DELETE", "/", key)[0] == 404


def test_only_the_token_opens_it_and_ping_needs_none(home, ledger):
    good, user = token(home), "default"
    basic = base64.b64encode(f"{user}:{good}".encode()).decode()
    assert ask(ledger, "GET", "/ping") == (200, b"Ok.\n")
    for headers in (
        {"X-ClickHouse-Key": good},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": f"Bearer {good}"},
    ):
        assert ask(ledger, "POST", "/", headers, b"SELECT 1") == (200, b"1\n")
    assert ask(ledger, "GET", f"/?query=SELECT%201&password={good}") == (200, b"1\n")
    wrong = ({}, {"X-ClickHouse-Key": good[:-1]}, {"Authorization": "Basic !!!"}, {"Authorization": "Bearer "})
    for headers in wrong:
        for method, target in (("POST", "/"), ("GET", "/status"), ("POST", "/flush")):
            status, body = ask(ledger, method, target, headers)
            assert (status, b"AUTHENTICATION_FAILED" in body) == (401, True)
    with pytest.raises(QueryFailed, match="AUTHENTICATION_FAILED"):
        LedgerClient(ledger.address, "wrong").status()


def test_queries_while_shipping_see_whole_numbers_and_stop_nothing(ledger, journal, usage_row):
    done = threading.Event()

    def write():
        while not done.is_set():
            for _ in range(200):
                journal.append("usage", usage_row(team="busy"))
            time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    sql = "SELECT count() AS n, sum(list_cost_nusd) AS cost FROM usage WHERE team = 'busy'"
    try:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: ledger.rows(sql)[0], range(60)))
            assert ledger.flush()["stalled"] == {}
    finally:
        done.set()
        writer.join()
    assert all(answer["cost"] == answer["n"] * 1_500 for answer in answers)
    ledger.flush()
    written = ledger.rows("SELECT count() AS n, uniqExact(seq) AS seqs FROM events")[0]
    assert written == {"n": journal.tail_seq, "seqs": journal.tail_seq}


def test_a_second_process_gets_one_clear_line(home, ledger):
    command = [sys.executable, "-m", "ledger", "--home", str(home)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert second.returncode == 3
    assert second.stderr.count("\n") == 1
    assert "is open in process" in second.stderr
    assert ledger.ping()


def test_a_url_it_cannot_open_is_wrong_usage(tmp_path):
    command = [sys.executable, "-m", "ledger", "--home", str(tmp_path), "--url", "mysql://x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def failed_start(home):
    """The one line of a ledger process that could not start, and its exit code."""
    command = [sys.executable, "-m", "ledger", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


def test_a_second_process_leaves_the_files_of_the_first_alone(home, ledger):
    travelling = home / "tmp" / "insert.raw"
    travelling.write_text("rows")
    assert failed_start(home)[0] == 3
    assert travelling.exists()
    travelling.unlink()


@pytest.mark.parametrize("name", ["run", "tmp", "secrets", "ledger", "ledger.lock"])
def test_a_home_in_which_something_else_lies_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "ledger.lock":
        path.mkdir()
    else:
        path.write_text("")
    code, said = failed_start(tmp_path)
    assert code == 3
    assert said.startswith(f"bursar ledger: {path}")
    assert said.endswith("; free space or mend the home, then start again\n")


def test_a_folder_in_the_temporary_one_is_left_there(tmp_path):
    (tmp_path / "tmp" / "folder").mkdir(parents=True)
    (tmp_path / "tmp" / "left.raw").write_text("")
    with open_ledger(tmp_path, f"chdb://{tmp_path}/ledger") as client:
        assert client.ping()
    assert list((tmp_path / "tmp").iterdir()) == [tmp_path / "tmp" / "folder"]


def test_a_token_that_was_not_written_whole_is_made_anew(tmp_path):
    path = tmp_path / "run" / "ledger.token"
    path.parent.mkdir()
    path.write_text("")
    made = read_or_make_token(path)
    assert len(made) > 40
    assert path.stat().st_mode & 0o077 == 0
    assert read_or_make_token(path) == made
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_no_token_without_its_text(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "run" / "ledger.token"
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            read_or_make_token(path)
    assert list(path.parent.iterdir()) == []
    assert read_or_make_token(path)


def test_sigterm_ships_the_rest_and_leaves_no_port_file(tmp_path, make_journal, usage_row):
    journal = make_journal()
    with open_ledger(tmp_path, f"chdb://{tmp_path}/ledger") as client:
        pid = json.loads((tmp_path / "run" / "ledger.json").read_text())["pid"]
        client.flush()
        for _ in range(50):
            journal.append("usage", usage_row())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while (tmp_path / "run" / "ledger.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert running(tmp_path) is None
    assert list((tmp_path / "tmp").iterdir()) == []
    with open_ledger(tmp_path, f"chdb://{tmp_path}/ledger") as client:
        status = client.status()
        assert status["rows"]["usage"] == 50


def test_sigterm_ends_a_process_in_which_a_statement_goes_on_that_nothing_ends(tmp_path):
    """The engine would end it between blocks of rows, of which it has one; whoever asked has left."""
    endless = (
        "SELECT count() FROM numbers(2000) "
        "WHERE repeat('a', 200000 + number % 2) ILIKE concat('%', repeat('a', 50000), 'b%')"
    )
    with open_ledger(tmp_path, f"chdb://{tmp_path}/ledger") as client:
        pid = json.loads((tmp_path / "run" / "ledger.json").read_text())["pid"]
        connection = http.client.HTTPConnection(*client.address, timeout=2)
        connection.request("POST", "/", endless, {"X-ClickHouse-Key": token(tmp_path)})
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    with open_ledger(tmp_path, f"chdb://{tmp_path}/ledger") as client:
        assert client.rows("SELECT 1 AS one") == [{"one": 1}]


def test_a_ledger_opened_for_a_while_ends_with_whoever_opened_it(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from ledger.client import open_ledger; home = Path(sys.argv[1])\n"
        "with open_ledger(home, f'chdb://{home}/ledger'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path.cwd(), timeout=60).returncode == -9
    deadline = time.monotonic() + 30
    while (tmp_path / "run" / "ledger.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not (tmp_path / "run" / "ledger.json").exists()


def test_what_cannot_be_started_is_unavailable(tmp_path):
    with pytest.raises(LedgerUnavailable, match="could not be opened"), open_ledger(tmp_path, "mysql://x"):
        pytest.fail("no ledger can be open here")


def test_a_dead_process_in_the_port_file_is_not_believed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.token").write_text("t")
    for text in ('{"port": 1, "pid": 4194303}', "{", '{"pid": 1}', f'{{"port": 1, "pid": {os.getpid()}}}'):
        (tmp_path / "run" / "ledger.json").write_text(text)
        assert running(tmp_path) is None


def test_clients_and_writers_never_load_the_engine():
    code = (
        "import sys, ledger.client, ledger.reports, ledger.journal; print([m for m in sys.modules if 'ch' in m[:12]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert not [name for name in ("chdb", "clickhouse_connect") if f"'{name}" in done.stdout]
    assert done.returncode == 0
