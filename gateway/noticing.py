"""Noticing: what a worker notices of its requests, for signals, rows of tool calls and the quality of answers.

Each place of the flow that notices something has one line that calls this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain.decision import Decision
from domain.intent import Intent
from gateway import signal_sources
from gateway.answers import Collector
from gateway.errors import Refusal
from gateway.quality import Sampler
from gateway.rows import Ended
from gateway.signals import Signals
from gateway.tool_calls import UNOFFERED, Ruling, ToolLog, blocked


@dataclass(slots=True)
class Noticing:
    """The signals of one worker and what makes them; `is_outburst` says whether an app spends far more than usual."""

    signals: Signals
    tools: ToolLog
    sampler: Sampler
    is_outburst: Callable[[str, str, str, int], bool]

    def refused(self, row: Mapping[str, Any], refusal: Refusal) -> None:
        """A request was refused."""
        signal_sources.refused(self.signals, row, refusal)

    def settled(
        self, row: Mapping[str, Any], tools: Sequence[str], blocked_tools: Sequence[str], ended: Ended, cost_nusd: int
    ) -> None:
        """A call has ended and is settled; `row` is that of its hold, and `tools` are those that were asked for."""
        signal_sources.settled(self.signals, row, ended.status, ended.http_status, ended.error_code)
        if tools:
            signal_sources.tools_blocked(self.signals, row, tools, blocked_tools)
            self.tools.offered(row, tools, blocked(blocked_tools))
        if self.is_outburst(row["org"], row["team"], row["app"], cost_nusd):
            signal_sources.spend_anomaly(self.signals, row)

    def collector(self, intent: Intent, body: Mapping[str, Any], *, generates: bool) -> Collector | None:
        """What is to read along with the answer to a request; None for most."""
        return self.sampler.collector(intent.request_id, body, generates=generates, offers_tools=bool(intent.tools))

    def answered(self, row: Mapping[str, Any], collector: Collector, *, is_ruled: bool = False) -> None:
        """An answer came to its own end and was passed on; `is_ruled` where each call in it has been `ruled`."""
        called = collector.called()
        if called and not is_ruled:
            self.tools.called(row, called, {"": UNOFFERED})
        self.sampler.score(row, collector)

    def ruled(self, row: Mapping[str, Any], calls: Sequence[str], decisions: Mapping[str, Decision]) -> None:
        """Policy has decided of tools that an answer calls; `calls` names the tool of each call, decided or not."""
        rulings = {tool: Ruling(_verdict(said), said.reasons) for tool, said in decisions.items()}
        self.tools.called(row, [tool for tool in calls if tool in rulings], rulings)
        for tool, said in decisions.items():
            if not said.allow:
                codes = [reason.code for reason in said.reasons]
                signal_sources.tool_denied(self.signals, row, tool, "", "called", codes)

    async def close(self) -> None:
        """End what is still being scored; whoever runs the signals ends these."""
        await self.sampler.close()


def _verdict(said: Decision) -> str:
    if not said.allow:
        return "deny"
    return "verify" if said.obligations.verify else "allow"
