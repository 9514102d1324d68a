"""The load client: one process that sends a bounded number of requests, verifies every answer and reports latencies.

It reads its order as JSON on stdin and writes its report as JSON on stdout, so its CPU time is in nobody's account.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from bench.workload import CHUNK_INTERVAL_S, CHUNKS, TEXT, request_body

PATH: Final = "/v1/chat/completions"
FAILURES_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What a client is to send: `requests` in all, `concurrency` at a time, within `deadline_s`."""

    url: str
    headers: dict[str, str]
    stream: bool
    requests: int
    concurrency: int
    deadline_s: float
    request_timeout_s: float = 60.0


@dataclass(slots=True)
class Report:
    """What came back: of each right answer the latency in µs and in how many reads it came, and how many were wrong."""

    latencies_us: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    def accept(self, answer: "Answer", latency_s: float) -> None:
        """Count a right answer."""
        self.latencies_us.append(round(latency_s * 1e6))
        self.reads.append(answer.reads)

    def refuse(self, reason: str) -> None:
        """Count a wrong answer and keep the first few reasons."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(reason)

    def latency_ms(self, percent: int) -> float:
        """The latency that `percent` (1 to 99) of the answers did not exceed."""
        return quantiles(self.latencies_us, n=100, method="inclusive")[percent - 1] / 1000


class WrongAnswer(Exception):
    """An answer came that is not the one asked for."""


@dataclass(slots=True)
class Answer:
    """One HTTP response, and in how many reads of the socket it came."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    reads: int = 0


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection with one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer = Answer()
        self._done: asyncio.Future[Answer] | None = None
        self.usable = False

    async def exchange(self, request: bytes) -> Answer:
        """Send one request and return its complete response. Raises ConnectionError when the peer goes away."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Close the socket; the connection is of no more use."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is connected."""
        self._transport = cast("asyncio.Transport", transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        assert self._parser is not None
        self._answer.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is closed."""
        self.usable = False
        self._fail(ConnectionError(f"connection lost: {exc}"))

    def on_body(self, data: bytes) -> None:
        """httptools: a piece of the body."""
        self._answer.body += data

    def on_message_complete(self) -> None:
        """httptools: the response is whole."""
        assert self._parser is not None
        self._answer.status = self._parser.get_status_code()
        self.usable = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)

    def _fail(self, error: ConnectionError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


def verify(answer: Answer, *, stream: bool) -> None:
    """Check an answer to the workload's request against what the upstream said. Raises WrongAnswer."""
    if answer.status != 200:
        raise WrongAnswer(f"status {answer.status}: {bytes(answer.body[:300])!r}")
    try:
        if stream:
            _verify_stream(answer)
        else:
            _verify_unary(answer)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswer(f"malformed body ({error!r}): {bytes(answer.body[:300])!r}") from error


def _verify_unary(answer: Answer) -> None:
    body = orjson.loads(answer.body)
    if body["choices"][0]["message"]["content"] != TEXT:
        raise WrongAnswer("the text is not the upstream's")
    if body["usage"]["completion_tokens"] != CHUNKS:
        raise WrongAnswer(f"usage says {body['usage']}")


def _verify_stream(answer: Answer) -> None:
    events = [line[6:] for line in bytes(answer.body).split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1].strip() != b"[DONE]":
        raise WrongAnswer(f"the stream did not end with [DONE]: {bytes(answer.body[-200:])!r}")
    pieces: list[str] = []
    completion_tokens = None
    for event in map(orjson.loads, events[:-1]):
        pieces += [choice["delta"]["content"] for choice in event["choices"] if choice["delta"].get("content")]
        if event.get("usage"):
            completion_tokens = event["usage"]["completion_tokens"]
    if len(pieces) != CHUNKS or "".join(pieces) != TEXT:
        raise WrongAnswer(f"{len(pieces)} content chunks of {CHUNKS}, or other text")
    if completion_tokens != CHUNKS:
        raise WrongAnswer(f"the final usage says {completion_tokens} tokens")


class Client:
    """Carries out one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._report = Report()
        target = urlsplit(order.url)
        assert target.hostname is not None
        assert target.port is not None
        self._host, self._port = target.hostname, target.port
        self._request = self._render(target.path.rstrip("/") + PATH)

    def _render(self, path: str) -> bytes:
        body = request_body(stream=self._order.stream)
        headers = {
            "host": f"{self._host}:{self._port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self._order.headers,
        }
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + body

    async def run(self) -> Report:
        """Send everything. Raises TimeoutError at the order's deadline."""
        started_s = time.monotonic()
        turns = iter(range(self._order.requests))
        async with asyncio.timeout(self._order.deadline_s), asyncio.TaskGroup() as workers:
            for place in range(min(self._order.concurrency, self._order.requests)):
                workers.create_task(self._work(place, turns))
        self._report.elapsed_s = time.monotonic() - started_s
        return self._report

    async def _work(self, place: int, turns: Iterator[int]) -> None:
        if self._order.stream:  # spread the starts over one stream, so that chunks do not all fall on the same instant
            await asyncio.sleep(place / self._order.concurrency * CHUNKS * CHUNK_INTERVAL_S)
        connection: Connection | None = None
        for _ in turns:
            if connection is None or not connection.usable:
                connection = await self._connect()
            await self._exchange(connection)
        if connection is not None:
            connection.close()

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    async def _exchange(self, connection: Connection) -> None:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(self._order.request_timeout_s):
                answer = await connection.exchange(self._request)
            latency_s = time.monotonic() - started_s
            verify(answer, stream=self._order.stream)
        except (WrongAnswer, ConnectionError, TimeoutError) as error:
            self._report.refuse(str(error) or repr(error))
            connection.close()
            return
        self._report.accept(answer, latency_s)


def main() -> None:
    order = Order(**orjson.loads(sys.stdin.buffer.read()))
    report = uvloop.run(Client(order).run())
    sys.stdout.buffer.write(orjson.dumps(asdict(report)))


if __name__ == "__main__":
    main()
