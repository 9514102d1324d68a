"""A crowd: a client process that opens many streams at the same moment and reads each to its end.

`python -m tests.e2e.crowd` reads a plan from standard input, {"url": U, "streams": [{"secret": S, "body": {…}}, …]}. On
standard output it prints the line `answered` once every stream has its status, and at the end all fates as JSON.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"
ANSWERED = "answered"
_ROOT = Path(__file__).parent.parent.parent
_OUTPUT_BYTES_MAX = 8 << 20
_STREAM_S = 90.0
_EVENT = b"data: "
_DONE = b"data: [DONE]"


@dataclass
class Fate:
    """What became of one stream; times are monotonic seconds of the crowd's process.

    `status` is 0 when no answer came. `ended`: whether a stream came to its [DONE]; `error`: the body of a refusal.
    """

    status: int = 0
    request_id: str = ""
    retry_after: str | None = None
    should_retry: str | None = None
    error: Any = None
    events: int = 0
    ended: bool = False
    answered_s: float = 0.0
    over_s: float = 0.0


@dataclass(frozen=True)
class OpenCrowd:
    """A running crowd: `answered` is done once every stream has its status, `fates` once all are over."""

    answered: asyncio.Task[None]
    fates: asyncio.Task[list[Fate]]


@asynccontextmanager
async def opened(url: str, streams: Sequence[dict[str, Any]]) -> AsyncIterator[OpenCrowd]:
    """A process that opens these streams of a plan at the same moment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.crowd"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_OUTPUT_BYTES_MAX,
        cwd=_ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"url": url, "streams": streams}).encode() + b"\n")
    await process.stdin.drain()
    answered = asyncio.create_task(_answered(process.stdout))
    fates = asyncio.create_task(_fates(process.stdout, answered))
    try:
        yield OpenCrowd(answered, fates)
    finally:
        fates.cancel()
        answered.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answered(output: asyncio.StreamReader) -> None:
    assert (await output.readline()).decode().strip() == ANSWERED


async def _fates(output: asyncio.StreamReader, answered: asyncio.Task[None]) -> list[Fate]:
    await answered
    return [Fate(**fate) for fate in json.loads(await output.readline())]


class Crowd:
    """All streams of one plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._url = plan["url"] + CHAT
        self._streams = plan["streams"]
        self._unanswered = len(self._streams)
        self._start = asyncio.Event()

    async def run(self) -> list[Fate]:
        """The fate of each stream, in the order of the plan; they leave in a shuffled one."""
        timeout = aiohttp.ClientTimeout(total=_STREAM_S)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            fates = [Fate() for _ in self._streams]
            tasks = [self._tell(session, stream, fate) for stream, fate in zip(self._streams, fates, strict=True)]
            random.shuffle(tasks)
            running = [asyncio.create_task(task) for task in tasks]
            self._start.set()
            await asyncio.gather(*running)
            return fates

    async def _tell(self, session: aiohttp.ClientSession, stream: dict[str, Any], fate: Fate) -> None:
        await self._start.wait()
        headers = {"authorization": f"Bearer {stream['secret']}"}
        try:
            async with session.post(self._url, json=stream["body"], headers=headers) as response:
                self._answer(fate, response)
                if response.status == 200:
                    await _read(fate, response)
                else:
                    fate.error = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            fate.ended = False  # the connection broke: what was seen until then is the fate
            if not fate.status:
                self._count()
        fate.over_s = time.monotonic()

    def _answer(self, fate: Fate, response: aiohttp.ClientResponse) -> None:
        fate.status = response.status
        fate.request_id = response.headers.get("x-request-id", "")
        fate.retry_after = response.headers.get("retry-after")
        fate.should_retry = response.headers.get("x-should-retry")
        fate.answered_s = time.monotonic()
        self._count()

    def _count(self) -> None:
        self._unanswered -= 1
        if self._unanswered == 0:
            _say(ANSWERED)


async def _read(fate: Fate, response: aiohttp.ClientResponse) -> None:
    async for line in response.content:
        if line.startswith(_DONE):
            fate.ended = True
        elif line.startswith(_EVENT):
            fate.events += 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the plan on standard input."""
    plan = json.loads(sys.stdin.readline())
    _say(json.dumps([asdict(fate) for fate in asyncio.run(Crowd(plan).run())]))


if __name__ == "__main__":
    main()
