"""The designed loads: each moves one coefficient of the step-time model apart from the others, then all together.

Lengths follow from what the engine says of itself; rates follow from how many requests a second it was seen to end.
Everything follows from the seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, count
from math import exp
from random import Random
from typing import Final

from runtime.calibration.engine import Shape
from runtime.workload.port import Arrival

_BATCH_MAX: Final = 64
"""Larger batches are not driven to apart, for a small client would then be what is measured."""
_TURN_GAP_US: Final = 30_000
OPEN_REQUESTS_MIN: Final = 20
USERS_MAX: Final = 512
"""Of a closed load, for the same reason."""
TRAINING_SHARES: Final = (35, 60, 85, 115)
HELD_OUT_SHARES: Final = (30, 55, 75, 125)
"""Rates of open loads, in hundredths of the requests a second that the engine ends when it is saturated."""


@dataclass(frozen=True, slots=True)
class Load:
    """A workload of a few hundred requests.

    `saturated` says that it asks for more than the engine can do at once, `single` that it moves few coefficients and
    is like nothing that anyone asks.
    """

    name: str
    block_tokens: int
    arrivals: tuple[Arrival, ...]
    saturated: bool = False
    single: bool = False

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)


@dataclass(frozen=True, slots=True)
class Mix:
    """Lengths of requests: medians in tokens of log-normal distributions, and the blocks that some prompts share."""

    name: str
    prompt_median: int
    output_median: int
    spread: float
    shared_blocks: int = 0
    shared_prefixes: int = 1


def training_mix(shape: Shape) -> Mix:
    """What training loads ask."""
    return _fitting(shape, Mix("even", max(16, shape.max_model_len // 24), max(8, shape.max_model_len // 96), 0.8))


def held_out_mixes(shape: Shape) -> tuple[Mix, Mix]:
    """What held-out loads ask: longer prompts with shorter answers, and prompts that share one of five prefixes."""
    long = Mix("long", max(16, shape.max_model_len // 9), max(8, shape.max_model_len // 128), 0.6)
    blocks = max(1, shape.max_model_len // 10 // shape.block_size)
    shared = Mix("shared", max(16, shape.max_model_len // 40), max(8, shape.max_model_len // 80), 0.7, blocks, 5)
    return _fitting(shape, long), _fitting(shape, shared)


def _fitting(shape: Shape, mix: Mix) -> Mix:
    """The mix, its requests shorter where the cache does not hold one for each seat: no batch would be a full one."""
    room = shape.tokens * 3 // 4 - mix.shared_prefixes * mix.shared_blocks * shape.block_size
    mean = (mix.prompt_median + mix.output_median) * exp(mix.spread**2 / 2)
    part = min(1.0, max(0, room) / shape.max_num_seqs / mean)
    prompt, output = round(mix.prompt_median * part), round(mix.output_median * part)
    return replace(mix, prompt_median=max(16, prompt), output_median=max(8, output))


def users_of(shape: Shape) -> list[int]:
    """How many users closed loads have: one, parts of the seats, and half as many again as there are seats."""
    seats = shape.max_num_seqs
    wanted = (1, seats // 4, seats // 2, seats, seats + max(1, seats // 2))
    return sorted({min(USERS_MAX, max(1, each)) for each in wanted})


def single_loads(shape: Shape) -> list[Load]:
    """Loads that each move few coefficients: prefills alone, batches of decodes over short and long contexts."""
    return [prefills(shape), decodes(shape, "short", 16), decodes(shape, "long", shape.max_model_len), hits(shape)]


def warming(shape: Shape) -> Load:
    """A few requests, for the first ones of an engine take longer than any after them."""
    return Load("warming", shape.block_size, tuple(Arrival(1_000, 64, 16, after=at - 1) for at in range(8)))


def prefills(shape: Shape) -> Load:
    """One prompt at a time, of lengths up to the longest: the price of prefill tokens, and of their context."""
    longest, lengths = shape.max_model_len - 2, [8]
    while lengths[-1] < longest:
        lengths.append(min(longest, max(lengths[-1] + 8, lengths[-1] * 8 // 5)))
    arrivals = tuple(Arrival(_TURN_GAP_US, length, 2, after=at - 1) for at, length in enumerate(lengths * 3))
    return Load("prefills", shape.block_size, arrivals, single=True)


def decodes(shape: Shape, name: str, prompt_tokens: int) -> Load:
    """Batches of one, two, four … that decode together, one batch after another, over as much context as fits."""
    arrivals: list[Arrival] = []
    last, batch = -1, min(shape.max_num_seqs, _BATCH_MAX)
    for size in [*(1 << power for power in range((batch - 1).bit_length())), batch]:
        output = min(48, shape.max_model_len // 8)
        room = shape.tokens * 3 // 4 // size - output - size
        prompt = max(8, min(prompt_tokens, shape.max_model_len // 2, room))
        # One token more for each, so that they end one after another and every smaller batch is seen as well.
        arrivals += [Arrival(_TURN_GAP_US, prompt, output + at, after=last) for at in range(size)]
        last = len(arrivals) - 1
    return Load(f"decodes-{name}", shape.block_size, tuple(arrivals), single=True)


def hits(shape: Shape) -> Load:
    """One prompt at a time whose beginning is cached, more of it or less: prefill over context already computed."""
    blocks = shape.max_model_len // 2 // shape.block_size
    ids = tuple(range(blocks))
    shares = [blocks * part // 5 for part in (0, 5, 1, 2, 3, 4, 5, 2, 4)]
    tail = min(shape.max_model_len // 8, 256)
    arrivals = [
        Arrival(_TURN_GAP_US, len(ids[:share]) * shape.block_size + tail, 2, ids[:share], after=index - 1)
        for index, share in enumerate([blocks, *shares])
    ]
    return Load("hits", shape.block_size, tuple(arrivals), single=True)


def closed(shape: Shape, mix: Mix, users: int, turns: int, seed: int) -> Load:
    """Users who each send the next request when the one before has ended: always that many at once."""
    random = Random(f"{seed}/{mix.name}/closed/{users}")  # noqa: S311 - a load, not a secret
    begins_us = sorted(random.randrange(200_000) for _ in range(users))
    arrivals = []
    for index in range(users * turns):
        first = index < users
        at_us = begins_us[index] if first else random.randrange(1_000, 20_000)
        arrivals.append(_request(shape, mix, random, at_us, -1 if first else index - users))
    return Load(f"{mix.name}-closed-{users}", shape.block_size, tuple(arrivals), users > shape.max_num_seqs)


def open_lasts_s(per_s: float, share: int, duration_s: float) -> float:
    """About how long the requests of such an open load come, which are never so few that a mean says nothing."""
    return max(duration_s, OPEN_REQUESTS_MIN * 100 / (per_s * share))


def opened(shape: Shape, mix: Mix, per_s: float, share: int, duration_s: float, seed: int) -> Load:
    """Requests at random times, `share` hundredths of `per_s` a second."""
    random = Random(f"{seed}/{mix.name}/open/{share}")  # noqa: S311 - a load, not a secret
    rate = per_s * share / 100
    requests = max(OPEN_REQUESTS_MIN, round(rate * duration_s))
    times = accumulate(random.expovariate(rate) for _ in range(requests))
    arrivals = tuple(_request(shape, mix, random, round(at_s * 1e6), -1) for at_s in times)
    return Load(f"{mix.name}-open-{share}", shape.block_size, arrivals, share >= 100)


def conversations(shape: Shape, users: int, turns: int, seed: int) -> Load:
    """Users in conversations: each turn's prompt is all that was said before, answers included, and something new."""
    random = Random(f"{seed}/conversations/{users}")  # noqa: S311 - a load, not a secret
    size, ids = shape.block_size, count(1)
    system = tuple(next(ids) for _ in range(max(1, shape.max_model_len // 16 // size)))
    said_max = shape.max_model_len - 1
    chains, said = [list(system) for _ in range(users)], [len(system) * size] * users
    last, begins_us = [-1] * users, sorted(random.randrange(400_000) for _ in range(users))
    arrivals: list[Arrival] = []
    for _ in range(turns):
        for user in range(users):
            new, output = (max(4, shape.max_model_len // part + random.randrange(16)) for part in (48, 80))
            prompt = said[user] + new
            if prompt + output > said_max:
                continue
            chain = chains[user]
            while len(chain) * size < prompt + output:
                chain.append(next(ids))
            at_us = begins_us[user] if last[user] < 0 else random.randrange(50_000, 400_000)
            arrivals.append(Arrival(at_us, prompt, output, tuple(chain), after=last[user]))
            last[user], said[user] = len(arrivals) - 1, prompt + output
    return Load(f"conversations-{users}", size, tuple(arrivals), users > shape.max_num_seqs)


def _request(shape: Shape, mix: Mix, random: Random, at_us: int, after: int) -> Arrival:
    prompt = _length(random, mix.prompt_median, mix.spread, shape.max_model_len // 2)
    output = _length(random, mix.output_median, mix.spread, shape.max_model_len // 8)
    prefix = random.randrange(mix.shared_prefixes) * mix.shared_blocks if mix.shared_blocks else 0
    blocks = tuple(range(prefix, prefix + mix.shared_blocks))
    shared = len(blocks) * shape.block_size
    return Arrival(at_us, min(shared + prompt, shape.max_model_len - output - 1), output, blocks, after=after)


def _length(random: Random, median: int, spread: float, longest: int) -> int:
    return max(4, min(longest, round(random.lognormvariate(0, spread) * median)))
