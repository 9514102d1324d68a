"""One chat or completion request on its way through the engine: its sequences, and how far each has come."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from runtime.sim.ask import GenerationAsk
from runtime.sim.errors import BadRequest
from runtime.sim.hashing import chain_hashes, root_hash
from runtime.sim.mailbox import Delivery
from runtime.sim.output import NATURAL_TOKENS_MAX, Output, write_output
from runtime.sim.request import FinishReason, SimRequest

OUTPUT_TOKENS_MAX: Final = 1 << 20
"""Of all sequences of one request together: answers are written in advance and kept until the request ends."""


class Progress(NamedTuple):
    """New text of one sequence, and why it ended if it did."""

    sequence: int
    text: str
    finish_reason: FinishReason | None


class Generation:
    """The sequences of one request: choice `c` of prompt `p` has index `p x n + c`.

    The engine gets lengths and hashes of whole blocks, also of the outputs, for these are written in advance.
    """

    def __init__(self, ask: GenerationAsk, response_id: str, serial: int, max_model_len: int, block_size: int) -> None:
        self.ask = ask
        self.response_id = response_id
        self.outputs: list[Output] = []
        self.requests: list[SimRequest] = []
        limits = [_tokens_max(ask, len(prompt), max_model_len) for prompt in ask.prompts]
        _check_output(ask, limits)
        for prompt, tokens_max in zip(ask.prompts, limits, strict=True):
            root = root_hash(ask.cache_salt)
            hashes = chain_hashes(root, prompt, block_size)
            parent, rest = hashes[-1] if hashes else root, prompt[len(hashes) * block_size :]
            for choice in range(ask.n):
                output = write_output(
                    prompt, seed=ask.seed + choice, tokens_max=tokens_max, ignore_eos=ask.ignore_eos, stop=ask.stop
                )
                self.outputs.append(output)
                self.requests.append(
                    SimRequest(
                        # A client may repeat its request id; the serial keeps the engine's unique.
                        request_id=f"{response_id}/{len(self.requests)}#{serial}",
                        prompt_tokens=len(prompt),
                        output_tokens=len(output.tokens),
                        block_hashes=hashes + chain_hashes(parent, rest + output.tokens, block_size),
                        finish_reason=output.finish_reason,
                        priority=ask.priority,
                    )
                )
        self.emitted = [0] * len(self.requests)
        self.unfinished = len(self.requests)
        self._cached_tokens = [0] * len(self.requests)

    def advance(self, deliveries: Iterable[Delivery]) -> list[Progress]:
        """Take in what the engine produced; tokens of one sequence that come together become one text."""
        fresh: dict[int, tuple[int, FinishReason | None]] = {}
        for index, emission in deliveries:
            count, _ = fresh.get(index, (0, None))
            fresh[index] = (count + emission.tokens, emission.finish_reason)
            self._cached_tokens[index] = emission.cached_tokens
        progress: list[Progress] = []
        for index, (count, finish_reason) in fresh.items():
            start = self.emitted[index]
            self.emitted[index] = start + count
            if finish_reason is not None:
                self.unfinished -= 1
            text = "".join(self.outputs[index].texts[start : start + count])
            progress.append(Progress(index, text, finish_reason))
        return progress

    def prompt_tokens(self, index: int) -> int:
        """The length of the prompt that a sequence belongs to."""
        return self.requests[index].prompt_tokens

    def usage(self) -> tuple[int, int, int]:
        """Prompt, completion and cached tokens of the whole request; a prompt counts once, however many its choices."""
        firsts = range(0, len(self.requests), self.ask.n)
        prompt = sum(self.prompt_tokens(index) for index in firsts)
        return prompt, sum(self.emitted), sum(self._cached_tokens[index] for index in firsts)


def _tokens_max(ask: GenerationAsk, prompt_tokens: int, max_model_len: int) -> int:
    """How many tokens a sequence may have; raises BadRequest when prompt and output do not fit the context."""
    room = max_model_len - prompt_tokens
    asked = 1 if ask.max_tokens is None else ask.max_tokens
    if asked > room:
        where = "messages" if ask.endpoint == "chat" else "prompt"
        raise BadRequest(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt_tokens + asked} tokens ({prompt_tokens} in the {where}, {asked} in the completion).",
            where if room < 1 else "max_tokens",
            "context_length_exceeded",
        )
    return room if ask.max_tokens is None else ask.max_tokens


def _check_output(ask: GenerationAsk, limits: list[int]) -> None:
    longest = max(limits) if ask.ignore_eos else NATURAL_TOKENS_MAX
    total = ask.n * sum(min(limit, longest) for limit in limits)
    if total > OUTPUT_TOKENS_MAX:
        raise BadRequest(f"The request may give {total} output tokens, at most {OUTPUT_TOKENS_MAX} are allowed", "n")
