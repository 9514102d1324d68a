"""Checkpoints get out to every kind of target, the newest first, and a target that is away stops nobody."""

import http.server
import threading
import time
from contextlib import contextmanager

import pytest

from ledger.checkpoints import parse
from ledger.exports import Exporter, FolderTarget, TargetRefused, target_of
from ledger.verifier import public_key_of
from tests.ledger.signed_journal import PUBLIC_KEY, SIGNER, hashes, signed


class Receiver(http.server.ThreadingHTTPServer):
    """Takes checkpoints over HTTP; `status` is what it answers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.requests, self.gate = 200, [], threading.Event()
        self.gate.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Notes what is asked."""

    def _take(self):
        self.server.gate.wait(10)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.command, self.path, self.headers.get("authorization"), body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_PUT = _take  # noqa: N815 as the server asks for them

    def log_message(self, *_):
        """Silent."""


@contextmanager
def receiving():
    """A receiver for a while."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def exporting(url, token="", **options):
    """An exporter that does not wait long."""
    target = target_of(url, SIGNER.public_pem, token, timeout_s=2)
    exporter = Exporter(target, **{"gap_s": 0.01, "pause_s_max": 0.02, **options})
    try:
        yield exporter
    finally:
        exporter.close(5)


def until(condition):
    """Waits for something that happens in another thread."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def made(size, writer="w"):
    """A signed checkpoint."""
    return signed(writer, hashes(size))


def test_a_folder_has_every_checkpoint_the_newest_and_the_key(tmp_path):
    target = tmp_path / "out"
    with exporting(f"file://{target}") as exporter:
        for size in (1, 2, 2, 3):
            exporter.offer(made(size))
            until(lambda: exporter.status()["lacks"] == 0)
        assert exporter.status()["delivered"] == {"w": 3}
    lines = (target / "w.jsonl").read_bytes().splitlines()
    assert [parse(line).size for line in lines] == [1, 2, 3]
    assert parse((target / "w.latest.json").read_bytes()) == made(3)
    assert public_key_of((target / f"{SIGNER.key_id}.pub").read_bytes()) == PUBLIC_KEY


def test_a_webhook_is_posted_and_an_object_store_put(tmp_path):
    with receiving() as server:
        with exporting(f"{server.url}/hook?x=1", token="secret") as exporter:
            exporter.offer(made(2))
            until(lambda: exporter.status()["delivered"] == {"w": 2})
        with exporting(f"put+{server.url}/bucket/prefix/?sas=1") as exporter:
            exporter.offer(made(3, "a b"))
            until(lambda: exporter.status()["delivered"] == {"a b": 3})
            assert exporter.status()["target"] == "put+http://127.0.0.1/bucket/prefix/"
    assert server.requests == [
        ("POST", "/hook?x=1", "Bearer secret", made(2).line()),
        ("PUT", "/bucket/prefix/a%20b/3.json?sas=1", None, made(3, "a b").line()),
    ]


def test_of_what_waits_the_newest_wins_and_nobody_waits_for_it():
    with receiving() as server, exporting(server.url) as exporter:
        server.gate.clear()
        exporter.offer(made(1))
        until(lambda: exporter._waiting)
        for size in range(2, 50):
            exporter.offer(made(size))
        assert exporter.status()["lag_s"] >= 0
        assert len(exporter._waiting) == 1
        server.gate.set()
        until(lambda: exporter.status()["delivered"] == {"w": 49})
        assert len(server.requests) <= 3


def test_a_target_that_fails_is_tried_again_and_its_lag_shows():
    with receiving() as server, exporting(server.url) as exporter:
        server.status = 503
        exporter.offer(made(1))
        until(lambda: exporter.status()["failures"] >= 3)
        said = exporter.status()
        assert said["error"] == "the answer was 503"
        assert said["lag_s"] > 0
        assert said["delivered"] == {}
        server.status = 204
        until(lambda: exporter.status()["delivered"] == {"w": 1})
        assert exporter.status()["error"] == ""
        assert exporter.status()["lacks"] == 0


def test_a_checkpoint_is_given_up_after_many_tries_and_the_next_one_is_not():
    with receiving() as server, exporting(server.url, tries_max=3) as exporter:
        server.status = 301
        exporter.offer(made(1))
        until(lambda: exporter.status()["failures"] == 3)
        time.sleep(0.1)
        assert exporter.status()["failures"] == 3
        assert exporter.status()["lag_s"] > 0
        server.status = 200
        exporter.offer(made(2))
        until(lambda: exporter.status()["delivered"] == {"w": 2})


def test_a_target_that_is_nowhere_or_silent_stops_nobody(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with (
        exporting("http://127.0.0.1:9") as away,
        exporting(f"file://{blocked}/out") as no_folder,
        exporting("http://a..b/") as no_host,
        exporting("http://127.0.0.1:9", token="two\nlines") as no_token,
    ):
        for exporter in (away, no_folder, no_host, no_token):
            exporter.offer(made(1))
            until(lambda exporter=exporter: exporter.status()["failures"] >= 1)
            assert exporter.status()["error"]


def test_what_waits_at_the_end_is_tried_once_more():
    with receiving() as server:
        with exporting(server.url, gap_s=30.0) as exporter:
            exporter.offer(made(1))
            until(lambda: exporter.status()["delivered"] == {"w": 1})
            exporter.offer(made(2))
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a/b", "file://host/x", "file:///", "https://", "http://u:p@h/", "http://h:x/", "put://h/"]
)
def test_what_is_no_target_is_refused(url):
    with pytest.raises(TargetRefused, match="checkpoints go to"):
        target_of(url, b"")


def test_a_folder_target_is_named_without_secrets(tmp_path):
    assert FolderTarget(tmp_path, b"").name == f"file://{tmp_path}"
    assert target_of("https://h/p?sig=secret", b"").name == "https://h/p"
