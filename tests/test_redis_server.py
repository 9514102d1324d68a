"""The Redis of the tests is a real one, keeps or forgets as it was told, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from tests import local_server, redis_server
from tests.local_server import ServerFailed, version_of
from tests.redis_server import Persistence, RedisMissing, RedisServer

ROOT = Path(__file__).resolve().parent.parent
HANG_S = 30.0
# Where there is none, each test fails and says what to install.
BINARIES: list[Path | None] = [*redis_server.binaries()] or [None]


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def fill(of: redis.Redis) -> None:
    for number in range(100):
        of.set(f"filler:{number}", "x" * (1 << 17))


@pytest.mark.parametrize("executable", BINARIES, ids=str)
@pytest.mark.parametrize("persistence", ["always", "everysec"])
def test_what_is_on_disk_is_there_after_a_stop(executable: Path | None, persistence: Persistence) -> None:
    with RedisServer(persistence, executable=executable) as server:
        url = server.url
        client(server).set("kept", "yes")
        server.stop()
        server.start()
        assert (server.url, client(server).get("kept")) == (url, "yes")
        assert client(server).config_get("appendfsync") == {"appendfsync": persistence}


@pytest.mark.parametrize("executable", BINARIES, ids=str)
def test_with_fsync_at_each_write_a_kill_loses_no_write_that_was_answered(executable: Path | None) -> None:
    with RedisServer("always", executable=executable) as server:
        for _ in range(3):
            client(server).incr("counted")
            server.kill()
            server.start()
        assert client(server).get("counted") == "3"


@pytest.mark.parametrize("executable", BINARIES, ids=str)
def test_without_persistence_a_restart_forgets_everything(executable: Path | None) -> None:
    with RedisServer("none", executable=executable) as server:
        client(server).set("kept", "no")
        server.stop()
        server.start()
        assert client(server).dbsize() == 0


@pytest.mark.parametrize("executable", BINARIES, ids=str)
def test_a_cluster_of_one_refuses_keys_of_two_slots_also_after_a_restart(executable: Path | None) -> None:
    """And takes those whose hash tag is the same, in one script."""
    with RedisServer("always", cluster=True, executable=executable) as server:
        server.kill()
        server.start()
        of = client(server)
        with pytest.raises(redis.exceptions.ResponseError, match=r"CROSSSLOT|same slot"):
            of.execute_command("MSET", "{acme}:a", "1", "{other}:b", "2")
        assert of.eval("return redis.call('mset', KEYS[1], 1, KEYS[2], 2)", 2, "{acme}:a", "{acme}:b") == "OK"


@pytest.mark.parametrize("executable", BINARIES, ids=str)
def test_a_full_memory_refuses_writes_and_evicts_nothing(executable: Path | None) -> None:
    with RedisServer(memory_bytes_max=3 << 20, executable=executable) as server:
        of = client(server)
        of.set("first", "kept")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(of)
        assert of.get("first") == "kept"


def test_servers_that_start_at_once_are_each_their_own() -> None:
    servers = [RedisServer() for _ in range(4)]
    try:
        with ThreadPoolExecutor(len(servers)) as starting:
            list(starting.map(RedisServer.start, servers))
        assert len({server.port for server in servers}) == len(servers)
        pids = [client(server).info("server")["process_id"] for server in servers]
        assert pids == [server.pid for server in servers]
    finally:
        for server in servers:
            server.close()


def test_a_port_that_another_took_meanwhile_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who comes second takes the next port instead of answering for the first."""
    with RedisServer() as first, RedisServer() as third:
        ports = iter([first.port, third.port])
        chosen = local_server.free_port
        monkeypatch.setattr(local_server, "free_port", lambda: next(ports, 0) or chosen())
        with RedisServer() as second:
            assert second.port not in (first.port, third.port)
            assert client(second).info("server")["process_id"] == second.pid


def test_one_that_does_not_come_up_says_so_with_the_end_of_its_log() -> None:
    with RedisServer() as running:
        second = RedisServer()
        second.port = running.port
        with pytest.raises(ServerFailed, match="already in use"):
            second.start()
        second.close()


def test_a_refused_command_is_an_error() -> None:
    with RedisServer() as server, pytest.raises(ServerFailed, match="unknown command"):
        server.ask("NONSENSE")


def test_nothing_is_left_of_a_closed_server() -> None:
    with RedisServer("always") as server:
        pid, folder = server.pid, server.folder
        client(server).set("written", "yes")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    with pytest.raises(ServerFailed, match="no redis-server runs"):
        assert server.pid


def test_a_test_that_is_killed_leaves_no_server_and_no_folder() -> None:
    script = (
        "import os, signal; from tests.redis_server import RedisServer; server = RedisServer('always'); server.start();"
        "print(server.pid, server.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    pid, folder = done.stdout.split()
    deadline_s = time.monotonic() + HANG_S
    while Path(folder).exists() or Path("/proc", pid, "exe").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert done.returncode == -signal.SIGKILL


def test_a_machine_without_redis_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is too old, or that cannot run, is none."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=00000000:0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server.sysconfig, "get_path", lambda _: str(tmp_path / "no wheels"))
    with pytest.raises(RedisMissing, match=r"install redis-server 6\.2 or newer"):
        redis_server.binary()
    assert version_of([str(tmp_path / "absent")], re.compile("")) == ()
