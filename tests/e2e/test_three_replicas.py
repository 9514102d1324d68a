"""Three replicas of one shared book, a thousand streams each, Redis and one of them killed: nothing is overspent."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e import nest, records
from tests.e2e.crowd import CHAT, OpenCrowd, opened
from tests.e2e.deployment import eventually
from tests.e2e.replicas import Replica, Replicas, write_config
from tests.e2e.shared_accounts import Fates, account_faults, charged, row_faults, total, unrest
from tests.e2e.shared_counters import Cell
from tests.e2e.watch import watched
from tests.local_server import HOST
from tests.proxy_process import ProxyProcess
from tests.redis_server import Persistence, RedisServer

TIME_SCALE = 0.05
HOLD_TTL_S = 5
OUTAGE_S = 1.5
REPLIES_LOST = 3
HELD_BEFORE_THE_OUTAGE = 200
WAIT_S = 150.0
POLL_S = 0.2
SLOTS_BUDGET = "app-slots"
# What a request of one output token holds.
NEEDS = {
    "list_cost_nusd": nest.INPUT_BOUND * nest.INPUT_NUSD + nest.OUTPUT_NUSD,
    "tokens": nest.INPUT_BOUND + 1,
    "output_tokens": 1,
    "requests": 1,
    "concurrency": 1,
}


@asynccontextmanager
async def crowds(replicas: Replicas) -> AsyncIterator[dict[str, OpenCrowd]]:
    """A crowd of a thousand for each replica, all at the same moment; every answer reaches its cap."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(opened(replica.url, [*replicas.streams(ignore_eos=True)]))
            for name, replica in replicas.of.items()
        }


async def over(running: dict[str, OpenCrowd]) -> Fates:
    """The fates of all streams, by replica."""
    return {name: await asyncio.wait_for(run.fates, WAIT_S) for name, run in running.items()}


async def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait until something is so; AssertionError naming it when that takes too long."""
    deadline_s = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < deadline_s, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(POLL_S)


async def outage(server: RedisServer) -> None:
    """Redis is killed, away for a moment, and started again."""
    server.kill()
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(server.start)


async def faulty_wave(replicas: Replicas, server: RedisServer, proxy: ProxyProcess) -> tuple[str, Fates]:
    """Streams that are being admitted when Redis dies, and running when a replica dies and Redis dies once more.

    The one that dies is the one that holds most; its name comes first.
    """
    async with crowds(replicas) as running:
        proxy.change(lose_reply={"command": "EVALSHA", "times": REPLIES_LOST})
        await until(lambda: _open_holds(replicas) >= HELD_BEFORE_THE_OUTAGE, "the first streams are held")
        await outage(server)
        await asyncio.wait_for(asyncio.gather(*(run.answered for run in running.values())), WAIT_S)
        killed, survivor = _by_open_holds(replicas)
        assert killed.open_holds(), "no replica holds anything any more"
        killed.kill()
        await until(lambda: stranded(survivor) > 0, "what the dead replica had is listed apart")
        await outage(server)
        await asyncio.to_thread(killed.start)
        return killed.name, await over(running)


async def wave(replicas: Replicas) -> Fates:
    """The same streams again, in peace."""
    async with crowds(replicas) as running:
        return await over(running)


def probe_faults(replicas: Replicas) -> list[str]:
    """Small requests of every caller at every replica that were not served although they fit, or although they did not.

    Whether one fits is what the ledger says: nothing of a limit may have got lost between the replicas.
    """
    return [
        fault
        for secret in replicas.secrets
        for replica in replicas.of.values()
        if (fault := _probe_fault(replica, secret, total(charged(replicas.flushed()))))
    ]


def _probe_fault(replica: Replica, secret: str, charges: dict[Cell, int]) -> str | None:
    counters = json.loads(replica.page(f"{replica.url}/v1/budgets", secret))["data"]
    left = {(each["budget"], each["counter"]): each["limit"] for each in counters}
    for (budget, counter, _), amount in charges.items():
        if (budget, counter) in left:
            left[budget, counter] -= amount
    fits = all(left[each["budget"], each["counter"]] >= NEEDS[each["resource"]] for each in counters)
    _, body = next(nest.bodies(ignore_eos=True))
    asked, headers = body | {"stream": False, "max_tokens": 1}, {"authorization": f"Bearer {secret}"}
    status = httpx.post(replica.url + CHAT, json=asked, headers=headers, timeout=WAIT_S).status_code
    eventually(lambda: not replica.open_holds(), "the request is settled")
    return None if status == (200 if fits else 429) else f"{replica.name} answered {status} with {left} left"


def stranded(replica: Replica) -> int:
    """What a replica lists as leased by those that are gone, over all counters."""
    return sum(int(counter["stranded"]) for counter in replica.counters())


def _by_open_holds(replicas: Replicas) -> tuple[Replica, Replica]:
    """The replica that holds most, and the one that holds least."""
    most, *_, least = sorted(replicas.of.values(), key=lambda replica: -replica.open_holds())
    return most, least


def _open_holds(replicas: Replicas) -> int:
    return sum(replica.open_holds() for replica in replicas.of.values())


async def at_rest(replicas: Replicas, redis_url: str) -> None:
    """Wait until nothing is held, stranded or leased any more."""
    deadline_s = time.monotonic() + WAIT_S
    while found := await asyncio.to_thread(unrest, replicas, redis_url):
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(POLL_S)


def unforeseen(fates: Fates) -> list[str]:
    """What was answered other than by serving a stream or by saying that a budget is used up, and how often."""
    told = Counter(str(fate.error) for those in fates.values() for fate in those if fate.status not in {200, 429})
    return [f"{count} times {error}" for error, count in told.most_common(10)]


def held_at_once(fates: Fates) -> int:
    """How many streams of the app with slots were answered before any of them was over."""
    slotted = [
        fate
        for those in fates.values()
        for fate, (index, _) in zip(those, nest.bodies(ignore_eos=True), strict=True)
        if fate.status == 200 and nest.CALLERS[index][:2] == ("research", "eval")
    ]
    first_over_s = min((fate.over_s for fate in slotted), default=0.0)
    return sum(fate.answered_s < first_over_s for fate in slotted)


@pytest.mark.usefixtures("away_from_midnight")
@pytest.mark.parametrize("persistence", ["always", "none"])
async def test_no_fault_of_redis_or_of_a_replica_overspends_loses_or_doubles(
    tmp_path: Path, persistence: Persistence
) -> None:
    """Whether Redis remembers every write or forgets everything; and at the end the last place is still to be had."""
    home, config = tmp_path / "home", tmp_path / "bursar.yaml"
    with RedisServer(persistence) as server, ProxyProcess(HOST, server.port) as proxy:
        limits = write_config(config, proxy.url, hold_ttl_s=HOLD_TTL_S, time_scale=TIME_SCALE)
        with Replicas(home, config) as replicas:
            async with watched(replicas, server.url, limits) as watch:
                killed, faulty = await faulty_wave(replicas, server, proxy)
                peaceful = await wave(replicas)
                await at_rest(replicas, server.url)

            ledger = replicas.flushed()
            sums = total(charged(ledger))
            assert watch.looks > 10
            assert watch.overspent == []
            assert [f"{cell}: {amount}" for cell, amount in sums.items() if amount > limits[cell[0]]] == []
            assert held_at_once(faulty) <= limits[SLOTS_BUDGET]
            assert held_at_once(peaceful) <= limits[SLOTS_BUDGET]
            assert row_faults(ledger, [faulty, peaceful], killed) == []
            assert records.ledger_faults(ledger) == []
            assert account_faults(replicas, server.url, ledger) == []

            assert unforeseen(peaceful) == []
            assert await asyncio.to_thread(probe_faults, replicas) == []
            await at_rest(replicas, server.url)
            assert account_faults(replicas, server.url, replicas.flushed()) == []
