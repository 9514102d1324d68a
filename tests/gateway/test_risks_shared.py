"""Levels are the same at all gateways of a shared book, and none is lowered because Redis is away or forgot."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ledger.shared_store import connect
from policy.risk import TEAM
from tests.gateway.risk_desk import OTHER, US, WEB, Desk
from tests.redis_server import RedisServer

WAIT_S = 30.0


async def until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = asyncio.get_running_loop().time() + WAIT_S
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def desks(tmp_path: Path, server: RedisServer) -> AsyncIterator[list[Desk]]:
    """Two workers on one Redis, each with a journal of its own."""
    made, clients = [], []
    for name in ("a", "b"):
        desk = Desk(tmp_path / name)
        made.append(desk)
        client, listener = connect(server.url, 1_000, None)
        clients += [client, listener]
        desk.open().link(client)
    yield made
    for desk in made:
        desk.close()
    for client in clients:
        with suppress(Exception):
            await client.aclose()


async def test_a_level_that_rises_at_one_rises_at_the_other(desks: list[Desk]) -> None:
    first, second = desks
    first.happen("tool_blocked", 3, run_id="run-1")
    second.happen("policy_violation", 3, run_id="run-1")
    assert [desk.risks.level(WEB, "run-1") for desk in desks] == ["normal"] * 2
    for desk in (first, second, first):
        await desk.risks.share()
    assert [desk.risks.level(WEB, "run-1") for desk in desks] == ["elevated"] * 2
    parts = [desk.rows()[0]["detail"]["signals"] for desk in desks]
    assert [set(each) for each in parts] == [{"tool_blocked", "elsewhere"}, {"policy_violation", "elsewhere"}]


async def test_both_go_on_with_their_own_while_redis_is_away_and_agree_once_it_is_back(
    desks: list[Desk], server: RedisServer
) -> None:
    first, second = desks
    for desk in desks:
        await desk.risks.share()
    server.stop()
    with capture_logs() as logs:
        for _ in range(3):
            first.happen("tool_blocked", 3)
            await first.risks.share()
        second.happen("tool_blocked", 2)
        await second.risks.share()
    assert [entry["event"] for entry in logs] == ["risk scores are not shared"]
    assert [desk.risks.level(WEB, "") for desk in desks] == ["elevated", "normal"]
    server.start()  # it has forgotten everything
    with capture_logs() as logs:
        for desk in (*desks, *desks):
            await desk.risks.share()
    assert [entry["event"] for entry in logs] == ["risk scores are shared again"]
    assert [desk.risks.level(WEB, "") for desk in desks] == ["high"] * 2
    scores = [desk.risks.snapshot()["tracker"]["scopes"] for desk in desks]
    assert all(row[3] == pytest.approx(11_000 * 10**6, rel=0.05) for rows in scores for row in rows)


async def test_a_level_that_came_from_elsewhere_outlives_a_restart_without_redis(
    desks: list[Desk], server: RedisServer
) -> None:
    first, second = desks
    first.happen("tool_blocked", 12)
    for desk in (first, second):
        await desk.risks.share()
    assert second.risks.level(WEB, "") == "high"
    server.stop()
    second.close()
    second.now_us += 50 * US
    assert second.open().level(WEB, "") == "high", "the score is 8.5 by now: too little to rise, and not to stay"
    second.pass_s(200)
    assert second.risks.level(WEB, "") == "elevated"


async def test_the_loop_ticks_and_shares(desks: list[Desk]) -> None:
    first, second = desks
    first.happen("tool_blocked", 6)
    second.happen("tool_blocked", 5, who=OTHER)
    second.now_us += 1_000 * US
    running = [asyncio.create_task(desk.risks.run()) for desk in desks]
    try:
        await until(lambda: second.risks.level(WEB, "") == "elevated", "the other hears of it")
        await until(lambda: second.risks.level(OTHER, "") == "normal", "its own level falls")
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}


async def test_keys_that_are_none_of_ours_are_nobody_s(desks: list[Desk], server: RedisServer) -> None:
    first, second = desks
    await first.risks.share()
    assert first.risks.shared is not None
    first.risks.shared.add(TEAM, "no-team", 99 * 10**9, first.now_us // US)
    first.happen("tool_blocked", 5)
    await first.risks.share()
    await second.risks.share()
    tracker = second.risks.tracker
    assert tracker is not None
    assert [scope.text for scope in tracker.scopes()] == ["team acme/search", "app acme/search/web"]
