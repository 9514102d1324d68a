"""Whether a runtime's engines tell what they compute, and how many accelerators count, as seen from outside."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from runtime.description import TelemetryState
from runtime.telemetry.runs import Heard, left_behind
from runtime.vllm.describe import ENDED, engines_in, said_in
from runtime.vllm.exchange import HttpError, get
from runtime.vllm.sampling import MetricsError, engines_shown, samples_by_name

TIMEOUT_S = 2.0


class Metered(NamedTuple):
    """The state of a runtime's telemetry, and the accelerators whose time is sampled and priced."""

    state: TelemetryState
    accelerators: int

    @property
    def brief(self) -> str:
        """The state in a few words."""
        return f"{self.state.status}: {self.state.reason}" if self.state.reason else self.state.status


def metered(folder: Path | None, gpus: int, url: str | None) -> Metered:
    """What a folder says of a runtime at a URL without `/v1`, None where it does not answer.

    `gpus` count until engines say how many they have; engines of a run that is over do not count beside those that run.
    """
    engines = engines_in(folder)
    if not engines:
        return Metered(said_in(folder).telemetry, gpus)
    states = {source: said.telemetry for source, said in engines.items()}
    opened = {source: state for source, state in states.items() if state.reason != ENDED}
    heard = {source: Heard(state.since_us, state.told_us) for source, state in opened.items()}
    gone = left_behind(heard, _shown(url) if url is not None and len(heard) > 1 else None)
    running = [source for source in opened if source not in gone] or list(states)
    told = sum(int(engines[source].facts.get("accelerators", 0)) for source in running)
    return Metered(_together({source: states[source] for source in running}, is_away=url is None), told or gpus)


def when(unix_us: int) -> str:
    """A time as people read it."""
    return datetime.fromtimestamp(unix_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _together(states: dict[str, TelemetryState], *, is_away: bool) -> TelemetryState:
    """The state of the first engine that tells nothing, and names it where it is one of several; else of the first."""
    source, state = next(((source, state) for source, state in states.items() if state.status == "off"), ("", None))
    if is_away and (state is None or state.reason == ENDED):
        told_us = max(each.told_us for each in states.values())
        return TelemetryState("off", f"not running; as of {when(told_us)}", told_us=told_us)
    if state is None:
        return next(iter(states.values()))
    prefix = f"{source}: " if len(states) > 1 else ""
    return TelemetryState("off", prefix + state.reason, state.session, state.since_us, state.lost_lines, state.told_us)


def _shown(url: str) -> int | None:
    """How many engines a runtime shows at `/metrics`; None where it shows none."""
    try:
        return engines_shown(samples_by_name(get(url, "/metrics", TIMEOUT_S).decode(), None))
    except (HttpError, MetricsError, UnicodeDecodeError):
        return None
