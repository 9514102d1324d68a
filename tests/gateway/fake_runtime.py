"""A runtime that does what the field `script` of each request tells it to, which Bursar passes on untouched.

A script says `status`, `type`, `headers` and `steps`. A step is a text to send, a number of seconds to wait, or null:
cut the connection. `[text, times]` sends a text over and over, `split` sends every byte on its own, `encoding` is that
of the texts, and `late_head` keeps the head back until the first text. Without a script it answers as a runtime does,
with 7 prompt tokens and up to 3 of output, one a chunk.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

PROMPT_TOKENS = 7
OUTPUT_TOKENS = 3


@dataclass(frozen=True)
class Received:
    """One request as it reached the runtime."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes


@dataclass
class FakeRuntime:
    """The server: what it received by Bursar's request id, and which of the connections it served were left early."""

    url: str = ""
    received: dict[str, Received] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(raw) if raw else {}
        request_id = headers.get("x-request-id", "")
        self.received[request_id] = Received(head[0].split(" ")[1], headers, body, raw)
        script = body.get("script") or usual(body)
        answering = asyncio.create_task(answer(writer, script))
        leaving = asyncio.create_task(reader.read(1))
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.left.add(request_id)
            answering.cancel()
        # A connection on which the next request was about to begin is closed too: the client opens another.
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
        return False


async def answer(writer: asyncio.StreamWriter, script: dict[str, Any]) -> None:
    """Send what a script says."""
    steps = script.get("steps", [])
    lines = [
        f"HTTP/1.1 {script.get('status', 200)} Scripted",
        f"Content-Type: {script.get('type', 'application/json')}",
    ]
    lines += [*script.get("headers", []), "Transfer-Encoding: chunked", "Connection: close", "", ""]
    if not script.get("late_head"):
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
    for step in steps:
        if step is None:
            writer.transport.abort()
            return
        if isinstance(step, int | float):
            await asyncio.sleep(step)
            continue
        if script.get("late_head"):
            writer.write("\r\n".join(lines).encode())
            script = {**script, "late_head": False}
        text, times = step if isinstance(step, list) else (step, 1)
        data = text.encode(script.get("encoding", "utf-8"))
        pieces = [data[at : at + 1] for at in range(len(data))] if script.get("split") else [data]
        for piece in pieces * times:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            if script.get("split"):
                await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def usage(output: int, prompt: int = PROMPT_TOKENS, cached: int = 0) -> dict[str, Any]:
    """A `usage` object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def whole(used: dict[str, Any] | None, content: str = "one two three", **more: Any) -> str:
    """The body of an unary chat answer; None leaves its usage out."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, **more}
    return json.dumps(body if used is None else {**body, "usage": used})


def chunk(content: str, used: dict[str, Any] | None = None, index: int = 0) -> str:
    """A chunk's JSON as vLLM writes it: compact, with its usage last."""
    choices = [{"index": index, "delta": {"content": content}, "finish_reason": None}]
    body: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
    }
    return json.dumps(body if used is None else {**body, "usage": used}, separators=(",", ":"))


def closing(used: dict[str, Any]) -> str:
    """The JSON of the chunk that sums up a stream."""
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": used}
    return json.dumps(body, separators=(",", ":"))


def events(*payloads: str, end: str = "\n\n") -> list[str]:
    """Server-sent events of these payloads."""
    return [f"data: {payload}{end}" for payload in payloads]


def sse(*steps: Any, **more: Any) -> dict[str, Any]:
    """A script of an event stream."""
    return {"type": "text/event-stream", "steps": list(steps), **more}


def usual(body: dict[str, Any]) -> dict[str, Any]:
    """The script of a runtime in good health."""
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or OUTPUT_TOKENS
    output = min(OUTPUT_TOKENS, asked)
    if "input" in body:
        vectors = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        used = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
        return {"steps": [json.dumps({"object": "list", "model": "m", "data": vectors, "usage": used})]}
    if not body.get("stream"):
        return {"steps": [whole(usage(output))]}
    options = body.get("stream_options") or {}
    reports = options.get("continuous_usage_stats", False)
    chunks = [chunk(f"word{at} ", usage(at + 1) if reports else None) for at in range(output)]
    return sse(*events(*chunks, closing(usage(output)), "[DONE]"))


@contextmanager
def running() -> Iterator[FakeRuntime]:
    """The server on a free port of loopback, in a thread of its own."""
    fake = FakeRuntime()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake.serve, "127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
