"""Discrete-event simulation: a workload replayed over the replicas of a deployment, in simulated time."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from runtime.sim.content import BlockMap
from runtime.sim.deployment import Deployment
from runtime.sim.invariants import RequestsLost
from runtime.sim.recorder import NOT_ROUTED, PENDING, Recorder
from runtime.sim.replica import NEVER_US, Replica
from runtime.sim.run import Run
from runtime.sim.witness import Witness
from runtime.workload.port import Arrival, Workload, WorkloadError

READ_AHEAD: Final = 8_192
"""Requests that are read before they come, so that those which follow another are known when that one ends."""


def simulate(workload: Workload, deployment: Deployment, *, jumping: bool = True) -> Run:
    """Replay a workload to its end and return what happened; the same for the same arguments, byte by byte.

    Without `jumping` each step is computed by itself: slower, and the same but for the rows of `steps`. Raises
    WorkloadError for a workload that cannot be replayed, InvariantViolated where the simulator is at fault.
    """
    return _Simulation(workload, deployment, jumping=jumping).run()


class _Simulation:
    """The events of one run in the order of time: requests that come, and replicas that compute."""

    def __init__(self, workload: Workload, deployment: Deployment, *, jumping: bool) -> None:
        self._workload = workload
        self._deployment = deployment
        self._jumping = jumping
        self._recorder = Recorder()
        block_map = None
        if deployment.engine.enable_prefix_caching:
            block_map = BlockMap(workload.block_tokens, deployment.engine.block_size)
        self._replicas = [
            Replica(index, deployment, block_map, Witness(workload.block_tokens), self._recorder, self._ended)
            for index in range(deployment.replicas)
        ]
        self._routing = None if deployment.routing is None else deployment.routing()
        self._unread: Iterator[Arrival] = iter(workload)
        self._all_read = False
        self._coming: deque[tuple[int, int, Arrival]] = deque()
        self._due: list[tuple[int, int, Arrival]] = []
        self._followers: dict[int, list[tuple[int, Arrival]]] = {}
        self._pause_us_min = NEVER_US
        self._now_us = 0

    def run(self) -> Run:
        """Everything, to the end."""
        self._read()
        while True:
            arrival_us = self._next_arrival_us()
            replica = min(self._replicas, key=_next_us)
            if replica.next_us < arrival_us:
                replica.advance(self._until_us(replica, arrival_us), jumping=self._jumping)
            elif arrival_us < NEVER_US:
                self._arrive()
            else:
                break
        for replica in self._replicas:
            replica.close()
        if self._followers or PENDING in self._recorder.requests["status"]:
            raise RequestsLost("requests are left that neither finished nor were refused")
        return Run.of(self._workload.name, self._deployment, self._recorder)

    def _until_us(self, replica: Replica, arrival_us: int) -> int:
        """How far a replica may compute before anything that others do can reach it."""
        if not self._followers or len(self._replicas) == 1:
            return arrival_us
        # What ends elsewhere brings its followers, after a pause at least.
        others_us = min(other.next_end_us for other in self._replicas if other is not replica)
        return min(arrival_us, others_us + self._pause_us_min)

    def _next_arrival_us(self) -> int:
        due_us = self._due[0][0] if self._due else NEVER_US
        return min(due_us, self._coming[0][0]) if self._coming else due_us

    def _arrive(self) -> None:
        """Let the next request come, and read on when few are left that are known."""
        if self._due and (not self._coming or self._due[0][:2] < self._coming[0][:2]):
            self._now_us, index, arrival = heappop(self._due)
        else:
            self._now_us, index, arrival = self._coming.popleft()
            if len(self._coming) < READ_AHEAD // 2:
                self._read()
        columns = self._recorder.requests
        columns["arrival_us"][index] = self._now_us
        chosen = 0
        if self._routing is not None:
            loads = [replica.load(self._now_us) for replica in self._replicas]
            chosen = self._routing.choose(loads, arrival.blocks)
        if chosen < 0:
            self._recorder.refuse(index, NOT_ROUTED)
            self._ended(index, self._now_us)
        else:
            self._replicas[chosen].accept(index, arrival, self._now_us)

    def _read(self) -> None:
        while not self._all_read and len(self._coming) < READ_AHEAD:
            arrival = next(self._unread, None)
            if arrival is None:
                self._all_read = True
                return
            index = self._recorder.add_request(arrival.prompt_tokens, arrival.output_tokens)
            self._recorder.has_blocks |= bool(arrival.blocks)
            if arrival.prompt_tokens < 1 or arrival.output_tokens < 0 or arrival.at_us < 0 or arrival.after >= index:
                raise WorkloadError(f"{self._workload.name}: request {index} cannot be: {arrival}"[:500])
            if arrival.after >= 0:
                self._follow(index, arrival)
            else:
                if self._coming and arrival.at_us < self._coming[-1][0]:
                    raise WorkloadError(f"{self._workload.name}: request {index} comes before the one before it")
                self._coming.append((arrival.at_us, index, arrival))

    def _follow(self, index: int, arrival: Arrival) -> None:
        """A request that comes after another has ended: at once, if that is over by the time that it is read."""
        end_us = self._end_us(arrival.after)
        self._pause_us_min = min(self._pause_us_min, arrival.at_us)
        if end_us < 0:
            self._followers.setdefault(arrival.after, []).append((index, arrival))
        else:
            heappush(self._due, (max(end_us + arrival.at_us, self._now_us), index, arrival))

    def _end_us(self, index: int) -> int:
        """When a request ended, or was refused; -1 while it has not."""
        columns = self._recorder.requests
        if columns["status"][index] == PENDING:
            return -1
        return max(columns[name][index] for name in ("arrival_us", "queued_us", "end_us"))

    def _ended(self, index: int, end_us: int) -> None:
        for follower, arrival in self._followers.pop(index, ()):
            heappush(self._due, (end_us + arrival.at_us, follower, arrival))


def _next_us(replica: Replica) -> int:
    return replica.next_us
