"""Into a ClickHouse server each record arrives exactly once, whatever happens to requests and replies on the way."""

import http.client
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import pytest

from ledger.access import Access
from ledger.clickhouse import PASSWORD_FILE, ServerStore, credentials_of
from ledger.client import QueryFailed, open_ledger
from ledger.destination import StoreAway
from ledger.http_session import PASSWORD_ENV, BadServerUrl, server_of
from ledger.readers import Question, Readers
from ledger.reports import report
from ledger.shipper import Shipper
from ledger.store import StoreLocked, StoreUnsupported

PROGRAM = Path(__file__).with_name("clickhouse_server.py")
SECRET = {PASSWORD_ENV: "secret"}
ROUNDS_MAX = 40
EMPTY_RESULT = b"\x01\x00\x01a\x06String"  # in ClickHouse's Native format: a column `a` without rows


class TestServer:
    """The server process, which keeps its port over a kill."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(PROGRAM), str(self.folder), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def fault(self, kind: str, count: int = 1) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("POST", f"/fault?kind={kind}&count={count}")
        assert connection.getresponse().status == 200
        connection.close()

    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"clickhouse://127.0.0.1:{self.port}/default"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestServer]:
    running = TestServer(tmp_path / "server")
    yield running
    running.stop()


@pytest.fixture
def store(server: TestServer, tmp_path: Path) -> Iterator[ServerStore]:
    opened = ServerStore(server.url, tmp_path, SECRET, answer_timeout_s=2)
    yield opened
    opened.close()


@contextmanager
def stranger(port: int, content: bytes, status: int = 200) -> Iterator[None]:
    """Something else that listens in the server's place and answers everything alike, as a proxy's login page does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as strange:
        thread = threading.Thread(target=strange.serve_forever)
        thread.start()
        try:
            yield
        finally:
            strange.shutdown()
            thread.join()


def shipper_of(tmp_path, store):
    """A shipper whose clock goes on by a minute with each look, so that no retry has to be waited for."""
    minutes = count(0, 60)
    return Shipper(tmp_path / "journal", store, monotonic=lambda: float(next(minutes)))


def fill(journal, usage_row, number):
    for _ in range(number):
        journal.append("hold", {"action": "opened"})
        journal.append("usage", usage_row())


def totals(store):
    """Rows and different seqs in tables, and rows that the rollups count."""
    tables = {name: f"SELECT count(), uniqExact(writer, seq) FROM {name}" for name in ("usage", "hold", "events")}  # noqa: S608
    levels = {name: f"SELECT sum(rows) FROM usage_by_{name}" for name in ("minute", "hour", "day")}  # noqa: S608
    return {name: store.select(sql)[0] for name, sql in (tables | levels).items()}


def exactly(usage, tail):
    once = {"usage": (usage, usage), "hold": (usage, usage), "events": (tail, tail)}
    return once | dict.fromkeys(("minute", "hour", "day"), (usage,))


@pytest.mark.parametrize("kind", ["reset", "lost", "error", "slow", "half"])
def test_whatever_breaks_nothing_is_lost_or_doubled(server, store, make_journal, usage_row, tmp_path, kind):
    journal, shipper = make_journal(), shipper_of(tmp_path, store)
    fill(journal, usage_row, 40)
    shipper.round()
    failures = 0
    for usage in (80, 120, 160):
        fill(journal, usage_row, 40)
        server.fault(kind)
        for _ in range(ROUNDS_MAX):
            shipper.round()
            if server.is_dead():
                server.start()
            if not shipper.stalled():
                break
            failures += 1
        assert shipper.stalled() == {}
        assert totals(store) == exactly(usage, journal.tail_seq)
    assert failures >= (0 if kind in ("reset", "lost") else 3)  # the client itself tries a dropped connection again


def test_a_shipper_that_starts_again_goes_on_where_the_server_ends(server, make_journal, usage_row, tmp_path):
    journal = make_journal()
    for usage in (30, 60, 90):
        fill(journal, usage_row, 30)
        store = ServerStore(server.url, tmp_path, SECRET)
        try:
            shipper = shipper_of(tmp_path, store)
            server.fault("lost", 2)
            shipper.round()
            server.fault("none", 0)
        finally:
            store.close()
        store = ServerStore(server.url, tmp_path, SECRET)
        try:
            shipper_of(tmp_path, store).round()
            assert totals(store) == exactly(usage, journal.tail_seq)
        finally:
            store.close()


def test_a_server_that_is_away_is_said_once_and_waited_for(server, store, make_journal, usage_row, tmp_path, caplog):
    journal, shipper = make_journal(), shipper_of(tmp_path, store)
    fill(journal, usage_row, 10)
    server.stop()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            shipper.round()
    assert list(shipper.stalled()) == ["gateway-0"]
    away = f"the ClickHouse server 127.0.0.1:{server.port} is away: Connection refused"
    assert caplog.messages == [f"the journal gateway-0 is not shipped: {away}"]
    assert shipper.lag()["gateway-0"].rows == journal.tail_seq
    server.start()
    shipper.round()
    assert shipper.stalled() == {}
    assert totals(store) == exactly(10, journal.tail_seq)


@pytest.mark.parametrize("content", [b"", b"\xff" * 3000, bytes(range(256)), b"<html>log in</html>", EMPTY_RESULT])
def test_an_answer_that_is_none_of_clickhouses_stalls_and_is_over_with_it(
    server, store, make_journal, usage_row, tmp_path, content
):
    journal, shipper = make_journal(), shipper_of(tmp_path, store)
    fill(journal, usage_row, 10)
    server.stop()
    with stranger(server.port, content):
        shipper.round()
        assert list(shipper.stalled()) == ["gateway-0"]
    server.start()
    shipper.round()
    assert shipper.stalled() == {}
    assert totals(store) == exactly(10, journal.tail_seq)


def test_an_insert_that_something_else_answers_is_not_taken_for_done(server, store, make_journal, usage_row, tmp_path):
    journal, shipper = make_journal(), shipper_of(tmp_path, store)
    shipper.round()
    fill(journal, usage_row, 10)
    server.stop()
    with stranger(server.port, b"<html>log in</html>"):
        shipper.round()
    assert "is no ClickHouse server" in shipper.stalled()["gateway-0"]
    assert shipper.shipped() == {"gateway-0": 1}
    server.start()
    shipper.round()
    assert totals(store) == exactly(10, journal.tail_seq)


def test_a_status_without_a_code_of_clickhouses_is_said(server, store, make_journal, tmp_path):
    make_journal()
    shipper = shipper_of(tmp_path, store)
    server.stop()
    with stranger(server.port, b"boom", status=502):
        shipper.round()
    assert "answered HTTP status 502" in shipper.stalled()["gateway-0"]
    server.start()


def test_statements_of_readers_run_on_the_server(store, make_journal, usage_row, tmp_path):
    fill(make_journal(), usage_row, 20)
    shipper_of(tmp_path, store).round()
    readers = Readers(store)
    try:
        sql = "SELECT org, sum(input_tokens) FROM usage WHERE org = {org:String} GROUP BY org"
        assert (
            readers.query(Question(sql, "CSV", {"org": "acme"}), Access("home", None, is_home=True)) == b'"acme",2000\n'
        )
        many = readers.query(
            Question("SELECT number FROM numbers(200000)", "RowBinary"), Access("home", None, is_home=True)
        )
        assert len(many) == 200_000 * 8
    finally:
        readers.close()


def test_one_home_is_shipped_by_one_process(store, server, tmp_path):
    with pytest.raises(StoreLocked, match="another process ships"):
        ServerStore(server.url, tmp_path, SECRET)


def test_a_wrong_password_or_no_server_is_one_line(server, tmp_path):
    refused, away = "server refused: Code: 516.*wrong password", "127.0.0.1:1 is away: Connection refused"
    for url, password, said in ((server.url, "guess", refused), ("clickhouse://127.0.0.1:1/default", "secret", away)):
        with pytest.raises(StoreAway, match=said) as error:
            ServerStore(url, tmp_path, {PASSWORD_ENV: password})
        assert "\n" not in str(error.value)


def test_the_password_comes_from_the_environment_or_a_file(tmp_path):
    path = tmp_path / PASSWORD_FILE
    path.parent.mkdir()
    assert credentials_of(tmp_path, {}) == ("default", "")
    path.write_text("from file\n")
    assert credentials_of(tmp_path, {"BURSAR_CLICKHOUSE_USER": "bursar"}) == ("bursar", "from file")
    assert credentials_of(tmp_path, SECRET).password == "secret"


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("clickhouse://db.example:8123/ledger", ("db.example", 8123, "ledger", False)),
        ("clickhouse://db.example", ("db.example", 8123, "default", False)),
        ("https://db.example/ledger", ("db.example", 8443, "ledger", True)),
    ],
)
def test_a_url_names_server_and_database(url, server):
    assert server_of(url) == server


@pytest.mark.parametrize(
    "url",
    ["clickhouse://", "clickhouse:///db", "clickhouse://h:x/db", "clickhouse://h/a/b", "http://h/db", "redis://h"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(BadServerUrl, match="write clickhouse://"):
        server_of(url)


def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path):
    with pytest.raises(StoreUnsupported, match="BURSAR_CLICKHOUSE_PASSWORD") as refused:
        ServerStore("clickhouse://me:hunter2@db.example/ledger", tmp_path)
    assert "hunter2" not in str(refused.value)


def test_an_insert_that_a_dead_process_left_running_is_ended_before_anything_is_asked(server, store, tmp_path):
    """Otherwise it could arrive after the look by which the next process decides what to send."""
    other = ServerStore(server.url, tmp_path / "other", SECRET, answer_timeout_s=30)
    rows = "SELECT 'gateway-0', number + sleepEachRow(0.1) FROM numbers(200)"
    settings = "SETTINGS log_comment = 'gateway-0:1-200:usage:o', max_block_size = 1"
    ended: list[BaseException] = []

    def run() -> None:
        try:
            other.execute(f"INSERT INTO usage (writer, seq) {settings} {rows}")
        except StoreAway as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        running = "SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE 'gateway-0:%'"
        while store.select(running) != [(1,)]:
            assert thread.is_alive()
        store.settle("gateway-1")
        assert store.select(running) == [(1,)]
        store.settle("gateway-0")
        assert store.select(running) == [(0,)]
    finally:
        thread.join(30)
        other.close()
    assert len(ended) == 1
    assert store.row_counts()["usage"] == 0


def test_the_ledger_process_ships_to_a_server_and_answers_from_it(
    server, make_journal, usage_row, tmp_path, monkeypatch
):
    fill(make_journal(), usage_row, 20)
    monkeypatch.setenv(PASSWORD_ENV, "secret")
    with open_ledger(tmp_path, server.url) as client:
        status = client.flush()
        assert (status["lag_rows"], status["stalled"]) == (0, {})
        assert client.rows("SELECT team, count() AS n FROM usage GROUP BY team") == [{"team": "search", "n": 20}]
        [spend] = client.rows(report("spend", since="1d").sql)
        assert (spend["requests"], spend["list_cost_usd"]) == (20, "0.000030000")
        with pytest.raises(QueryFailed, match="READONLY"):
            client.query("INSERT INTO usage (org) VALUES ('x')")
    assert not (tmp_path / "ledger").exists()
