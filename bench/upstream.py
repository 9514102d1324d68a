"""A fake OpenAI-compatible upstream that answers as vLLM does, at once or in paced chunks, for next to no CPU."""

import argparse
import asyncio
from itertools import count
from typing import Final

import orjson

from bench.serving import Receive, Scope, Send, add_port_arguments, read_body, serve
from bench.workload import CACHED_TOKENS, CHUNK_INTERVAL_S, CHUNKS, MODEL, PROMPT_TOKENS, TEXT, WORDS

CREATED: Final = 1_700_000_000
JSON_HEADERS: Final = [(b"content-type", b"application/json")]
SSE_HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8")]
DONE: Final = b"data: [DONE]\n\n"
_ID_MARK: Final = b"@ID@"

_request_numbers = count(1)


def _usage(completion_tokens: int, *, details: bool) -> dict[str, object]:
    usage: dict[str, object] = {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if details:
        usage["prompt_tokens_details"] = {"cached_tokens": CACHED_TOKENS}
    return usage


def _unary_template() -> tuple[bytes, bytes]:
    body = {
        "id": _ID_MARK.decode(),
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": TEXT,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(CHUNKS, details=True),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }
    return _split_at_id(orjson.dumps(body))


def _split_at_id(rendered: bytes) -> tuple[bytes, bytes]:
    before, after = rendered.split(_ID_MARK)
    return before, after


def _event(choices: list[dict[str, object]], usage: dict[str, object] | None) -> tuple[bytes, bytes]:
    event: dict[str, object] = {
        "id": _ID_MARK.decode(),
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
        "choices": choices,
    }
    if usage is not None:
        event["usage"] = usage
    return _split_at_id(b"data: " + orjson.dumps(event) + b"\n\n")


def _stream_template(*, continuous_usage: bool) -> list[tuple[bytes, bytes]]:
    """The role event and the content events, each cut in two where the request's id goes."""
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events = [_event([role], _usage(0, details=False) if continuous_usage else None)]
    for produced, word in enumerate(WORDS, start=1):
        choice: dict[str, object] = {
            "index": 0,
            "delta": {"content": word},
            "logprobs": None,
            "finish_reason": "length" if produced == CHUNKS else None,
            "token_ids": None,
        }
        events.append(_event([choice], _usage(produced, details=False) if continuous_usage else None))
    return events


UNARY: Final = _unary_template()
PLAIN_STREAM: Final = _stream_template(continuous_usage=False)
METERED_STREAM: Final = _stream_template(continuous_usage=True)
FINAL_USAGE: Final = _event([], _usage(CHUNKS, details=True))
MODELS: Final = orjson.dumps(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "created": CREATED, "owned_by": "bench"}]}
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer chat completions, the model list, the health probe and a trace collector's route; anything else is 404."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["path"] == "/v1/chat/completions":
        await _chat(scope, receive, send)
    elif scope["path"] == "/v1/models":
        await _answer(send, 200, MODELS)
    elif scope["path"] == "/v1/traces":
        await read_body(receive)
        await _answer(send, 200, b"")
    elif scope["path"] == "/health":
        await _answer(send, 200, b"")
    else:
        await _answer(send, 404, b'{"error":{"message":"Not Found","type":"NotFoundError","param":null,"code":404}}')


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _chat(scope: Scope, receive: Receive, send: Send) -> None:
    request = orjson.loads(await read_body(receive))
    completion_id = _completion_id(scope)
    if request.get("stream"):
        await _stream(send, completion_id, request.get("stream_options") or {})
    else:
        before, after = UNARY
        await _answer(send, 200, before + completion_id + after)


def _completion_id(scope: Scope) -> bytes:
    """vLLM names a completion after the caller's X-Request-Id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return b"chatcmpl-" + bytes(value)
    return b"chatcmpl-bench-%d" % next(_request_numbers)


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, completion_id: bytes, options: dict[str, object]) -> None:
    """Send each event as its own write, on a schedule that does not drift: one content event every 5 ms."""
    loop = asyncio.get_running_loop()
    events = METERED_STREAM if options.get("continuous_usage_stats") else PLAIN_STREAM
    await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
    started_s = loop.time()
    for position, (before, after) in enumerate(events):
        delay_s = started_s + position * CHUNK_INTERVAL_S - loop.time()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        await send({"type": "http.response.body", "body": before + completion_id + after, "more_body": True})
    if options.get("include_usage"):
        before, after = FINAL_USAGE
        await send({"type": "http.response.body", "body": before + completion_id + after, "more_body": True})
    await send({"type": "http.response.body", "body": DONE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_port_arguments(parser)
    arguments = parser.parse_args()
    serve(app, arguments.port, arguments.port_file)


if __name__ == "__main__":
    main()
