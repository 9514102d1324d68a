"""Keeps one vLLM running on a set of knobs that is known to be good: starts, drains, changes it, and rolls back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from runtime.control import Applied, Happening, Outcome, Stage
from runtime.description import Description, KnobValue
from runtime.vllm.couplings import KnobError
from runtime.vllm.describe import DescribeError, describe
from runtime.vllm.exchange import HttpError, HttpTimeout, get, post
from runtime.vllm.launcher import VllmLaunch, VllmServer, VllmServerError, free_port, url_of
from runtime.vllm.sampling import MetricsError, VllmCounters, parse_metrics

DRAIN_POLL_S = 0.1
REASON_CHARS_MAX = 4000


class NotVerified(VllmServerError):
    """The server is healthy, and does not answer a short request as it should."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each part of a change may take, in seconds."""

    start_s: float = 180.0
    verify_s: float = 60.0
    drain_s: float = 60.0
    stop_s: float = 15.0


class VllmControl:
    """One vLLM on one port; what was done with it is kept in `happenings`, the last `happenings_max` of them.

    A context manager: `start` on entry, `stop` on exit. `apply` changes knobs by a restart, since vLLM 0.32 has none
    that can be changed live; whoever calls it stops sending requests first, or the drain may not end. Not for several
    threads.
    """

    def __init__(
        self,
        launch: VllmLaunch,
        patience: Patience | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        happenings_max: int = 1000,
    ) -> None:
        self.launch = launch
        self.patience = patience or Patience()
        self.happenings: deque[Happening] = deque(maxlen=happenings_max)
        self._noted = 0
        self._clock_ns = clock_ns
        self._port = free_port()
        self._server: VllmServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """The address of the server, the same after each restart."""
        return url_of(self._port)

    @property
    def pid(self) -> int | None:
        """The id of the server's process and process group, or None when none runs."""
        return self._server.pid if self._server else None

    def start(self) -> None:
        """Start the server on its knobs and verify that it answers; VllmServerError, with nothing left, when not."""
        self._start(self.launch)

    def stop(self) -> None:
        """End the server, if one runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None
            self._note("stopped")

    def sample(self) -> VllmCounters:
        """The server's own counters; VllmServerError when it does not give them."""
        try:
            return parse_metrics(get(self.base_url, "/metrics").decode())
        except (HttpError, MetricsError) as error:
            raise VllmServerError(str(error)) from error

    def describe(self) -> Description:
        """A machine-readable model of what runs now; VllmServerError when the server does not answer."""
        try:
            return describe(self.base_url, self.launch.telemetry)
        except DescribeError as error:
            raise VllmServerError(str(error)) from error

    def drain(self) -> bool:
        """Wait until no request is counted as running or waiting; False when some still are when patience ends.

        VllmServerError when the server died, or did not count even once in that time.
        """
        deadline_s = time.monotonic() + self.patience.drain_s
        has_counted = False
        while True:
            is_last = time.monotonic() >= deadline_s
            try:
                now = self.sample()
                if not now.running and not now.waiting:
                    return True
                has_counted = True
            except VllmServerError:
                if not self.is_alive() or (is_last and not has_counted):
                    raise
            if is_last:
                return False
            time.sleep(DRAIN_POLL_S)

    def apply(self, knobs: Mapping[str, KnobValue]) -> Applied:
        """Change some knobs: check, drain, restart, verify; back to the last good ones where that fails.

        A set that contradicts itself and a server that does not come to rest are refused, and nothing is done. A server
        that had died is started on the new set all the same.
        """
        before = self._noted
        try:
            wanted = self.launch.knobs.changed(**knobs)
        except KnobError as error:
            return self._applied("refused", before, str(error))
        if wanted == self.launch.knobs and self.is_alive():
            return self._applied("applied", before)
        if self.is_alive() and not self._has_drained():
            return self._applied("refused", before, f"requests still ran after {self.patience.drain_s:g} s")
        good = self.launch
        self.stop()
        if self._runs(replace(good, knobs=wanted)):
            return self._applied("applied", before)
        if self._runs(good):
            self._note("rolled back")
            return self._applied("rolled back", before)
        return self._applied("down", before)

    def is_alive(self) -> bool:
        """Whether the server's process runs; notes it once when it has died, and clears what it left."""
        if self._server is None:
            return False
        try:
            self._server.check_alive()
        except VllmServerError as error:
            self._note("died", str(error))
            self._server.stop()
            self._server = None
            return False
        return True

    def revive(self) -> bool:
        """Start the server on its knobs again if it has died; whether it runs."""
        return self.is_alive() or self._runs(self.launch)

    def _has_drained(self) -> bool:
        """Whether nothing is in flight.

        vLLM counts anew with the results of each step, so while a first, long step computes it shows nobody. A short
        request is answered with the results of a later step, and from then on the counts are true.
        """
        try:
            if not self.drain():
                return False
            verify(self.base_url, self.launch, self.patience.drain_s)
            if not self.drain():
                return False
        except NotVerified as error:
            # That step may still compute. A server that answers, and wrongly, needs a restart.
            return not isinstance(error.__cause__, HttpTimeout)
        except VllmServerError:
            # Nothing is in flight at a server that does not even count; if it lives, a restart is what it needs.
            return True
        self._note("drained")
        return True

    def _runs(self, launch: VllmLaunch) -> bool:
        try:
            self._start(launch)
        except VllmServerError:
            return False
        return True

    def _start(self, launch: VllmLaunch) -> None:
        if self._server is not None:
            raise RuntimeError("this server was started before")
        server = VllmServer(
            launch, start_timeout_s=self.patience.start_s, stop_grace_s=self.patience.stop_s, port=self._port
        )
        try:
            server.start()
            self._note("started", repr(launch.knobs))
            verify(server.base_url, launch, self.patience.verify_s)
        except VllmServerError as error:
            server.stop()
            self._note("failed", str(error))
            raise
        except BaseException:
            server.stop()
            raise
        self._server = server
        self.launch = launch
        self._note("verified")

    def _applied(self, outcome: Outcome, before: int, refusal: str = "") -> Applied:
        if refusal:
            self._note("refused", refusal)
        happenings = tuple(self.happenings)[before - self._noted or len(self.happenings) :]
        return Applied(outcome, self.launch.knobs.values, happenings)

    def _note(self, stage: Stage, detail: str = "") -> None:
        self._noted += 1
        self.happenings.append(Happening(self._clock_ns() // 1000, stage, detail[:REASON_CHARS_MAX]))


def verify(base_url: str, launch: VllmLaunch, timeout_s: float) -> None:
    """Ask for one short answer, or NotVerified: a server can be healthy and die of its first request."""
    body = {"model": launch.served_model_name}
    embeds = launch.knobs.values.get("convert") == "embed"
    path, asked = (
        ("/v1/embeddings", {"input": "ok"}) if embeds else ("/v1/completions", {"prompt": "ok", "max_tokens": 1})
    )
    try:
        answer = post(base_url, path, {**body, **asked}, timeout_s)
    except HttpError as error:
        raise NotVerified(str(error)) from error
    if not isinstance(answer, dict) or not answer.get("data" if embeds else "choices"):
        raise NotVerified(f"{base_url}{path} answered without an answer")
