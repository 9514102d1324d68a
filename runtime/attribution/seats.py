"""Seats: who is in the batch of an engine, the prices that they pay, and what each request has been given so far."""

from typing import NamedTuple

from runtime.attribution.shares import Reason
from runtime.attribution.weights import Weights

SHIFT = 64
_WORSE: tuple[Reason, ...] = ("finished", "aborted", "lost")


class Prices:
    """The sums of the prices of one resource over all steps, and of each times the number of its step."""

    __slots__ = ("carry", "per_step", "plain")

    def __init__(self) -> None:
        self.plain = 0
        self.per_step = 0
        self.carry = 0

    def price(self, amount: int, work: int, step: int) -> int:
        """Share an amount by an amount of work that is not 0; returns the price of a unit."""
        price, self.carry = divmod((amount << SHIFT) + self.carry, work)
        self.plain += price
        self.per_step += price * step
        return price


class Rates(NamedTuple):
    """What is priced: accelerator time and energy by work, blocks by context."""

    gpu: Prices
    energy: Prices
    kv: Prices


class Owner:
    """What is known of one request while some of its handles are in the batch or wait to come back (`away`)."""

    __slots__ = (
        *("answers", "away", "away_since_us", "cached_tokens", "decode_tokens", "energy", "gpu", "is_uncertain", "key"),
        *("kv", "output_tokens", "preemptions", "prefill_tokens", "prompt_tokens", "queue_us", "reason", "seated"),
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.seated = 0
        self.away: list[str] = []
        self.away_since_us = 0
        self.gpu = self.energy = self.kv = 0
        self.queue_us = 0
        self.prompt_tokens = self.cached_tokens = self.prefill_tokens = self.decode_tokens = self.output_tokens = 0
        self.answers = self.preemptions = 0
        self.reason: Reason = "finished"
        self.is_uncertain = False

    def worsen(self, reason: Reason) -> None:
        """Remember why an answer ended, unless another one ended for a worse reason."""
        self.reason = max(self.reason, reason, key=_WORSE.index)


class Seat:
    """One handle: whose it is, its context less the number of the step after which it had it, and where it is paid to.

    While its request decodes one token a step that difference, the `offset`, stays the same.
    """

    __slots__ = ("energy", "gpu", "kv", "name", "offset", "owner", "paid_to")

    def __init__(self, name: str, owner: Owner, offset: int) -> None:
        self.name = name
        self.owner = owner
        self.offset = offset
        self.paid_to = 0
        self.gpu = self.energy = self.kv = (0, 0)

    def anchor(self, rates: Rates, step: int) -> None:
        """From here on the seat pays for what comes after this step."""
        self.paid_to = step
        self.gpu = (rates.gpu.plain, rates.gpu.per_step)
        self.energy = (rates.energy.plain, rates.energy.per_step)
        self.kv = (rates.kv.plain, rates.kv.per_step)

    def pay(self, rates: Rates, weights: Weights, to_step: int) -> None:
        """Pay for the tokens decoded since the last time; the prices must be those up to this step."""
        owner, offset = self.owner, self.offset
        fixed, grows = weights.decode(1, offset - 1), weights.decode_context
        gpu, energy, kv = rates
        owner.gpu += fixed * (gpu.plain - self.gpu[0]) + grows * (gpu.per_step - self.gpu[1])
        owner.energy += fixed * (energy.plain - self.energy[0]) + grows * (energy.per_step - self.energy[1])
        owner.kv += offset * (kv.plain - self.kv[0]) + kv.per_step - self.kv[1]
        owner.decode_tokens += to_step - self.paid_to
