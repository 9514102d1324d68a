"""A server that answers completions as vLLM does, one token at a time, and can be told to fail in every way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeEngine:
    """What it was asked (bodies, by request id), and how it misbehaves; it produces the tokens 7, 8, 9, …"""

    token_s: float = 0.0
    dies_after: int = -1
    status: int = 200
    short_by: int = 0
    together: int = 1
    says_ids: bool = True
    cached: int = 0
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = request.headers["X-Request-Id"]
        self.asked[name] = body
        self.order.append(name)
        if self.status != 200:
            return web.json_response({"error": {"message": "no such luck"}}, status=self.status)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._stream(request, body)
        finally:
            self.at_once -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        wanted = body["max_tokens"] - self.short_by
        for end in range(self.together, wanted + self.together, self.together):
            count = min(end, wanted)
            if 0 <= self.dies_after < count:
                assert request.transport is not None
                request.transport.abort()
                return response
            await asyncio.sleep(self.token_s)
            choice: dict[str, Any] = {"index": 0, "text": "é"}
            if body.get("return_token_ids") and self.says_ids:
                choice |= {"prompt_token_ids": None, "token_ids": [6 + count]}
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
            await self._event(response, {"choices": [choice], "usage": usage})
        details = {"cached_tokens": self.cached}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": wanted, "prompt_tokens_details": details}
        await self._event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        """An event in two writes, cut within a number."""
        text = f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
        await response.write(text[:-20])
        await response.write(text[-20:])

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its base URL while it serves."""
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()
