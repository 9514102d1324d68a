"""Heads, bodies and slowness are bounded: what is over a bound is refused, not read, and costs no memory."""

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway.deployment import BODY_BYTES_MAX, KIB, MIB
from tests.gateway.gateway_process import GatewayProcess, error_of

FLOOD_BYTES = 200 * MIB
# Loopback's own buffers take some megabytes before a sender notices that nobody reads.
TAKEN_BYTES_MAX = 24 * MIB
GROWTH_BYTES_MAX = 48 * MIB
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


def flood(connection: socket.socket, pieces: Iterable[bytes]) -> int:
    """Send until all is sent or the other side will have no more; returns how many bytes it took."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
    return sent


def read_to_end(connection: socket.socket) -> bytes:
    """What the other side said before it closed."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            said += data
    return said


def parsed(said: bytes) -> httpx.Response:
    """The last response in what was said."""
    head, _, body = said[said.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return httpx.Response(int(lines[0].split()[1]), headers=headers, content=body)


def pieces(piece: bytes, total_bytes: int = FLOOD_BYTES) -> Iterator[bytes]:
    many = piece * max(1, 64 * KIB // len(piece))
    for _ in range(total_bytes // len(many)):
        yield many


def assert_refused(connection: socket.socket, status: int, code: str) -> None:
    answer = parsed(read_to_end(connection))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["connection"] == "close"


@contextlib.contextmanager
def memory_bounded(gateway: GatewayProcess) -> Iterator[None]:
    before = gateway.resident_bytes()
    yield
    assert gateway.resident_bytes() - before < GROWTH_BYTES_MAX
    assert gateway.process.poll() is None
    assert gateway.client.get("/healthz").status_code == 200


def authorized(gateway: GatewayProcess) -> bytes:
    return b"authorization: Bearer %s\r\n" % gateway.key("free").encode()


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (POST + b"x-long: ", b"a"),
        (POST, b"x-many: a\r\n"),
        (POST, b"x-" + b"n" * 900 + b": " + b"v" * 100 + b"\r\n"),
        (POST + b"x-folded: a\r\n", b" folded\r\n"),
        (b"", b"\r\n"),
    ],
    ids=["one long header", "many headers", "large headers", "folded headers", "blank lines"],
)
def test_a_flood_of_headers_is_refused_after_some_kilobytes(
    gateway: GatewayProcess, start: bytes, piece: bytes
) -> None:
    with memory_bounded(gateway), gateway.raw() as connection:
        connection.sendall(start)
        taken = flood(connection, pieces(piece))
        said = read_to_end(connection)
    assert taken < TAKEN_BYTES_MAX
    assert parsed(said).json()["error"]["code"] in ("headers_too_large", "invalid_request")


@pytest.mark.parametrize(
    "start",
    [
        b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx-trailer: ",
        b"transfer-encoding: chunked\r\n\r\n1;extension=",
    ],
    ids=["a trailer", "a chunk extension"],
)
def test_a_flood_behind_the_head_is_refused_too(gateway: GatewayProcess, start: bytes) -> None:
    with memory_bounded(gateway), gateway.raw() as connection:
        connection.sendall(POST + authorized(gateway) + start)
        taken = flood(connection, pieces(b"a"))
    assert taken < TAKEN_BYTES_MAX


def test_a_flood_of_blank_lines_between_requests_is_refused(gateway: GatewayProcess) -> None:
    with memory_bounded(gateway), gateway.raw() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        taken = flood(connection, pieces(b"\r\n"))
    assert taken < TAKEN_BYTES_MAX


def test_headers_just_within_the_bounds_are_read(gateway: GatewayProcess) -> None:
    headers = {f"x-{number}": "v" * 300 for number in range(80)}
    assert gateway.client.get("/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 150 + b"\r\n", 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\nx-long: " + b"a" * 33 * KIB + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"a" * 9 * KIB + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
        (b"GET /?q=" + b"a" * 9 * KIB + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "invalid_request"),
        (b"hello\r\n\r\n", 400, "invalid_request"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "invalid_request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        (POST + b"content-length: many\r\n\r\n", 400, "invalid_request"),
        (POST + b"content-length: -1\r\n\r\n", 400, "invalid_request"),
        (POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_request"),
        (POST + b"transfer-encoding: chunked\r\n\r\nnot a length\r\n", 400, "invalid_request"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_a_head_that_is_wrong_is_refused_in_the_same_shape(
    gateway: GatewayProcess, head: bytes, status: int, code: str
) -> None:
    with gateway.raw() as connection:
        connection.sendall(head)
        assert_refused(connection, status, code)


@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nhost", b"\r\n", POST + b"x-y: z\r\n"])
def test_headers_that_never_end_are_given_up(gateway: GatewayProcess, start: bytes) -> None:
    with gateway.raw() as connection:
        connection.sendall(start)
        began_s = time.monotonic()
        assert_refused(connection, 408, "request_timeout")
        assert 0.5 < time.monotonic() - began_s < 3


def test_headers_that_drip_are_given_up(gateway: GatewayProcess) -> None:
    with gateway.raw() as connection:
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in POST + b"x-slow: " + b"z" * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.03)
        assert time.monotonic() - began_s < 4


def test_a_connection_on_which_nothing_is_said_is_closed(gateway: GatewayProcess) -> None:
    with gateway.raw() as connection:
        assert read_to_end(connection) == b""


@pytest.mark.parametrize("framing", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_does_not_come_is_given_up(gateway: GatewayProcess, framing: bytes) -> None:
    client_id = uuid7()
    with gateway.raw() as connection:
        connection.sendall(POST + authorized(gateway) + b"x-request-id: %s\r\n" % client_id.encode() + framing)
        assert_refused(connection, 408, "request_timeout")
    row = gateway.ended(client_id)
    assert (row["status"], row["http_status"]) == ("refused", 408)


def chunks(total_bytes: int) -> Iterator[bytes]:
    yield b'{"model": "plain", "messages": "'
    for _ in range(total_bytes // (64 * KIB)):
        yield b"a" * 64 * KIB


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("attempt", range(5))
def test_a_body_of_fifty_megabytes_is_refused_unread(gateway: GatewayProcess, has_length: bool, attempt: int) -> None:
    headers = gateway.headers("free") | ({"content-length": str(50 * MIB + 32)} if has_length else {})
    with memory_bounded(gateway):
        answer = gateway.client.post("/v1/chat/completions", content=chunks(50 * MIB), headers=headers)
        error = error_of(answer, 413, "request_too_large")
    assert error["bursar"] == {"bytes_max": BODY_BYTES_MAX}
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"]) == ("refused", 413)


def test_a_body_of_just_the_limit_is_read(gateway: GatewayProcess) -> None:
    start, end = b'{"model": "plain", "messages": [{"role": "user", "content": "', b'"}]}'
    content = start + b"a" * (BODY_BYTES_MAX - len(start) - len(end)) + end
    answer = gateway.client.post("/v1/chat/completions", content=content, headers=gateway.headers("free"))
    assert answer.status_code == 200
    assert gateway.ended(answer)["status"] == "ok"
    answer = gateway.client.post("/v1/chat/completions", content=content + b" ", headers=gateway.headers("free"))
    error_of(answer, 413, "request_too_large")


def test_a_large_body_without_a_key_is_not_read_either(gateway: GatewayProcess) -> None:
    with memory_bounded(gateway), gateway.raw() as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % FLOOD_BYTES)
        taken = flood(connection, pieces(b"a"))
        said = read_to_end(connection)
    assert taken < TAKEN_BYTES_MAX
    assert parsed(said).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/nowhere"])
def test_a_large_body_where_none_belongs_is_not_read(gateway: GatewayProcess, path: str) -> None:
    with memory_bounded(gateway), gateway.raw() as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (path.encode(), FLOOD_BYTES))
        taken = flood(connection, pieces(b"a"))
    assert taken < TAKEN_BYTES_MAX


@pytest.mark.parametrize("has_length", [True, False])
def test_a_large_body_on_the_admin_plane_is_refused_unread(gateway: GatewayProcess, has_length: bool) -> None:
    headers = {"content-type": "application/json"} | ({"content-length": str(50 * MIB + 32)} if has_length else {})
    with memory_bounded(gateway):
        error_of(
            gateway.admin.post("/admin/grant", content=chunks(50 * MIB), headers=headers), 413, "request_too_large"
        )


def test_a_body_on_the_admin_plane_that_does_not_come_is_given_up(gateway: GatewayProcess) -> None:
    url = gateway.admin.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        head = f"POST /admin/grant HTTP/1.1\r\nauthorization: {gateway.admin.headers['authorization']}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        assert_refused(connection, 408, "request_timeout")


def test_an_upgrade_is_answered_as_plain_http(gateway: GatewayProcess) -> None:
    with gateway.raw() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
