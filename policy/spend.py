"""Spend anomalies: an app that spends far more in a minute than it is used to.

The baseline is what the app spends in a minute in which it spends anything, as a mean that forgets. A minute counts in
it for no more than twice the baseline, or the floor, so that one outburst is not the next one's excuse.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

MINUTE_S = 60
APPS_MAX = 4_000

Names = tuple[str, str, str]


class SpendRule(NamedTuple):
    """When a minute is out of bounds: over `times` the baseline and over a floor, once enough minutes were seen."""

    times: int = 5
    floor_nusd: int = 100_000_000
    samples_min: int = 30
    memory: int = 60


@dataclass(slots=True)
class _Flow:
    """The spend of one app: in the minute that runs, and in those before."""

    minute: int
    spent_nusd: int
    baseline_nusd: int
    samples: int
    is_told: bool


class SpendWatch:
    """The baselines of the apps that spent last; it has one user at a time, and is told the time."""

    def __init__(self, rule: SpendRule = SpendRule(), apps_max: int = APPS_MAX) -> None:  # noqa: B008 it is frozen
        self._rule = rule
        self._apps_max = apps_max
        self._flows: dict[Names, _Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def spend(self, org: str, team: str, app: str, cost_nusd: int, now_s: int) -> bool:
        """Take up a cost; whether with it this minute is out of bounds, which is said once of a minute."""
        names, minute = (org, team, app), now_s // MINUTE_S
        flow = self._flows.get(names)
        # One minute later may be a clock that was set back a little; more is one that was ahead.
        if flow is None or not flow.minute - 1 <= minute <= flow.minute:
            flow = self._turn(names, minute)
        flow.spent_nusd += cost_nusd
        rule = self._rule
        if flow.is_told or flow.samples < rule.samples_min or flow.spent_nusd <= rule.floor_nusd:
            return False
        flow.is_told = flow.spent_nusd > rule.times * flow.baseline_nusd
        return flow.is_told

    def snapshot(self) -> list[tuple[str, str, str, int, int]]:
        """The baselines as JSON takes them, without the minute that runs."""
        return [(*names, flow.baseline_nusd, flow.samples) for names, flow in self._flows.items()]

    def restore(self, body: list[Any]) -> None:
        """Take up the baselines of a snapshot."""
        for org, team, app, baseline_nusd, samples in body[-self._apps_max :]:
            self._flows[org, team, app] = _Flow(0, 0, baseline_nusd, samples, is_told=False)

    def _turn(self, names: Names, minute: int) -> _Flow:
        """Begin a minute; the app is now the last that would be forgotten."""
        flow = self._flows.pop(names, None)
        if flow is None:
            if len(self._flows) >= self._apps_max:
                del self._flows[next(iter(self._flows))]
            flow = _Flow(minute, 0, 0, 0, is_told=False)
        elif flow.spent_nusd > 0:
            self._learn(flow)
        flow.minute, flow.spent_nusd, flow.is_told = minute, 0, False
        self._flows[names] = flow
        return flow

    def _learn(self, flow: _Flow) -> None:
        sample_nusd = flow.spent_nusd
        if flow.samples >= self._rule.samples_min:
            sample_nusd = min(sample_nusd, max(2 * flow.baseline_nusd, self._rule.floor_nusd))
        flow.samples = min(flow.samples + 1, self._rule.memory)
        flow.baseline_nusd += (sample_nusd - flow.baseline_nusd) // flow.samples
