"""The reference: the least that a Python streaming proxy can do, with the same server and client libraries as Bursar.

It forwards body bytes and four headers over a keep-alive pool, passes chunks on as they arrive and parses nothing.
"""

import argparse
from typing import Final

import aiohttp

from bench.serving import App, Receive, Scope, Send, add_port_arguments, read_body, serve

FORWARDED: Final = frozenset({b"content-type", b"accept", b"authorization", b"x-request-id"})
CONNECTIONS_MAX: Final = 1024


def proxy(upstream_url: str) -> App:
    """An ASGI application that forwards every request to `upstream_url`."""
    session: aiohttp.ClientSession | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal session
        if scope["type"] == "lifespan":
            await receive()
            session = _session()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await session.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert session is not None
        await _forward(session, upstream_url, scope, receive, send)

    return app


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
        auto_decompress=False,
    )


async def _forward(
    session: aiohttp.ClientSession, upstream_url: str, scope: Scope, receive: Receive, send: Send
) -> None:
    body = await read_body(receive)
    headers = {name.decode(): value.decode() for name, value in scope["headers"] if name in FORWARDED}
    async with session.request(scope["method"], upstream_url + scope["path"], data=body, headers=headers) as response:
        start = {"type": "http.response.start", "status": response.status}
        content_type = (b"content-type", response.headers.get("content-type", "application/json").encode())
        if response.content_length is not None:
            answer = await response.read()
            await send({**start, "headers": [content_type, (b"content-length", b"%d" % len(answer))]})
            await send({"type": "http.response.body", "body": answer})
            return
        await send({**start, "headers": [content_type]})
        async for chunk in response.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    add_port_arguments(parser)
    arguments = parser.parse_args()
    serve(proxy(arguments.upstream), arguments.port, arguments.port_file)


if __name__ == "__main__":
    main()
