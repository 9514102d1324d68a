"""The proxy in a process of its own does as it is told, and ends with whoever started it."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as Broken
from redis.exceptions import TimeoutError as TimedOut

from tests.local_server import HOST
from tests.proxy_faults import BadFault
from tests.proxy_process import ProxyProcess
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
HANG_S = 20.0
NEVER_AGAIN: dict[str, Any] = {
    "retry": None,
    "socket_timeout": 0.3,
    "socket_connect_timeout": HANG_S,
    "decode_responses": True,
}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def test_a_process_of_its_own_obeys_a_client_that_is_not_asyncio(server: RedisServer) -> None:
    with ProxyProcess(HOST, server.port) as proxy, redis.Redis.from_url(proxy.url, **NEVER_AGAIN) as of:
        past = redis.Redis.from_url(server.url, decode_responses=True)
        assert of.incr("counted") == 1
        proxy.change(lose_reply={"command": "INCRBY"})
        with pytest.raises(Broken):
            of.incr("counted")
        assert past.get("counted") == "2"
        assert proxy.counts()["commands"]["INCRBY"] == 2
        proxy.change(freeze=True)
        with pytest.raises(TimedOut):
            of.ping()
        proxy.heal()
        proxy.change(refuse=True)
        assert proxy.reset()["open"] == 0
        with pytest.raises(Broken):
            of.ping()
        proxy.heal()
        assert of.get("counted") == "2"
        with pytest.raises(BadFault, match="no fault 'flood'"):
            proxy.change(flood=True)


def test_the_process_ends_with_the_one_that_started_it(server: RedisServer) -> None:
    command = [sys.executable, "-m", "tests.fault_proxy", "--upstream", f"{HOST}:{server.port}"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["port"]
    socket.create_connection((HOST, port), timeout=HANG_S).close()
    process.stdin.write("nonsense\n")
    process.stdin.flush()
    assert "error" in json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(HANG_S) == 0
    process.stdout.close()
