"""Webhooks arrive signed, are retried a few times, and never hold anything up."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from gateway.webhooks import SecretMissing, Webhooks


@dataclass(frozen=True)
class Config:
    url: str
    id: str = "ops"
    secret_env: str | None = None
    timeout_s: float = 5.0
    events: tuple[str, ...] = ("budget_threshold",)


@dataclass
class Receiver:
    """A real HTTP server that answers with the statuses it is given, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        await asyncio.sleep(self.delay_s)
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"location": "/elsewhere"} if status == 302 else None)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.answer)
    app.router.add_route("*", "/elsewhere", receiver.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    await runner.cleanup()


@asynccontextmanager
async def running(webhooks: Webhooks) -> AsyncIterator[Webhooks]:
    task = asyncio.create_task(webhooks.run())
    yield webhooks
    await webhooks.close(2.0)
    await asyncio.wait_for(task, 1.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 the counters watched are plain integers
            await asyncio.sleep(0.005)


def event(number: int = 1, name: str = "budget_threshold") -> dict[str, object]:
    return {"event_id": f"e-{number}", "name": name, "budget": "org-day"}


async def test_an_event_arrives_as_json_with_its_signature(receiver: Receiver) -> None:
    config = Config(receiver.url, secret_env="HOOK_SECRET")
    webhooks = Webhooks([config], aiohttp.ClientSession, environment={"HOOK_SECRET": "s3cret"})
    async with running(webhooks):
        webhooks.publish(event())
        await until(lambda: webhooks.tallies["ops"].delivered == 1)
    (body,), (headers,) = receiver.bodies, receiver.headers
    assert json.loads(body) == event()
    assert headers["x-bursar-signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["content-type"] == "application/json"


async def test_without_a_secret_there_is_no_signature(receiver: Receiver) -> None:
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession)
    async with running(webhooks):
        webhooks.publish(event())
        await until(lambda: webhooks.tallies["ops"].delivered == 1)
    assert "x-bursar-signature" not in receiver.headers[0]


async def test_a_configured_secret_that_is_not_set_is_refused_at_start() -> None:
    with pytest.raises(SecretMissing, match="HOOK_SECRET"):
        Webhooks([Config("http://127.0.0.1:1/", secret_env="HOOK_SECRET")], aiohttp.ClientSession, environment={})


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_passing_failure_is_retried_with_the_same_body(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status, status]
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession, backoff_s=0.01)
    async with running(webhooks):
        webhooks.publish(event())
        await until(lambda: webhooks.tallies["ops"].delivered == 1)
    assert len(receiver.bodies) == 3
    assert len(set(receiver.bodies)) == 1
    assert webhooks.tallies["ops"].failed == 0


async def test_it_gives_up_after_three_retries_and_goes_on_with_the_next(receiver: Receiver) -> None:
    receiver.statuses = [500] * 4
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession, backoff_s=0.01)
    async with running(webhooks):
        webhooks.publish(event(1))
        webhooks.publish(event(2))
        await until(lambda: webhooks.tallies["ops"].delivered == 1)
    assert [json.loads(body)["event_id"] for body in receiver.bodies] == ["e-1"] * 4 + ["e-2"]
    assert webhooks.tallies["ops"].failed == 1


@pytest.mark.parametrize("status", [302, 400, 404])
async def test_a_lasting_refusal_or_a_redirect_is_not_retried(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession, backoff_s=0.01)
    async with running(webhooks):
        webhooks.publish(event())
        await until(lambda: webhooks.tallies["ops"].failed == 1)
    assert len(receiver.bodies) == 1


async def test_a_receiver_that_stalls_times_out_and_is_retried(receiver: Receiver) -> None:
    receiver.delay_s = 0.5
    webhooks = Webhooks([Config(receiver.url, timeout_s=0.05)], aiohttp.ClientSession, backoff_s=0.01)
    async with running(webhooks):
        webhooks.publish(event())
        await until(lambda: webhooks.tallies["ops"].failed == 1)
    assert len(receiver.bodies) == 4


async def test_only_events_that_were_asked_for_are_sent(receiver: Receiver) -> None:
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession)
    async with running(webhooks):
        webhooks.publish(event(1, name="overage"))
        webhooks.publish(event(2))
        await until(lambda: webhooks.tallies["ops"].delivered == 1)
    assert [json.loads(body)["event_id"] for body in receiver.bodies] == ["e-2"]


async def test_a_full_queue_drops_and_counts_without_waiting() -> None:
    webhooks = Webhooks([Config("http://127.0.0.1:1/")], aiohttp.ClientSession, queue_max=10)
    began = time.monotonic()
    for number in range(25):
        webhooks.publish(event(number))
    assert time.monotonic() - began < 1.0
    assert webhooks.tallies["ops"].dropped == 15
    await webhooks.close(0.1)
    assert webhooks.tallies["ops"].dropped == 25


async def test_a_dead_receiver_does_not_delay_another(receiver: Receiver) -> None:
    dead = Config("http://127.0.0.1:1/", id="dead")
    webhooks = Webhooks([dead, Config(receiver.url)], aiohttp.ClientSession, backoff_s=5.0)
    task = asyncio.create_task(webhooks.run())
    for number in range(20):
        webhooks.publish(event(number))
    await until(lambda: webhooks.tallies["ops"].delivered == 20)
    assert webhooks.tallies["dead"].delivered == 0
    await webhooks.close(0.05)
    await asyncio.wait_for(task, 1.0)
    assert webhooks.tallies["dead"].dropped == 20


async def test_an_event_that_is_no_json_is_counted_and_not_raised(receiver: Receiver) -> None:
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession)
    webhooks.publish({"name": "budget_threshold", "what": object()})
    assert webhooks.malformed == 1
    await webhooks.close(0.1)


async def test_close_delivers_what_is_queued(receiver: Receiver) -> None:
    receiver.delay_s = 0.02
    webhooks = Webhooks([Config(receiver.url)], aiohttp.ClientSession)
    task = asyncio.create_task(webhooks.run())
    await asyncio.sleep(0)
    for number in range(5):
        webhooks.publish(event(number))
    await webhooks.close(2.0)
    await asyncio.wait_for(task, 1.0)
    assert len(receiver.bodies) == 5
    assert webhooks.tallies["ops"].delivered == 5


async def test_close_is_bounded_when_the_receiver_hangs(receiver: Receiver) -> None:
    receiver.delay_s = 30.0
    webhooks = Webhooks([Config(receiver.url, timeout_s=60.0)], aiohttp.ClientSession)
    task = asyncio.create_task(webhooks.run())
    for number in range(3):
        webhooks.publish(event(number))
    await until(lambda: len(receiver.bodies) == 1)
    began = time.monotonic()
    await webhooks.close(0.2)
    await asyncio.wait_for(task, 1.0)
    assert time.monotonic() - began < 1.5
    assert webhooks.tallies["ops"].dropped == 3
    webhooks.publish(event(9))
    assert webhooks.tallies["ops"].dropped == 4


async def test_run_after_close_ends_at_once() -> None:
    webhooks = Webhooks([Config("http://127.0.0.1:1/")], aiohttp.ClientSession)
    await webhooks.close(0.1)
    await asyncio.wait_for(webhooks.run(), 1.0)
    assert webhooks.tallies["ops"].delivered == 0
