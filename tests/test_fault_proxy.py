"""Each fault of the proxy, between redis-py and a real Redis, does what it says and can be taken back."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Broken
from redis.exceptions import TimeoutError as TimedOut

from tests.fault_proxy import FaultProxy
from tests.local_server import HOST
from tests.redis_server import RedisServer

TIMEOUT_S = 1.0
HANG_S = 20.0
NEVER_AGAIN: dict[str, Any] = {
    "retry": None,
    "socket_timeout": TIMEOUT_S,
    "socket_connect_timeout": HANG_S,
    "decode_responses": True,
}
ADD = "return redis.call('incrby', KEYS[1], ARGV[1])"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[FaultProxy]:
    server.ask("FLUSHALL")
    tasks = asyncio.all_tasks()
    async with FaultProxy(HOST, server.port) as running:
        yield running
    assert running.counts.open == 0
    assert asyncio.all_tasks() <= tasks | {asyncio.current_task()}


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Redis]:
    """A client that sends nothing twice and waits for nothing long."""
    async with Redis.from_url(proxy.url, **NEVER_AGAIN) as of:
        yield of


def straight(server: RedisServer) -> redis.Redis:
    """A client that goes past the proxy."""
    return redis.Redis.from_url(server.url, decode_responses=True)


async def test_without_faults_it_is_not_there(proxy: FaultProxy, client: Redis) -> None:
    """Also for values larger than what is read at once, pipelines, scripts and twenty clients at a time."""
    value = os.urandom(3 << 19).hex()
    await client.set("large", value)
    assert await client.get("large") == value
    async with client.pipeline(transaction=True) as pipe:
        for _ in range(100):
            pipe.incr("counted")
        assert (await pipe.execute())[-1] == 100
    assert await asyncio.gather(*(client.eval(ADD, 1, f"k{number}", number) for number in range(20))) == [*range(20)]
    assert proxy.counts.commands["EVAL"] == 20
    assert proxy.counts.resets == 0


async def test_both_versions_of_the_protocol_pass(proxy: FaultProxy) -> None:
    for protocol in (2, 3):
        async with Redis.from_url(proxy.url, protocol=protocol, **NEVER_AGAIN) as of:
            await of.hset("h", mapping={"a": "1", "b": ""})
            assert await of.hgetall("h") == {"a": "1", "b": ""}
            assert await of.get("absent") is None
            assert await of.zadd("z", {"m": 1.5}) in (0, 1)
            assert await of.zrange("z", 0, -1, withscores=True)


async def test_round_trips_are_counted_by_answers_and_not_by_commands(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    before = proxy.counts.round_trips
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(50):
            pipe.incr("counted")
        await pipe.execute()
    assert proxy.counts.round_trips == before + 1
    for _ in range(5):
        await client.incr("counted")
    assert proxy.counts.round_trips == before + 6
    assert proxy.counts.commands["INCRBY"] == 55


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_latency_of_either_way_delays_every_answer(proxy: FaultProxy, client: Redis, way: str) -> None:
    await client.ping()
    await proxy.change(**{way: {"delay_s": 0.05, "jitter_s": 0.02}})
    begun_s = time.monotonic()
    for _ in range(4):
        await client.incr("counted")
    assert time.monotonic() - begun_s >= 0.2
    assert await client.get("counted") == "4"


async def test_latency_delays_all_that_is_sent_together_only_once(proxy: FaultProxy, server: RedisServer) -> None:
    """It is a delay and no lack of bandwidth: twenty commands in twenty writes are all done after one of it."""
    await proxy.change(to_server={"delay_s": 0.5})
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    begun_s = time.monotonic()
    for _ in range(20):
        writer.write(b"INCR counted\r\n")
        await asyncio.sleep(0.005)
    assert await reader.readexactly(len(b":1\r\n") * 9 + len(b":10\r\n") * 11)
    writer.close()
    assert 0.5 <= time.monotonic() - begun_s < 20 * 0.5
    assert straight(server).get("counted") == "20"


async def test_what_waits_for_a_delay_goes_on_when_it_is_taken_back(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    await proxy.change(to_server={"delay_s": 3600.0})
    asked = asyncio.create_task(client.incr("counted"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    await proxy.heal()
    assert await asyncio.wait_for(asked, HANG_S) == 1


async def test_a_connection_is_reset_as_it_is_made(proxy: FaultProxy, client: Redis) -> None:
    await proxy.change(reset_at_connect=True)
    with pytest.raises(Broken):
        await client.ping()
    assert proxy.counts.resets == 1
    await proxy.heal()
    assert await client.ping()


async def test_a_reset_is_a_reset_and_no_end(proxy: FaultProxy) -> None:
    """RST, where a client that is only hung up on would read an end of file."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    await proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_connection_is_reset_after_so_many_bytes_of_a_command(proxy: FaultProxy, server: RedisServer) -> None:
    """The command is torn to the byte, so it is not executed."""
    await proxy.change(to_server={"reset_after_bytes": len(b"INCR cou")})
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"INCR counted\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert proxy.counts.bytes_to_server == len(b"INCR cou")
    assert straight(server).get("counted") is None


async def test_a_connection_is_reset_after_so_many_bytes_of_a_reply(proxy: FaultProxy, server: RedisServer) -> None:
    """The command is executed, and the client sees the beginning of the reply."""
    straight(server).set("text", "x" * 1000)
    await proxy.change(to_client={"reset_after_bytes": 10})
    connection = socket.create_connection((HOST, proxy.port), timeout=HANG_S)
    connection.sendall(b"GET text\r\n")
    seen = await asyncio.to_thread(until_broken, connection)
    connection.close()
    assert len(seen) <= 10
    assert (proxy.counts.bytes_to_client, proxy.counts.resets) == (10, 1)


def until_broken(connection: socket.socket) -> bytes:
    """What is read until the connection is reset, which it must be."""
    seen = b""
    try:
        while byte := connection.recv(1):
            seen += byte
    except ConnectionResetError:
        return seen
    raise AssertionError(f"an end, not a reset, after {seen!r}")


async def test_a_command_that_is_reset_never_arrives(proxy: FaultProxy, client: Redis, server: RedisServer) -> None:
    await proxy.change(reset_on={"command": "INCRBY counted", "times": 2})
    assert await client.incr("another") == 1
    for _ in range(2):
        with pytest.raises(Broken):
            await client.incr("counted")
    assert straight(server).get("counted") is None
    assert await client.incr("counted") == 1


async def test_a_lost_reply_had_its_effect_exactly_once(proxy: FaultProxy, client: Redis, server: RedisServer) -> None:
    """The client cannot tell it from a command that never arrived; Redis can."""
    sha = await client.script_load(ADD)
    await proxy.change(lose_reply={"command": f"EVALSHA {sha}"})
    with pytest.raises(Broken):
        await client.evalsha(sha, 1, "counted", 7)
    assert straight(server).get("counted") == "7"
    assert straight(server).info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert await client.evalsha(sha, 1, "counted", 7) == 14
    server.ask("CONFIG RESETSTAT")


async def test_a_client_that_tries_again_after_a_lost_reply_counts_twice(
    proxy: FaultProxy, server: RedisServer
) -> None:
    """What an id for each operation is for: redis-py made without a URL sends again unless told not to."""
    async with Redis(host=HOST, port=proxy.port) as eager:
        await proxy.change(lose_reply={"command": "INCRBY"})
        assert await eager.incr("counted") == 2
    assert proxy.counts.commands["INCRBY"] == 2
    assert straight(server).get("counted") == "2"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_messages_of_a_channel_are_no_replies(proxy: FaultProxy, server: RedisServer, protocol: int) -> None:
    """A subscriber goes on hearing while replies get lost elsewhere."""
    async with Redis.from_url(proxy.url, protocol=protocol, **NEVER_AGAIN) as of, of.pubsub() as channel:
        await channel.subscribe("recalls")
        await proxy.change(lose_reply={"command": "PUBLISH"})
        heard = [await channel.get_message(timeout=HANG_S)]
        with pytest.raises(Broken):
            await of.publish("recalls", "one")
        straight(server).publish("recalls", "two")
        heard += [await channel.get_message(timeout=HANG_S) for _ in range(2)]
        assert await of.publish("recalls", "three") == 1
        heard.append(await channel.get_message(timeout=HANG_S))
    assert [each and each["data"] for each in heard] == [1, "one", "two", "three"]


async def test_of_a_pipeline_only_what_was_answered_before_the_lost_reply_is_seen(
    proxy: FaultProxy, server: RedisServer
) -> None:
    await proxy.change(lose_reply={"command": "INCR second"})
    connection = socket.create_connection((HOST, proxy.port), timeout=HANG_S)
    connection.sendall(b"INCR first\r\nINCR second\r\nINCR third\r\n")
    # RST may overtake what lies unread in the kernel, so what was seen is at most the first reply.
    assert await asyncio.to_thread(until_broken, connection) in (b":1\r\n"[:size] for size in range(5))
    connection.close()
    assert proxy.counts.bytes_to_client == len(b":1\r\n")
    assert straight(server).mget("first", "second", "third") == ["1", "1", "1"]


async def test_a_frozen_connection_swallows_and_stays_open(
    proxy: FaultProxy, client: Redis, server: RedisServer
) -> None:
    """Half-open: no reply, no end, no reset; new connections too. Once healed, they are reset and new ones serve."""
    await client.ping()
    await proxy.change(freeze=True)
    old, new = client, Redis.from_url(proxy.url, **NEVER_AGAIN)
    async with new:
        for each in (old, new):
            with pytest.raises(TimedOut):
                await each.incr("counted")
    connection = socket.create_connection((HOST, proxy.port), timeout=TIMEOUT_S)
    connection.sendall(b"PING\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(connection.recv, 1)
    assert straight(server).get("counted") is None
    await proxy.heal()
    connection.settimeout(HANG_S)
    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(connection.recv, 1)
    connection.close()
    assert await client.incr("counted") == 1


async def test_a_command_under_way_when_the_link_freezes_is_executed_and_never_answered(
    proxy: FaultProxy, client: Redis, server: RedisServer
) -> None:
    await client.ping()
    await proxy.change(to_client={"delay_s": 0.1})
    asked = asyncio.create_task(client.incr("counted"))
    await asyncio.wait_for(asyncio.to_thread(executed, straight(server)), HANG_S)
    await proxy.change(freeze=True)
    with pytest.raises(TimedOut):
        await asked
    assert straight(server).get("counted") == "1"


async def test_refused_connections_are_refused_and_the_others_go_on(proxy: FaultProxy, client: Redis) -> None:
    await client.ping()
    await proxy.change(refuse=True)
    assert await client.ping()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, proxy.port), timeout=HANG_S)
    port = proxy.port
    await proxy.heal()
    assert proxy.port == port
    async with Redis.from_url(proxy.url, **NEVER_AGAIN) as another:
        assert await another.ping()


async def test_a_server_that_is_away_and_comes_back_is_found_again(proxy: FaultProxy, client: Redis) -> None:
    with RedisServer() as other:
        async with FaultProxy(HOST, other.port) as before, Redis.from_url(before.url, **NEVER_AGAIN) as of:
            assert await of.ping()
            other.kill()
            with pytest.raises(Broken):
                await of.ping()
            other.start()
            assert await of.ping()


@pytest.mark.parametrize(("way", "executed"), [("to_server", None), ("to_client", "1")])
async def test_a_partition_of_one_way_holds_back_only_what_goes_that_way(
    proxy: FaultProxy, client: Redis, server: RedisServer, way: str, executed: str | None
) -> None:
    """Once it is healed, what was held back arrives, as TCP sends again what was not acknowledged."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    await proxy.change(**{way: {"cut": True}})
    writer.write(b"INCR counted\r\n")
    answered = asyncio.create_task(reader.readline())
    await asyncio.sleep(TIMEOUT_S)
    assert not answered.done()
    assert straight(server).get("counted") == executed
    await proxy.heal()
    assert await asyncio.wait_for(answered, HANG_S) == b":1\r\n"
    writer.close()


async def test_a_trickle_sends_byte_by_byte(proxy: FaultProxy) -> None:
    """A client that takes one read for a whole reply would not survive it."""
    await proxy.change(to_client={"byte_s": 0.002}, to_server={"byte_s": 0.001})
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"ECHO trickled\r\n")
    reads: list[bytes] = []
    while b"trickled\r\n" not in b"".join(reads):
        reads.append(await asyncio.wait_for(reader.read(100), HANG_S))
    writer.close()
    assert len(reads) > 3
    async with Redis.from_url(proxy.url, decode_responses=True) as patient:
        assert await patient.echo("a sentence of some length") == "a sentence of some length"


async def test_a_client_that_reads_nothing_fills_no_memory(proxy: FaultProxy, server: RedisServer) -> None:
    """What Redis answers waits in Redis once the queue of the way is full."""
    straight(server).set("large", "x" * (1 << 20))
    connection = socket.create_connection((HOST, proxy.port), timeout=HANG_S)
    connection.sendall(b"GET large\r\n" * 64)
    await asyncio.sleep(TIMEOUT_S)
    (task,) = proxy._links.values()
    assert not task.done()
    assert proxy.counts.bytes_to_client < 32 << 20
    connection.close()


async def test_connections_end_as_their_ends_end_them(proxy: FaultProxy, server: RedisServer) -> None:
    """A client that ends its side still gets its answers, and then nothing is left of the link."""
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"INCR counted\r\n")
    writer.write_eof()
    assert await reader.read() == b":1\r\n"
    writer.close()
    async with asyncio.timeout(HANG_S):
        while proxy.counts.open:  # noqa: ASYNC110 a counter tells nobody
            await asyncio.sleep(0.01)
    assert proxy.counts.resets == 0


def executed(of: redis.Redis) -> None:
    """Wait until the counter is there."""
    while of.get("counted") is None:
        time.sleep(0.001)
