"""An unmodified clickhouse-connect, and whoever speaks ClickHouse's HTTP, is served, bounded and told what is wrong."""

import gzip
import hashlib
import http.client
import json
import os
import secrets
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, Error

from ledger.client import LedgerClient, QueryFailed, open_ledger
from ledger.journal import Journal
from ledger.turns import PER_KEY_MAX, WAITING_PER_KEY_MAX

ROWS = 900
# More than fits between the engine and a client that does not read, and less than a key may have.
WIDE = "SELECT number, repeat('x', 200) FROM numbers(900000)"
SECRET, ALL_SECRET = (f"bsl-{secrets.token_urlsafe(32)}" for _ in range(2))


def key_line(secret, orgs, **values):
    """One line of the key file."""
    line = {
        "key_id": hashlib.sha256(secret.encode()).hexdigest()[:8],
        "kind": "ledger",
        "org": "-",
        "orgs": orgs,
        "expires_at": None,
        "revoked_at": None,
        "digest": hashlib.sha256(secret.encode()).hexdigest(),
    }
    return json.dumps(line | values) + "\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a key of one organisation and a key of all."""
    path = tmp_path_factory.mktemp("home")
    keys = path / "keys"
    keys.touch(0o600)
    keys.write_text(key_line(SECRET, ["acme"]) + key_line(ALL_SECRET, ["*"]))
    return path


@pytest.fixture(scope="module")
def ledger(home):
    """A ledger process with rows of two organisations, one row in three not of acme's."""
    journal = Journal.open(home / "journal" / "gateway-0", segment_bytes=1 << 20, snapshot=dict)
    for number in range(ROWS):
        row = {
            "ts_us": time.time_ns() // 1000,
            "event_id": f"e{number}",
            "request_id": f"r{number}",
            "org": "acme" if number % 3 else "evil",
            "team": "search",
            "list_cost_nusd": 9_007_199_254_740_993,
            "charges": [["team-day", "acme/search", 1_763_596_800, "tokens", 110]],
        }
        journal.append("usage", row)
    journal.close()
    with open_ledger(home, f"chdb://{home}/ledger") as client:
        client.flush()
        yield client


def connect(ledger, secret=SECRET, **options):
    """The real client, as anyone gets it."""
    host, port = ledger.address
    return clickhouse_connect.get_client(host=host, port=port, username="acme", password=secret, **options)


@pytest.fixture(scope="module")
def client(ledger):
    """One that the file shares."""
    opened = connect(ledger)
    yield opened
    opened.close()


@contextmanager
def asked(ledger, target="/", method="POST", body=b"", secret=SECRET, **headers):
    """A plain HTTP response, not yet read."""
    connection = http.client.HTTPConnection(*ledger.address, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {"X-ClickHouse-Key": secret} | named)
        yield connection.getresponse()
    finally:
        connection.close()


def answer(ledger, target="/", **options):
    """Status and body of one exchange."""
    with asked(ledger, target, **options) as response:
        return response.status, response.read()


def test_the_client_connects_and_learns_version_timezone_and_settings(client):
    assert client.server_version.count(".") == 3
    assert client.ping()
    assert client.server_settings["max_threads"].readonly == 0
    assert "additional_table_filters" not in client.server_settings


def test_rows_columns_and_types_arrive_whole(client):
    result = client.query("SELECT org, count() AS n, any(list_cost_nusd) AS c, any(charges) FROM usage GROUP BY org")
    assert result.column_names[:3] == ("org", "n", "c")
    [(org, count, cost, charges)] = result.result_rows
    assert (org, count, cost, charges[0]["amount"]) == ("acme", ROWS * 2 // 3, 9_007_199_254_740_993, 110)
    assert result.query_id
    assert int(result.summary["elapsed_ns"]) > 0
    assert client.query("SELECT * FROM usage LIMIT 0").column_names[0] == "ts"
    assert client.query("SELECT 1", settings={"query_id": "mine"}).query_id == "mine"


def test_parameters_are_bound_on_either_side(client, ledger):
    count = "SELECT count() FROM usage WHERE team = "
    assert client.query(count + "{t:String}", parameters={"t": "search"}).result_rows == [(ROWS * 2 // 3,)]
    assert client.query(count + "%(t)s", parameters={"t": "it's"}).result_rows == [(0,)]
    assert client.query("SELECT {x:Array(String)}", parameters={"x": ["a", "it's"]}).result_rows == [(["a", "it's"],)]
    assert client.query("SELECT count() FROM {t:Identifier}", parameters={"t": "usage"}).result_rows[0][0] > 0
    with pytest.raises(DatabaseError, match="not served"):
        client.query("SELECT * FROM {t:Identifier}", parameters={"t": "system.parts"})
    form = connect(ledger, form_encode_query_params=True)
    long = "x" * 100_000 + "ü\n"
    assert form.query("SELECT {a:String}", parameters={"a": long}).result_rows == [(long,)]
    form.close()


def test_results_come_in_blocks_of_rows_of_columns_and_of_arrow(client):
    numbers = "SELECT number, toString(number) AS text FROM numbers(300000)"
    with client.query_rows_stream(numbers) as rows:
        assert sum(row[0] for row in rows) == 300_000 * 299_999 // 2
    with client.query_row_block_stream(numbers) as blocks:
        assert sum(len(block) for block in blocks) == 300_000
    with client.query_column_block_stream(numbers) as blocks:
        assert sum(len(block[1]) for block in blocks) == 300_000
    with client.query_arrow_stream(numbers) as batches:
        assert sum(batch.num_rows for batch in batches) == 300_000
    table = client.query_arrow("SELECT org, list_cost_nusd FROM usage")
    assert isinstance(table, pa.Table)
    assert table.num_rows == ROWS * 2 // 3


def test_raw_results_commands_and_settings(client):
    assert client.raw_query("SELECT 1, 'a'", fmt="CSVWithNames") == b'"1","\'a\'"\n1,"a"\n'
    stream = client.raw_stream("SELECT number FROM numbers(200000)", fmt="CSV")
    assert stream.read().count(b"\n") == 200_000
    assert client.command("SELECT count() FROM usage") == ROWS * 2 // 3
    assert client.command("EXISTS TABLE usage") == 1
    rows = client.query("SELECT number FROM numbers(10)", settings={"limit": 3, "max_threads": 1}).result_rows
    assert rows == [(0,), (1,), (2,)]
    assert client.query("SHOW TABLES").row_count > 5
    assert "usage" in {row[0] for row in client.query("SELECT name FROM system.tables").result_rows}


@pytest.mark.parametrize(
    ("sql", "settings", "code"),
    [
        ("INSERT INTO usage (org) VALUES ('x')", {}, "164"),
        ("CREATE TABLE x (a Int8) ENGINE = Memory", {}, "164"),
        ("SELECT * FROM file('/etc/hostname', 'CSV', 'a String')", {}, "164"),
        ("SELECT * FROM remote('127.0.0.1', 'system', 'one')", {}, "164"),
        ("SELECT * FROM system.query_log", {}, "164"),
        ("SELECT 1 SETTINGS readonly = 0", {}, "452"),
        ("SELECT 1", {"max_execution_time": 1000}, "452"),
        ("SELECT nope FROM usage", {}, "47"),
        ("SELECT * FROM nowhere", {}, "60"),
        ("SELECT (1", {}, "62"),
    ],
)
def test_refusals_reach_the_client_with_their_number(client, sql, settings, code):
    with pytest.raises(DatabaseError, match=f"code: {code}, server response: Code: {code}"):
        client.query(sql, settings=settings)


def test_a_setting_that_is_not_served_does_not_leave_the_client(client):
    with pytest.raises(Error, match="additional_table_filters"):
        client.query("SELECT 1", settings={"additional_table_filters": "{}"})


def test_it_stays_refused_when_another_client_sends_it(ledger):
    for target in ("/?additional_table_filters={}", "/?additional_result_filter=1", "/?readonly=0"):
        status, said = answer(ledger, target, body=b"SELECT 1")
        assert (status in (400, 403), said[:6]) == (True, b"Code: ")
    assert answer(ledger, "/?readonly=1&session_id=s&quota_key=k", body=b"SELECT 1") == (200, b"1\n")
    assert answer(ledger, "/?database=system", body=b"SELECT 1")[0] == 404
    assert answer(ledger, "/?database=default", body=b"SELECT 1") == (200, b"1\n")


@pytest.mark.parametrize("compress", [False, "gzip", True])
def test_an_error_in_the_middle_of_a_result_reaches_the_client(ledger, compress):
    client = connect(ledger, compress=compress)
    with pytest.raises(Error, match="throwIf"):
        client.query("SELECT throwIf(number = 900000), number FROM numbers(1000000)").result_set  # noqa: B018
    with pytest.raises(Error, match="TOO_MANY_ROWS"):
        client.query("SELECT number FROM numbers(1500000)").result_set  # noqa: B018
    assert client.query("SELECT 1").result_rows == [(1,)]
    client.close()


def test_an_error_in_the_middle_leaves_the_response_without_an_end(ledger):
    body = b"SELECT throwIf(number = 900000), number FROM numbers(1000000) FORMAT CSV"
    with asked(ledger, body=body) as response:
        tag = response.getheader("X-ClickHouse-Exception-Tag")
        with pytest.raises(http.client.IncompleteRead) as broken:
            response.read()
    said = broken.value.partial[-1000:].decode()
    assert response.status == 200
    assert said.count(tag) == 2
    assert "Code: 395" in said
    home = LedgerClient(ledger.address, ALL_SECRET)
    with pytest.raises(QueryFailed, match=r"^Code: 395\. [^\n]*\(FUNCTION_THROW_IF_VALUE_IS_NON_ZERO\)$"):
        list(home.stream(body.decode().removesuffix("FORMAT CSV"), "CSV"))


def test_results_are_compressed_for_who_asks(ledger):
    sql = b"SELECT number FROM numbers(200000)"
    whole = answer(ledger, body=sql)[1]
    for encoding, unpack in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        for offered in (encoding, f"lz4,zstd, {encoding};q=0.5"):
            with asked(ledger, "/?enable_http_compression=1", body=sql, Accept_Encoding=offered) as response:
                packed = response.read()
                assert response.getheader("Content-Encoding") == encoding
            assert len(packed) < len(whole) // 2
            assert unpack(packed) == whole
    for target, offered in (("/", "gzip"), ("/?enable_http_compression=1", "gzip;q=0, br")):
        with asked(ledger, target, body=sql, Accept_Encoding=offered) as response:
            assert response.getheader("Content-Encoding") is None
            assert response.read() == whole


def test_headers_say_what_drivers_look_for(ledger):
    with asked(ledger, "/?query_id=mine&default_format=JSONEachRow", body=b"SELECT 1 AS x") as response:
        assert response.read() == b'{"x":1}\n'
        assert response.getheader("X-ClickHouse-Query-Id") == "mine"
        assert response.getheader("X-ClickHouse-Format") == "JSONEachRow"
        assert response.getheader("X-ClickHouse-Timezone")
        assert response.getheader("Content-Type") == "application/json; charset=UTF-8"
        assert set(json.loads(response.getheader("X-ClickHouse-Summary"))) == {"elapsed_ns"}
    with asked(ledger, body=b"SELECT (1") as response:
        assert response.status == 400
        assert response.getheader("X-ClickHouse-Exception-Code") == "62"


def test_what_curl_grafana_and_jdbc_send_is_answered(ledger):
    assert answer(ledger, "/ping", method="GET", secret="none") == (200, b"Ok.\n")
    assert answer(ledger, "/replicas_status", method="GET", secret="none") == (200, b"Ok.\n")
    assert answer(ledger, "/ping", method="HEAD") == (200, b"")
    assert answer(ledger, "/", method="GET") == (200, b"Ok.\n")
    assert answer(ledger, "/?query=SELECT%201", method="GET") == (200, b"1\n")
    assert answer(ledger, "/?query=SELECT%201", method="HEAD") == (200, b"")
    assert answer(ledger, f"/?query=SELECT%201&user=x&password={SECRET}", method="GET", secret="no") == (200, b"1\n")
    form = {"Content_Type": "application/x-www-form-urlencoded"}  # what curl -d says of a statement
    assert answer(ledger, body=b"SELECT 1", **form) == (200, b"1\n")
    assert answer(ledger, body=b"SELECT 1", X_ClickHouse_Format="CSVWithNames") == (200, b'"1"\n1\n')
    for statement in (
        "SELECT currentUser() AS user, timezone() AS timezone, version() AS version FORMAT RowBinaryWithNamesAndTypes",
        "SELECT * FROM system.tables FORMAT JSON",
        "SELECT name, type FROM system.columns WHERE table = 'usage' FORMAT JSONCompact",
        "SELECT name FROM system.databases FORMAT TSVWithNamesAndTypes",
        "SELECT name, value FROM system.settings FORMAT RowBinaryWithNamesAndTypes",
        "SELECT name FROM system.functions FORMAT TSV",
        "SELECT name FROM system.data_type_families FORMAT TSV",
        "SELECT name FROM system.table_engines FORMAT TSV",
    ):
        status, body = answer(ledger, body=statement.encode())
        assert (status, bool(body)) == (200, True)


def test_what_cannot_be_understood_is_refused_in_a_line(ledger):
    multipart = {"Content_Type": "multipart/form-data; boundary=b"}
    file = b'--b\r\nContent-Disposition: form-data; name="t"; filename="t.csv"\r\n\r\n1\r\n--b--\r\n'
    for status, options in (
        (400, {"body": file, **multipart}),
        (400, {"body": b"not a form", **multipart}),
        (400, {"body": b"SELECT 1", "Content_Encoding": "gzip"}),
        (400, {"target": "/?query=%FF", "body": b""}),
        (400, {"target": "/?" + "&".join(f"a{n}=1" for n in range(300)), "body": b"SELECT 1"}),
        (404, {"target": "/play", "method": "GET"}),
        (404, {"method": "PUT"}),
        (403, {"target": "/status", "method": "GET"}),
        (403, {"target": "/flush"}),
        (413, {"body": b"x" * (2 << 20)}),
    ):
        said = answer(ledger, **options)
        assert (said[0], said[1].count(b"\n")) == (status, 1)


def test_one_connection_answers_one_request_after_another(ledger):
    connection = http.client.HTTPConnection(*ledger.address, timeout=30)
    for number in range(20):
        connection.request("POST", "/", f"SELECT {number}", {"X-ClickHouse-Key": SECRET})
        assert connection.getresponse().read() == f"{number}\n".encode()
        socket_now = connection.sock
        assert socket_now is not None
    connection.close()


def begun(ledger, sql, secret):
    """A connection on which a result has begun to come, and is not read."""
    connection = http.client.HTTPConnection(*ledger.address, timeout=60)
    connection.request("POST", "/", sql, {"X-ClickHouse-Key": secret})
    response = connection.getresponse()
    assert response.read1(10)
    return connection


def test_a_client_that_leaves_gives_its_turn_back(ledger):
    """More than there are turns leave, in the middle of a result and before its beginning."""
    for _ in range(8):
        begun(ledger, "SELECT number FROM numbers(100000000000)", ALL_SECRET).close()
        early = socket.create_connection(ledger.address)
        sql = b"SELECT max(sipHash64(number)) FROM numbers(100000000000)"
        early.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-ClickHouse-Key: %b\r\n" % ALL_SECRET.encode())
        early.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(sql), sql))
        early.close()
    assert answer(ledger, body=b"SELECT 1", secret=ALL_SECRET) == (200, b"1\n")


def test_a_key_whose_results_nobody_reads_keeps_nobody_else_waiting(ledger, home):
    stalled = [begun(ledger, WIDE, SECRET) for _ in range(PER_KEY_MAX)]
    try:
        own = (home / "run" / "ledger.token").read_text()
        for secret in (ALL_SECRET, own):
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _, s=secret: answer(ledger, body=b"SELECT 1", secret=s), range(8)))
            assert answers == [(200, b"1\n")] * 8
    finally:
        for connection in stalled:
            connection.close()
    assert answer(ledger, body=b"SELECT 1") == (200, b"1\n")


def test_too_many_at_once_are_turned_away_and_the_rest_served(ledger):
    stalled = [begun(ledger, WIDE, SECRET) for _ in range(PER_KEY_MAX)]
    found = []
    asks = [lambda: found.append(answer(ledger, body=b"SELECT 1"))] * (WAITING_PER_KEY_MAX + 3)
    threads = [threading.Thread(target=ask) for ask in asks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(found) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {(status, said[:9]) for status, said in found} == {(503, b"Code: 202")}
    assert answer(ledger, body=b"SELECT 1", secret=ALL_SECRET) == (200, b"1\n")
    for connection in stalled:
        connection.close()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in found) == [200] * WAITING_PER_KEY_MAX + [503] * 3


def test_a_large_result_is_never_whole_in_memory(ledger, home):
    """Half a gigabyte goes through a process that grows by less than a fifth of it."""
    pid = json.loads((home / "run" / "ledger.json").read_text())["pid"]
    token = (home / "run" / "ledger.token").read_text()
    sql = "SELECT number, repeat('x', 90) FROM numbers(5000000)"
    for _ in range(2):
        before = resident_bytes(pid)
        size = sum(len(piece) for piece in LedgerClient(ledger.address, token).stream(sql, "CSV"))
        assert size > 500_000_000
        grown = resident_bytes(pid) - before
    assert grown < 100_000_000


def resident_bytes(pid):
    """How much memory a process has in use."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
