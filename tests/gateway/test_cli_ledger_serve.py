"""`bursar ledger serve`, `ledger query` and ledger keys, as they are typed."""

import fcntl
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.cli import main
from gateway.cli.ledger_query import TABLE_ROWS_MAX
from gateway.keys import KeyStore, Kind, Refused
from ledger.journal import Journal
from tests.gateway.deployment import closed_port, deploy
from tests.gateway.gateway_process import ROOT, bursar, until

DONE, NO, WRONG_USAGE, AWAY = 0, 1, 2, 3
ROWS = 900


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose runtimes nobody calls."""
    return deploy(tmp_path_factory.mktemp("config"), "http://127.0.0.1:1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with rows of two organisations, one in three not of acme's."""
    path = tmp_path_factory.mktemp("home")
    journal = Journal.open(path / "journal" / "elsewhere", segment_bytes=1 << 20, snapshot=dict)
    for number in range(ROWS):
        row = {"event_id": f"e{number}", "org": "acme" if number % 3 else "evil", "list_cost_nusd": number}
        journal.append("usage", {"ts_us": time.time_ns() // 1000, **row})
    journal.close()
    return path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    printed: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        """What it printed, as text."""
        return self.printed.decode()


def ran(*arguments: str, home: Path, config: Path) -> Done:
    """One command run in this process, which is seconds faster than in its own."""
    printed, err = BytesIO(), StringIO()
    out = TextIOWrapper(printed, encoding="utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bursar", *arguments])
        patch.setenv("BURSAR_HOME", str(home))
        patch.setenv("BURSAR_CONFIG", str(config))
        try:
            main()
            code: Any = DONE
        except SystemExit as ended:
            code = ended.code
    return Done(int(code or 0), printed.getvalue(), err.getvalue())


class Served:
    """`bursar ledger serve` under way; `said` is its first line."""

    def __init__(self, home: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "gateway", "ledger", "serve", *arguments, "--home", str(home)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.port = int(self.said.split(";")[0].rpartition(":")[2])

    def ended(self, number: signal.Signals) -> tuple[int, str]:
        """How it ends after a signal, and what it complained of."""
        self.process.send_signal(number)
        _, complaint = self.process.communicate(timeout=60)
        return self.process.returncode, complaint


@pytest.fixture(scope="module")
def served(home: Path, config: Path) -> Iterator[Served]:
    """One that the file shares."""
    running = Served(home, "--port", "0", "--config", str(config))
    yield running
    assert running.ended(signal.SIGTERM)[0] == DONE


def key(home: Path, config: Path, *arguments: str) -> dict[str, Any]:
    """A new ledger key, as `--json` prints it."""
    done = ran("key", "create", "--ledger", *arguments, "--json", home=home, config=config)
    assert done.returncode == DONE, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def counted(served: Served, secret: str) -> dict[str, int]:
    """Rows of usage by organisation, through the real client."""
    client = clickhouse_connect.get_client(host="127.0.0.1", port=served.port, username="x", password=secret)
    rows = client.query("SELECT org, count() FROM usage GROUP BY org").result_rows
    client.close()
    return dict(rows)


def refused(served: Served, secret: str) -> bool:
    """Whether a secret opens nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("POST", "/", "SELECT 1", {"X-ClickHouse-Key": secret})
    status = connection.getresponse().status
    connection.close()
    return status == http.client.UNAUTHORIZED


def test_a_key_opens_the_rows_of_its_organisations_until_it_is_revoked(
    served: Served, home: Path, config: Path
) -> None:
    one, both = key(home, config, "--org", "acme"), key(home, config, "--org", "acme", "--org", "evil")
    everyone = key(home, config, "--all-orgs")
    assert (one["kind"], one["orgs"], everyone["orgs"]) == ("ledger", ["acme"], ["*"])
    assert one["secret"].startswith("bsl-")
    others: tuple[Kind, ...] = ("app", "admin")
    for kind in others:
        assert KeyStore(home / "keys").lookup(one["secret"].encode(), kind) is Refused.UNKNOWN
    until(lambda: not refused(served, one["secret"]), "the key to be known", 10)
    assert counted(served, one["secret"]) == {"acme": ROWS * 2 // 3}
    assert (
        counted(served, both["secret"])
        == counted(served, everyone["secret"])
        == {
            "acme": ROWS * 2 // 3,
            "evil": ROWS // 3,
        }
    )
    assert ran("key", "revoke", one["key_id"], home=home, config=config).returncode == DONE
    until(lambda: refused(served, one["secret"]), "the key to be refused", 5)
    assert counted(served, both["secret"])["evil"] == ROWS // 3
    listed = json.loads(ran("key", "list", "--json", home=home, config=config).stdout)
    assert {each["key_id"]: each["orgs"] for each in listed}[both["key_id"]] == ["acme", "evil"]
    assert one["secret"] not in (home / "keys").read_text()


def test_a_key_that_could_be_of_two_kinds_is_wrong_usage(home: Path, config: Path) -> None:
    for arguments in (
        ["--ledger"],
        ["--ledger", "--org", "acme", "--all-orgs"],
        ["--ledger", "--org", "*"],
        ["--ledger", "--org", ""],
        ["--ledger", "--org", "acme", "--team", "search"],
        ["--ledger", "--org", "acme", "--admin"],
        ["--all-orgs", "--org", "acme", "--team", "t", "--app", "a"],
        ["--org", "acme", "--org", "beta", "--team", "t", "--app", "a"],
    ):
        done = ran("key", "create", *arguments, home=home, config=config)
        assert (done.returncode, bool(done.stderr)) == (WRONG_USAGE, True), arguments


def test_a_second_one_says_where_the_first_listens(served: Served, home: Path, config: Path) -> None:
    again = ran("ledger", "serve", home=home, config=config)
    assert again.returncode == DONE
    assert f"127.0.0.1:{served.port} already" in again.stdout
    assert ran("ledger", "serve", "--port", str(served.port), home=home, config=config).returncode == DONE
    for elsewhere in (["--port", str(closed_port())], ["--host", "127.0.0.2"]):
        other = ran("ledger", "serve", *elsewhere, home=home, config=config)
        assert (other.returncode, other.stderr.count("\n")) == (NO, 1)
        assert str(served.port) in other.stderr


def test_large_results_are_printed_whole_and_tables_say_how_much_more_there_is(
    served: Served, home: Path, config: Path
) -> None:
    def query(sql: str, output_format: str = "table") -> bytes:
        return ran("ledger", "query", sql, "--format", output_format, home=home, config=config).printed

    large = "SELECT number AS n FROM numbers(1200000)"
    assert query(large, "csv").count(b"\n") == 1_200_001
    rows = json.loads(query(large, "json"))
    assert (len(rows), rows[-1]) == (1_200_000, {"n": 1_199_999})
    assert pq.read_table(pa.BufferReader(query(large, "parquet"))).num_rows == 1_200_000
    table = query(large).decode()
    assert f"and {1_200_000 - TABLE_ROWS_MAX:,} more rows" in table
    assert table.count("\n") < TABLE_ROWS_MAX + 10
    assert json.loads(query("SELECT 1 AS n WHERE 0", "json")) == []
    assert b"more rows" not in query("SELECT * FROM numbers(3)")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT (1", "Code: 62"),
        ("SELECT nope FROM usage", "Code: 47"),
        ("SELECT * FROM nowhere", "Code: 60"),
        ("DROP TABLE usage", "Code: 164"),
        ("SELECT throwIf(number = 900000) FROM numbers(1000000)", "Code: 395"),
    ],
)
@pytest.mark.parametrize("output_format", ["table", "csv"])
def test_what_is_wrong_with_a_statement_is_one_line_of_clickhouse(
    served: Served, home: Path, config: Path, sql: str, said: str, output_format: str
) -> None:
    done = ran("ledger", "query", sql, "--format", output_format, home=home, config=config)
    assert (done.returncode, done.stderr.count("\n")) == (NO, 1)
    assert said in done.stderr


def test_whoever_reads_only_the_beginning_leaves_no_complaint(served: Served, home: Path, config: Path) -> None:
    command = [sys.executable, "-m", "gateway", "ledger", "query", "SELECT * FROM numbers(3000000)", "--format", "csv"]
    command += ["--home", str(home), "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b'"number"\n'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == DONE


def test_what_keeps_it_from_serving_is_one_line(tmp_path: Path, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = bursar("ledger", "serve", "--port", port, home=tmp_path / "a", config=config)
        assert (done.returncode, done.stderr.count("\n")) == (AWAY, 1)
        assert f"127.0.0.1:{port}" in done.stderr
    done = ran("ledger", "serve", "--host", "0.0.0.0", home=tmp_path / "b", config=config)
    assert done.returncode == WRONG_USAGE
    assert "--expose" in done.stderr
    done = ran("ledger", "serve", "--port", "70000", home=tmp_path / "b", config=config)
    assert done.returncode == WRONG_USAGE
    named = deploy(tmp_path, "http://127.0.0.1:1", ledger={"listen_host": "0.0.0.0"})
    done = ran("ledger", "serve", home=tmp_path / "c", config=named)
    assert (done.returncode, "listen_exposed" in done.stderr) == (WRONG_USAGE, True)


def test_it_listens_where_the_configuration_says_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    port = closed_port()
    config = deploy(tmp_path, "http://127.0.0.1:1", ledger={"listen_port": port})
    running = Served(tmp_path / "home", "--config", str(config))
    assert running.port == port
    assert json.loads((tmp_path / "home" / "run" / "ledger.json").read_text())["port"] == port
    assert running.ended(signal.SIGINT) == (DONE, "")
    assert not (tmp_path / "home" / "run" / "ledger.json").exists()


def test_it_is_served_where_others_reach_it_only_when_that_is_said(tmp_path: Path, config: Path) -> None:
    everywhere = "0.0.0.0"
    running = Served(tmp_path / "home", "--host", everywhere, "--port", "0", "--expose", "--config", str(config))
    assert f"listens on {everywhere}:" in running.said
    done = ran("ledger", "query", "SELECT 1 AS one", "--format", "csv", home=tmp_path / "home", config=config)
    assert done.stdout.split() == ['"one"', "1"]
    assert running.ended(signal.SIGTERM)[0] == DONE


def test_it_ends_when_the_command_is_killed(tmp_path: Path, config: Path) -> None:
    running = Served(tmp_path / "home", "--port", "0", "--config", str(config))
    run_file = tmp_path / "home" / "run" / "ledger.json"
    assert run_file.exists()
    running.process.kill()
    running.process.wait(60)
    until(lambda: not run_file.exists(), "the ledger process to end with the command", 30)


def test_a_ledger_that_another_process_holds_or_a_newer_bursar_made_is_left_alone(tmp_path: Path, config: Path) -> None:
    with (tmp_path / "ledger.lock").open("w") as lock:
        lock.write("1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = bursar("ledger", "serve", "--port", "0", home=tmp_path, config=config)
    assert (done.returncode, done.stderr.count("\n")) == (AWAY, 1)
    assert "is open in process 1" in done.stderr
    newer = "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'of_the_future', '')"
    code = f"import sys; from ledger.store import Store; Store('chdb://' + sys.argv[1]).execute({newer!r})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "ledger")], cwd=ROOT, timeout=60, check=True)
    done = bursar("ledger", "serve", "--port", "0", home=tmp_path, config=config)
    assert (done.returncode, done.stderr.count("\n")) == (AWAY, 1)
    assert "newer than this Bursar" in done.stderr
