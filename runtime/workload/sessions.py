"""Sessions: requests that belong together, and which prefixes they share: single ones, conversations, agents' runs."""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from runtime.workload.contexts import EMPTY, Context, Ids
from runtime.workload.draws import Dice, Draw, Part, Positive, pause_us, whole
from runtime.workload.port import WorkloadError
from runtime.workload.rows import TOKENS_MAX

STEPS_MAX = 10_000
TEXTS_MAX = 10_000
ContextTokens = Annotated[int, Field(ge=2, le=TOKENS_MAX)]


class Step(NamedTuple):
    """One request of a session: it comes `pause_us` after the step of index `after` has ended, or begins it."""

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    after: int = -1
    pause_us: int = 0


class Texts(Part):
    """`count` texts that prompts begin with: the k-th is chosen in proportion to 1/k^zipf; 0 is all alike."""

    count: Annotated[int, Field(ge=1, le=TEXTS_MAX)]
    tokens: Draw
    zipf: Annotated[float, Field(ge=0, le=10)] = 1.0


class Single(Part):
    """One request each: a shared system prompt if there are any, one of its few-shot branches if there are any, a text.

    `examples` are that many branches of each system prompt.
    """

    kind: Literal["single"]
    prompt: Draw
    output: Draw
    system: Texts | None = None
    examples: Texts | None = None

    def sessions(self, dice: Dice, ids: Ids) -> Iterator[list[Step]]:
        """One session after the other, without end."""
        prompt, output = self.prompt.sampler(dice), self.output.sampler(dice)
        begin = _beginnings(dice, ids, self.system, self.examples)
        while True:
            yield [_step(ids, ids.grown(begin(), whole(prompt)), whole(output))[0]]


class Conversation(Part):
    """Turns of one user: each prompt is all that was said before, the answers included, and a new text.

    A conversation that fills `context_tokens_max` ends.
    """

    kind: Literal["conversation"]
    turns: Draw
    prompt: Draw
    output: Draw
    think_s: Draw
    system: Texts | None = None
    context_tokens_max: ContextTokens = 32_768

    def sessions(self, dice: Dice, ids: Ids) -> Iterator[list[Step]]:
        """One session after the other, without end. WorkloadError where a system prompt leaves no room."""
        turns, think = self.turns.sampler(dice), self.think_s.sampler(dice)
        prompt, output = self.prompt.sampler(dice), self.output.sampler(dice)
        begin = _beginnings(dice, ids, self.system)
        while True:
            talk = _Talk(ids, self.context_tokens_max)
            said = begin()
            for turn in range(min(whole(turns), STEPS_MAX)):
                said = talk.go_on(said, whole(prompt), whole(output), turn - 1, pause_us(think) if turn else 0)
                if talk.is_full:
                    break
            yield talk.steps


class FanOut(Part):
    """With this probability a step is followed by helpers, that many, which take so many steps from its context on."""

    probability: Annotated[float, Field(gt=0, le=1)]
    helpers: Draw
    steps: Draw


class Agent(Part):
    """An agent's run: steps that end in tool calls, whose results the next prompt goes on with after `tool_s`.

    After helpers it goes on when the one that takes the most steps has ended. What they found out comes with the next
    result. A run that fills `context_tokens_max` ends.
    """

    kind: Literal["agent"]
    task: Draw
    steps: Draw
    output: Draw
    result: Draw
    tool_s: Draw
    system: Texts | None = None
    fan_out: FanOut | None = None
    context_tokens_max: ContextTokens = 131_072

    def sessions(self, dice: Dice, ids: Ids) -> Iterator[list[Step]]:
        """One session after the other, without end. WorkloadError where a system prompt leaves no room."""
        task, steps = self.task.sampler(dice), self.steps.sampler(dice)
        work = _Work(dice, self.output.sampler(dice), self.result.sampler(dice), self.tool_s.sampler(dice))
        begin, fan = _beginnings(dice, ids, self.system), _fan(dice, self.fan_out)
        while True:
            talk = _Talk(ids, self.context_tokens_max)
            said, new, last = begin(), whole(task), -1
            for _ in range(whole(steps)):
                said = talk.go_on(said, new, whole(work.output), last, pause_us(work.tool_s) if talk.steps else 0)
                if talk.is_full or len(talk.steps) >= STEPS_MAX:
                    break
                last = _helped(talk, said, fan(), work)
                new = whole(work.result)
            yield talk.steps


class Share(Part):
    """A part of a mixture, chosen in proportion to its weight."""

    weight: Positive
    sessions: "Sessions"


class Mixture(Part):
    """Sessions of several kinds, which share no prefix with another kind's."""

    kind: Literal["mixture"]
    parts: Annotated[tuple[Share, ...], Field(min_length=1, max_length=100, strict=False)]

    def sessions(self, dice: Dice, ids: Ids) -> Iterator[list[Step]]:
        """One session after the other, without end."""
        streams = [part.sessions.sessions(dice, ids) for part in self.parts]
        choose = _chooser(dice, np.array([part.weight for part in self.parts]))
        while True:
            yield next(streams[choose()])


Sessions = Annotated[Single | Conversation | Agent | Mixture, Field(discriminator="kind")]


class _Work(NamedTuple):
    """What the steps of agents draw."""

    dice: Dice
    output: Callable[[], float]
    result: Callable[[], float]
    tool_s: Callable[[], float]


class _Talk:
    """The steps of a session so far, of which no prompt with its output is over `tokens_max`."""

    def __init__(self, ids: Ids, tokens_max: int) -> None:
        self.steps: list[Step] = []
        self.is_full = False
        self._ids = ids
        self._tokens_max = tokens_max

    def go_on(self, said: Context, prompt_tokens: int, output_tokens: int, after: int, pause: int) -> Context:
        """Add a step that says more, cut to what there is room for, and return all that was said then."""
        room = self._tokens_max - said.tokens
        if room < 2:
            self.is_full = True
            if self.steps:
                return said
            raise WorkloadError(
                f"a system prompt of {said.tokens} tokens fills the context: make context_tokens_max more than"
                f" {self._tokens_max}"
            )
        prompt_tokens = min(prompt_tokens, room - 1)
        output_tokens = min(output_tokens, room - prompt_tokens)
        self.is_full = prompt_tokens + output_tokens == room
        prompt = self._ids.grown(said, prompt_tokens)
        step, said = _step(self._ids, prompt, output_tokens)
        self.steps.append(step._replace(after=after, pause_us=pause))
        return said


def _step(ids: Ids, prompt: Context, output_tokens: int) -> tuple[Step, Context]:
    """A request with this prompt, and all that was said when it has ended."""
    said = ids.grown(prompt, output_tokens)
    return Step(prompt.tokens, output_tokens, ids.covering(said)), said


def _helped(talk: _Talk, said: Context, counts: list[int], work: _Work) -> int:
    """Let helpers take so many steps each from what was said on; returns the step after which the run goes on."""
    begun = last = len(talk.steps) - 1
    for steps in counts:
        heard, after = said, begun
        for _ in range(min(steps, STEPS_MAX - len(talk.steps))):
            before = len(talk.steps)
            heard = talk.go_on(heard, whole(work.result), whole(work.output), after, pause_us(work.tool_s))
            if len(talk.steps) == before:
                break
            after = before
            if talk.is_full:
                break
        talk.is_full = False
        if steps == max(counts):
            last = after
    return last


def _fan(dice: Dice, fan_out: FanOut | None) -> Callable[[], list[int]]:
    """What draws how many steps each helper takes after a step, of which there are none most times."""
    if fan_out is None:
        return list
    helpers, steps = fan_out.helpers.sampler(dice), fan_out.steps.sampler(dice)

    def drawn() -> list[int]:
        if dice.random() >= fan_out.probability:
            return []
        return [whole(steps) for _ in range(min(whole(helpers), STEPS_MAX))]

    return drawn


def _beginnings(dice: Dice, ids: Ids, *levels: Texts | None) -> Callable[[], Context]:
    """What draws a path down a tree of shared texts; what has been drawn once is the same ever after."""
    texts = [(level.tokens.sampler(dice), _popular(dice, level)) for level in levels if level is not None]
    known: dict[tuple[int, ...], Context] = {(): EMPTY}

    def drawn() -> Context:
        path: tuple[int, ...] = ()
        for tokens, choose in texts:
            above = known[path]
            path = (*path, choose())
            if path not in known:
                known[path] = ids.grown(above, whole(tokens))
        return known[path]

    return drawn


def _popular(dice: Dice, texts: Texts) -> Callable[[], int]:
    return _chooser(dice, np.arange(1, texts.count + 1, dtype=np.float64) ** -texts.zipf)


def _chooser(dice: Dice, weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Callable[[], int]:
    """What draws an index in proportion to its weight."""
    bounds = np.cumsum(weights)
    most = len(bounds) - 1
    return lambda: min(int(np.searchsorted(bounds, dice.random() * bounds[-1], side="right")), most)
