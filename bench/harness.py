"""The harness: starts servers when a measurement needs them, each once, and stops them all."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from bench.comparison import Running
from bench.litellm_server import LiteLLMServer
from bench.row import Row
from bench.server import BareProxyServer, Server, UpstreamServer


class Harness:
    """The servers of one benchmark run, each started once, when first asked for, and stopped at exit."""

    def __init__(self, gateway: Callable[[], Server]) -> None:
        self._gateway_factory = gateway
        self._stack = ExitStack()
        self._upstream_url: str | None = None
        self._started: dict[str, Running] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def upstream_url(self) -> str:
        """The fake upstream's base URL."""
        if self._upstream_url is None:
            upstream = UpstreamServer()
            self._stack.callback(upstream.stop)
            self._upstream_url = upstream.start()
        return self._upstream_url

    def gateway(self) -> Running:
        """Ours."""
        return self._once("gateway", self._gateway_factory)

    def bare(self) -> Running:
        """The bare proxy."""
        return self._once("bare", BareProxyServer)

    def litellm(self) -> Running:
        """LiteLLM, installed if need be."""
        return self._once("litellm", LiteLLMServer)

    @contextmanager
    def fresh_gateway(self) -> Iterator[Running]:
        """Another instance of ours that has served nothing yet; the one that is shared need not be running."""
        server = self._gateway_factory()
        try:
            yield Running(server, server.start(self.upstream_url))
        finally:
            server.stop()

    def _once(self, role: str, factory: Callable[[], Server]) -> Running:
        if role not in self._started:
            server = factory()
            self._stack.callback(server.stop)
            self._started[role] = Running(server, server.start(self.upstream_url))
        return self._started[role]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One measurement and the names of the rows that it gives."""

    names: tuple[str, ...]
    measure: Callable[[Harness], list[Row]]
