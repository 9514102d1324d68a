"""Shares and totals: what attribution says of a request, and of an engine."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from domain.usage import Certainty

Reason = Literal["finished", "aborted", "lost"]


class Share(NamedTuple):
    """What one request took, all of its answers (`n`) together, since it began or since its last share.

    `gpu_us` is accelerator time, `energy_uj` its part of the energy of busy time, and `kv_block_us` its part of the
    blocks in use. `queue_us` is how long it waited for the batch. `reason` is the worst of its answers', and `lost`
    where telemetry is missing: what is known is then the least. `is_replayed` says that an account before ours had it.
    """

    request_id: str
    gpu_us: int
    energy_uj: int
    kv_block_us: int
    queue_us: int
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    decode_tokens: int
    output_tokens: int
    answers: int
    preemptions: int
    reason: Reason
    certainty: Certainty
    is_replayed: bool


class Totals(NamedTuple):
    """What one engine did since its account began; times are accelerator time but `wall_us`, which passes once for all.

    capacity_us = wall_us x accelerators = busy_us + idle_us + lost_us, and busy_us = attributed_us + in_flight_us +
    unattributed_us, in which what is in flight is a level: what it grew by counts between two of them.
    `until_us` is the Unix time up to which that is known. `lost_us` is time of which the telemetry is lost,
    `unattributed_us` busy time of steps whose requests are not known, `losses` how often something was missing, and
    `uncertain` how many shares are the least for that reason.
    """

    until_us: int = 0
    wall_us: int = 0
    capacity_us: int = 0
    busy_us: int = 0
    lost_us: int = 0
    attributed_us: int = 0
    unattributed_us: int = 0
    kv_block_us: int = 0
    energy_uj: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    losses: int = 0
    uncertain: int = 0

    @property
    def idle_us(self) -> int:
        """Accelerator time in which no step ran."""
        return self.capacity_us - self.busy_us - self.lost_us

    @property
    def in_flight_us(self) -> int:
        """Busy time of requests that are not done."""
        return self.busy_us - self.attributed_us - self.unattributed_us

    def since(self, before: "Totals") -> "Totals":
        """The difference; `until_us` stays."""
        return Totals(self.until_us, *[now - was for now, was in zip(self[1:], before[1:], strict=True)])


def together(engines: Iterable[tuple[int, Totals]]) -> Totals:
    """What several engines did, from the accelerators of each and what it did.

    Their `wall_us` is the time that passed for an accelerator in the mean, so that capacity is still that times all
    accelerators, to within a microsecond for each; `until_us` is that of the one known the longest.
    """
    found = list(engines)
    if not found:
        return Totals()
    sums = [sum(column) for column in zip(*[each[1:] for _, each in found], strict=True)]
    all_of_them = sum(accelerators for accelerators, _ in found)
    passed_us = sum(accelerators * each.wall_us for accelerators, each in found)
    wall_us = (2 * passed_us + all_of_them) // (2 * all_of_them) if all_of_them else 0
    return Totals(max(each.until_us for _, each in found), *sums)._replace(wall_us=wall_us)


def nothing(request_id: str) -> Share:
    """The share of a request that was never computed."""
    return Share(request_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "aborted", "exact", is_replayed=False)
