"""The client of one OpenAI-compatible runtime: a bounded pool of connections, careful retries and a breaker."""

import asyncio
import time

from runtime.breaker import Breaker
from runtime.pool import Pool
from runtime.port import RuntimeFailure, RuntimeSpec, Unreachable
from runtime.wire import Response

# uvicorn, which serves vLLM, closes connections idle for 5 s; one that it closes under us loses a request.
_KEEPALIVE_S = 4.0
_RETRIED_STATUS = 503


class RuntimeClient:
    """Calls one runtime; `open` before use and `close` after, both on the event loop that uses it."""

    def __init__(self, spec: RuntimeSpec) -> None:
        self.spec = spec
        self.breaker = Breaker(spec.breaker_failures, spec.breaker_reset_s)
        self.in_flight = 0
        self._pool: Pool | None = None

    async def open(self) -> None:
        spec = self.spec
        self._pool = Pool(spec.base_url, spec.connections_max, spec.connect_timeout_s, _KEEPALIVE_S)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    @property
    def is_healthy(self) -> bool:
        """Whether the breaker lets a call through now."""
        return self.breaker.can_call(time.monotonic())

    async def post(self, path: str, body: bytes, headers: bytes) -> Response:
        """Send a request and return its response once the head is in; the caller closes it.

        `headers` are whole lines, each ended by CRLF. Retried only while nothing can have been computed: no connection,
        or a complete 503. Raises Unreachable when nothing was sent, Lost or Garbage when something was. Nothing here
        times out after the connection is made: the caller knows what the client is owed and cancels.
        """
        pool, breaker, retries_max = self._pool, self.breaker, self.spec.retries_max
        assert pool is not None
        for attempt in range(retries_max + 1):
            breaker.call(time.monotonic())
            try:
                response = await pool.post(path, body, headers)
            except RuntimeFailure as error:
                breaker.failed(time.monotonic())
                if not isinstance(error, Unreachable):
                    raise type(error)(f"runtime {self.spec.id}: {error}") from error
                if attempt == retries_max:
                    raise Unreachable(f"runtime {self.spec.id} cannot be reached: {error}") from error
            else:
                if response.status < 500:
                    breaker.succeeded()
                    return response
                breaker.failed(time.monotonic())
                if response.status != _RETRIED_STATUS or attempt == retries_max:
                    return response
                response.close()
            await asyncio.sleep(0.05 * (attempt + 1))
        raise AssertionError("the loop above returns or raises")
