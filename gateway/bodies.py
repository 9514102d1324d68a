"""Bodies: how much of one is read, and for how long on the routes that do not go through the flow."""

import asyncio
from dataclasses import dataclass

from domain.ids import uuid7
from gateway import errors
from gateway.errors import Refusal
from gateway.identity import Head, read_head
from gateway.replies import App, Message, Receive, Send, send_refusal


@dataclass(frozen=True, slots=True)
class BoundedBodies:
    """An ASGI application whose inner one is given whole bodies of at most `bytes_max`, or is not called."""

    app: App
    bytes_max: int
    timeout_s: float

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the body and serve the request, or refuse it and close the connection."""
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await read_whole(read_head(scope["headers"]), receive, self.bytes_max)
        except TimeoutError:
            body = Refusal(errors.REQUEST_TIMEOUT, f"The body did not arrive within {self.timeout_s:g} s.")
        if isinstance(body, Refusal):
            await send_refusal(send, body, uuid7(), close=True)
            return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self.app(scope, replay, send)


async def read_whole(head: Head, receive: Receive, bytes_max: int) -> bytes | Refusal:
    """A whole body of at most `bytes_max`, or why it is not read to its end."""
    if head.content_length < 0:
        return errors.malformed("The content-length header is not a number.", "content-length")
    if head.content_length > bytes_max:
        return errors.too_large(bytes_max)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return errors.interrupted("client_left")
        data: bytes = message.get("body", b"")
        size += len(data)
        if size > bytes_max:
            return errors.too_large(bytes_max)
        if not message.get("more_body"):
            return b"".join((*parts, data)) if parts else data
        parts.append(data)
