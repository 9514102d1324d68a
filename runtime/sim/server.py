"""The simulator as an OpenAI-compatible HTTP runtime: a plain ASGI application."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from time import time
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from domain.ids import uuid7
from runtime.sim.ask import EmbeddingAsk, GenerationAsk, parse_chat, parse_completion, parse_embedding
from runtime.sim.config import EngineConfig
from runtime.sim.driver import EngineDriver
from runtime.sim.engine import Engine
from runtime.sim.errors import BadRequest, NotFound, SimError, Unavailable
from runtime.sim.exchange import ClientLeft, Exchange, Receive, Scope, Send
from runtime.sim.generation import Generation
from runtime.sim.hashing import chain_hashes, root_hash
from runtime.sim.mailbox import Mailbox
from runtime.sim.metering import EngineMeter
from runtime.sim.metrics import MetricsCollector
from runtime.sim.reply import DONE, EventWriter, embedding_reply, models_reply, whole_reply
from runtime.sim.request import SimRequest

_REQUEST_ID_CHARS_MAX: Final = 256
_RETRY_HEADERS: Final = ((b"retry-after", b"1"),)

Handler = Callable[[Exchange], Awaitable[None]]


class SimServer:
    """Serves each model from an engine of its own; their clocks run `time_scale` times as fast as the wall's."""

    def __init__(
        self, models: Sequence[str], config: EngineConfig, time_scale: float = 1.0, telemetry: Path | None = None
    ) -> None:
        if not models or not all(models) or len(set(models)) != len(models):
            raise ValueError("models must be distinct names, at least one")
        self._config = config
        self._drivers: dict[str, EngineDriver] = {}
        for index, model in enumerate(models):
            engine = Engine(config)
            meter = None if telemetry is None else EngineMeter(telemetry, index, model, engine, time_scale)
            self._drivers[model] = EngineDriver(model, engine, time_scale, meter)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(MetricsCollector([driver.metrics for driver in self._drivers.values()]))
        self._serials = count(1)
        self._created = int(time())
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/embeddings": ("POST", self._embedding),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))
        else:
            raise ValueError(f"no such protocol here: {scope['type']}")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        for driver in self._drivers.values():
            driver.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for driver in self._drivers.values():
            await driver.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)(exchange)
        except ClientLeft:
            return
        except SimError as error:
            if exchange.responded:
                await exchange.write(b"data: " + error.body + b"\n\n" + DONE, last=True)
            else:
                await exchange.respond(error.body, error.status, headers=_RETRY_HEADERS if error.status == 503 else ())

    def _handler(self, exchange: Exchange) -> Handler:
        route = self._routes.get(exchange.path)
        if route is None:
            raise NotFound(f"There is no {exchange.path}")
        method, handler = route
        if exchange.method != method:
            raise NotFound(f"{exchange.path} only answers {method}", status=405)
        return handler

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_chat(await exchange.read_body()), "chatcmpl")

    async def _completion(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_completion(await exchange.read_body()), "cmpl")

    async def _generate(self, exchange: Exchange, ask: GenerationAsk, prefix: str) -> None:
        driver = self._driver(ask.model)
        response_id = f"{prefix}-{_request_id(exchange)}"
        generation = Generation(
            ask, response_id, next(self._serials), self._config.max_model_len, self._config.block_size
        )
        answer = self._stream if ask.stream else self._whole
        mailbox = Mailbox(len(generation.requests), each=ask.stream)
        await self._attend(
            exchange, driver, generation.requests, mailbox, lambda: answer(exchange, generation, mailbox)
        )

    async def _embedding(self, exchange: Exchange) -> None:
        ask = parse_embedding(await exchange.read_body())
        driver = self._driver(ask.model)
        requests = self._embedding_requests(ask, _request_id(exchange))
        mailbox = Mailbox(len(requests), each=False)

        async def answer() -> None:
            if await mailbox.take():
                await exchange.respond(embedding_reply(ask))

        await self._attend(exchange, driver, requests, mailbox, answer)

    def _embedding_requests(self, ask: EmbeddingAsk, request_id: str) -> list[SimRequest]:
        """Requests without output. They read no prefix cache: their usage could not say how much of it they hit."""
        limit = self._config.max_model_len
        if max(map(len, ask.prompts)) > limit:
            raise BadRequest(
                f"This model's maximum context length is {limit} tokens.", "input", "context_length_exceeded"
            )
        serial = next(self._serials)
        return [
            SimRequest(
                f"embd-{request_id}/{index}#{serial}",
                len(prompt),
                0,
                chain_hashes(root_hash(""), prompt, self._config.block_size),
                read_prefix_cache=False,
            )
            for index, prompt in enumerate(ask.prompts)
        ]

    async def _attend(
        self,
        exchange: Exchange,
        driver: EngineDriver,
        requests: Sequence[SimRequest],
        mailbox: Mailbox,
        answer: Callable[[], Awaitable[None]],
    ) -> None:
        """Submit the sequences, answer from the mailbox, and leave nothing in the engine, whatever the client does."""
        if not driver.alive:
            raise Unavailable("The engine has stopped", "engine_stopped")
        if not driver.submit(requests, mailbox):
            raise Unavailable("The waiting queue is full", "overloaded")
        watcher = asyncio.create_task(_watch(exchange, mailbox))
        try:
            await answer()
            if mailbox.failed:
                raise Unavailable("The engine has stopped", "engine_stopped")
        finally:
            watcher.cancel()
            driver.abort(requests)

    async def _whole(self, exchange: Exchange, generation: Generation, mailbox: Mailbox) -> None:
        if deliveries := await mailbox.take():
            generation.advance(deliveries)
            await exchange.respond(whole_reply(generation, int(time())))

    async def _stream(self, exchange: Exchange, generation: Generation, mailbox: Mailbox) -> None:
        writer = EventWriter(generation, int(time()))
        await exchange.open_stream()
        opening = writer.opening()
        while generation.unfinished:
            deliveries = await mailbox.take()
            if not deliveries:
                return
            events = [opening, *map(writer.event, generation.advance(deliveries))]
            opening = b""
            if generation.unfinished == 0:
                events.append(writer.closing())
            await exchange.write(b"".join(events), last=generation.unfinished == 0)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.respond(models_reply(list(self._drivers), self._created, self._config.max_model_len))

    async def _health(self, exchange: Exchange) -> None:
        if not all(driver.alive for driver in self._drivers.values()):
            raise Unavailable("An engine has stopped", "engine_stopped")
        await exchange.respond(b"")

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.respond(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())

    def _driver(self, model: str) -> EngineDriver:
        driver = self._drivers.get(model)
        if driver is None:
            raise NotFound(f"The model '{model}' does not exist.", "model", "model_not_found")
        return driver


async def _watch(exchange: Exchange, mailbox: Mailbox) -> None:
    await exchange.wait_until_left()
    mailbox.leave()


def _request_id(exchange: Exchange) -> str:
    given = exchange.header(b"x-request-id")
    if not given:
        return uuid7()
    if len(given) > _REQUEST_ID_CHARS_MAX:
        raise BadRequest(f"X-Request-Id has more than {_REQUEST_ID_CHARS_MAX} characters")
    return given
