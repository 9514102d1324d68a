"""OpenAI's response bodies, whole and as server-sent events, laid out as vLLM does."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import orjson

from runtime.sim.ask import EmbeddingAsk
from runtime.sim.embedding import embed
from runtime.sim.generation import Generation, Progress

DONE: Final = b"data: [DONE]\n\n"


def usage_object(generation: Generation) -> dict[str, Any]:
    """The `usage` of a whole request."""
    prompt, completion, cached = generation.usage()
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def whole_reply(generation: Generation, created: int) -> bytes:
    """The body of a response that is not streamed."""
    chat = generation.ask.endpoint == "chat"
    choices: list[dict[str, Any]] = []
    for index, output in enumerate(generation.outputs):
        text = "".join(output.texts)
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        ending = {"logprobs": None, "finish_reason": output.finish_reason, "stop_reason": output.stop_reason}
        choices.append({"index": index, **content, **ending})
    return orjson.dumps(
        {
            "id": generation.response_id,
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": generation.ask.model,
            "choices": choices,
            "usage": usage_object(generation),
        }
    )


class EventWriter:
    """Writes the events of one stream; what is the same in all of them is serialized once."""

    def __init__(self, generation: Generation, created: int) -> None:
        self._generation = generation
        self._chat = generation.ask.endpoint == "chat"
        self._continuous = generation.ask.continuous_usage
        head = {
            "id": generation.response_id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created,
            "model": generation.ask.model,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['

    def opening(self) -> bytes:
        """The events that name the role of each choice, which only chats have."""
        if not self._chat:
            return b""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return b"".join(
            self._head + b'{"index":%d,' % index + delta + self._usage(index, 0) + b"}\n\n"
            for index in range(len(self._generation.requests))
        )

    def event(self, progress: Progress) -> bytes:
        """The event of one sequence's new text; continuous usage is of that sequence alone, as in vLLM."""
        index, text, finish_reason = progress
        ending = b'"finish_reason":null'
        if finish_reason is not None:
            stop_reason = orjson.dumps(self._generation.outputs[index].stop_reason)
            ending = b'"finish_reason":"%s","stop_reason":%s' % (finish_reason.encode(), stop_reason)
        content = b'"delta":{"content":%s}' if self._chat else b'"text":%s'
        return b'%s{"index":%d,%s,"logprobs":null,%s}]%s}\n\n' % (
            self._head,
            index,
            content % orjson.dumps(text),
            ending,
            self._usage(index, self._generation.emitted[index]),
        )

    def closing(self) -> bytes:
        """The usage of the whole request, if it was asked for, and the end mark."""
        if not self._generation.ask.include_usage:
            return DONE
        return self._head + b'],"usage":' + orjson.dumps(usage_object(self._generation)) + b"}\n\n" + DONE

    def _usage(self, index: int, completion: int) -> bytes:
        if not self._continuous:
            return b""
        prompt = self._generation.prompt_tokens(index)
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
            prompt,
            prompt + completion,
            completion,
        )


def embedding_reply(ask: EmbeddingAsk) -> bytes:
    """The body of an embeddings response; base64 holds little-endian single-precision floats."""
    data: list[dict[str, Any]] = []
    for index, prompt in enumerate(ask.prompts):
        vector = embed(prompt, ask.dimensions)
        value: Any = b64encode(vector.tobytes()).decode() if ask.base64 else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    tokens = sum(map(len, ask.prompts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": ask.model, "usage": usage})


def models_reply(models: Sequence[str], created: int, max_model_len: int) -> bytes:
    """The body of the list of models."""
    data = [
        {"id": model, "object": "model", "created": created, "owned_by": "bursar", "max_model_len": max_model_len}
        for model in models
    ]
    return orjson.dumps({"object": "list", "data": data})
