"""The client of one OpenAI-compatible runtime: a bounded pool of connections, careful retries and a breaker."""

import asyncio
import time

import aiohttp
from yarl import URL

from runtime.breaker import Breaker
from runtime.port import Lost, RuntimeSpec, Unreachable

# uvicorn, which serves vLLM, closes connections idle for 5 s; one that it closes under us loses a request.
_KEEPALIVE_S = 4.0
_READ_BYTES = 1 << 18
_RETRIED_STATUS = 503


class RuntimeClient:
    """Calls one runtime; `open` before use and `close` after, both on the event loop that uses it."""

    def __init__(self, spec: RuntimeSpec) -> None:
        self.spec = spec
        self.breaker = Breaker(spec.breaker_failures, spec.breaker_reset_s)
        self.in_flight = 0
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}

    async def open(self) -> None:
        connector = aiohttp.TCPConnector(
            limit=self.spec.connections_max, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=60
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.spec.connect_timeout_s),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def is_healthy(self) -> bool:
        """Whether the breaker lets a call through now."""
        return self.breaker.can_call(time.monotonic())

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send a request and return its response once the headers are in; the caller releases or closes it.

        Retried only while nothing can have been computed: no connection, or a complete 503. Raises Unreachable when
        nothing was sent and Lost when something was. Nothing here times out after the connection is made: the caller
        knows what the client is owed and cancels.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.spec.base_url + path)
        for attempt in range(self.spec.retries_max + 1):
            self.breaker.call(time.monotonic())
            try:
                response = await self._send(url, body, headers)
            except Unreachable:
                self.breaker.failed(time.monotonic())
                if attempt == self.spec.retries_max:
                    raise
            except Lost:
                self.breaker.failed(time.monotonic())
                raise
            else:
                if response.status < 500:
                    self.breaker.succeeded()
                    return response
                self.breaker.failed(time.monotonic())
                if response.status != _RETRIED_STATUS or attempt == self.spec.retries_max:
                    return response
                response.close()
            await asyncio.sleep(0.05 * (attempt + 1))
        raise AssertionError("the loop above returns or raises")

    async def get_text(self, path: str, timeout_s: float) -> str:
        """The body of a GET, for health and metrics; raises Unreachable when it does not answer 200 in time."""
        assert self._session is not None
        try:
            async with asyncio.timeout(timeout_s), self._session.get(self.spec.base_url + path) as response:
                if response.status != 200:
                    raise Unreachable(f"{self.spec.id} answered {response.status} to {path}")
                return await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{self.spec.id} does not answer {path}: {error}") from error

    async def _send(self, url: URL, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        assert self._session is not None
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"runtime {self.spec.id} refused the connection") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Unreachable(f"runtime {self.spec.id} did not accept the connection in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(f"runtime {self.spec.id} closed the connection before it answered") from error
