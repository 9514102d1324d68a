"""Traffic: what the tests ask of the governed vLLM, how clients leave, and how all its seats are taken."""

from __future__ import annotations

import asyncio
import json
from asyncio import Event
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from openai import AsyncOpenAI

from tests.e2e.configuration import CHAT_MODEL
from tests.e2e.crowd import CHAT
from tests.e2e.governed import Episode, Governed

SEATED_TOKENS = 3000  # many seconds of answer; who has a seat keeps it until told to leave
POLL_S = 0.02
POLLS_MAX = 1500


def asked(text: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A chat request whose answer is as long as it may be: with random weights one ends anywhere otherwise."""
    extra_body = {"ignore_eos": True, **more.pop("extra_body", {})}
    messages = [{"role": "user", "content": text}]
    return {"model": CHAT_MODEL, "messages": messages, "max_tokens": max_tokens, "extra_body": extra_body, **more}


async def leave_after(client: AsyncOpenAI, chunks: int, body: dict[str, Any], headers: dict[str, str]) -> str:
    """Read so many chunks of a streamed chat, close the connection, and return the request's id."""
    raw = await client.chat.completions.with_raw_response.create(**body, stream=True, extra_headers=headers)
    stream = raw.parse()
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == chunks:
            break
    assert seen == chunks, "the answer ended before the client left"
    await stream.close()
    return str(raw.headers["x-request-id"])


async def give_up(request: asyncio.Task[Any]) -> None:
    """Leave a request that has not been answered yet."""
    assert not request.done(), "the answer came before the client left"
    request.cancel()
    await asyncio.wait([request])
    assert request.cancelled()


async def send_and_leave(governed: Governed, body: dict[str, Any], headers: dict[str, str], patience_s: float) -> None:
    """Send a streamed chat over a bare connection and close it after a while, read or unread.

    The SDK may give up before it has sent anything; here the whole request has left.
    """
    content = _streamed(body)
    url = urlsplit(governed.deployment.url)
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {url.netloc}",
        f"Authorization: Bearer {governed.secret()}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    await writer.drain()
    await asyncio.sleep(patience_s)
    writer.close()
    with suppress(ConnectionError):  # the answer may be on its way to a connection that is gone
        await writer.wait_closed()


@asynccontextmanager
async def occupied(governed: Governed, episode: Episode, seats: int) -> AsyncIterator[list[Event]]:
    """Have all of vLLM's seats taken while the context lasts; each event that is set frees one earlier."""
    leaving = [Event() for _ in range(seats)]
    headers = {"authorization": f"Bearer {governed.secret()}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for seat, leave in enumerate(leaving):
            content = _streamed(asked(f"Seat {seat}", SEATED_TOKENS))
            asking = session.post(f"{governed.deployment.url}{CHAT}", data=content, headers=episode.headers())
            group.create_task(_sit(asking, leave))
        try:
            await until_state(governed, running=seats, waiting=0)
            yield leaving
        finally:
            for leave in leaving:
                leave.set()


async def _sit(asking: AbstractAsyncContextManager[aiohttp.ClientResponse], leave: Event) -> None:
    """Take an answer as it comes, unparsed, until told to leave in the middle of it.

    Eight streams read with the SDK take a whole core, and the test's other requests would wait for it.
    """
    async with asking as response:
        assert response.status == 200, await response.text()
        while not leave.is_set():
            assert await response.content.readany(), "the answer ended before its client was told to leave"
            await asyncio.sleep(POLL_S)
        response.close()


def _streamed(body: dict[str, Any]) -> bytes:
    """What the SDK would send for a chat that is streamed."""
    plain = {name: value for name, value in body.items() if name != "extra_body"}
    return json.dumps({**plain, **body["extra_body"], "stream": True}).encode()


async def until_state(governed: Governed, *, running: int, waiting: int) -> None:
    """Return once vLLM runs and keeps waiting just as many requests; AssertionError when it never does."""
    for _ in range(POLLS_MAX):
        now = await asyncio.to_thread(governed.sample)
        if (now.running, now.waiting) == (running, waiting):
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"vLLM never had {running} running and {waiting} waiting; now {now}")
