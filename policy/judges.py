"""Judges: child processes that decide recorded inputs again, as many at once as there are cores.

What ends or stalls a process costs its one input, which fails; the next process goes on behind it.
"""

import os
import queue
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import orjson

from policy.backtest import Case, Ruling, ruling_of
from policy.bundle import assemble, files_of
from policy.child import Child, Outcome
from policy.needs import narrowed, needs
from policy.port import ADMISSION, BundleError, EngineAway, EvaluationError, canonical

ANSWER_S = 5.0
ENDS_MAX = 20
KNOWN_MAX = 10_000
KNOWN_BYTES_MAX = 32 * 1024 * 1024
SLICE = 256
# As many as a child may have been sent ahead of the answer that it owes: one of these has ended it.
_SUSPECTS = 64


class Judged(NamedTuple):
    """A case with the ruling before and the one after."""

    case: Case
    before: Ruling
    after: Ruling


class Judge:
    """Decides admissions by one bundle in one child process; not for several threads at once.

    Inputs that differ only in what the bundle does not read are mostly decided once. Raises BundleError where it
    cannot serve, or ends its process on more than twenty inputs.
    """

    def __init__(self, files: Mapping[str, bytes], root: Path | str, answer_s: float = ANSWER_S) -> None:
        self._files = files
        self._root = root
        self._answer_s = answer_s
        self._needs = needs(assemble(root, files).modules)
        self._child = Child.start(files, root)
        self._known: dict[bytes, Ruling] = {}
        self._known_bytes = 0
        self._ends = 0
        self.revision = self._child.revision

    def rulings(self, inputs: Sequence[bytes]) -> list[Ruling]:
        """The ruling on each input, in their order."""
        read = [self._read(input_json) for input_json in inputs]
        known = self._known
        anew = list(dict.fromkeys(each for each in read if each not in known))
        known.update(zip(anew, self._anew(anew), strict=True))
        self._known_bytes += sum(map(len, anew))
        found = [known[each] for each in read]
        if len(known) > KNOWN_MAX or self._known_bytes > KNOWN_BYTES_MAX:
            known.clear()
            self._known_bytes = 0
        return found

    def _read(self, input_json: bytes) -> bytes:
        """What the bundle reads of an input, as JSON; the whole where it is no object."""
        try:
            document = orjson.loads(input_json)
        except ValueError:
            return input_json
        return canonical(narrowed(document, self._needs)) if isinstance(document, dict) else input_json

    def _anew(self, inputs: Sequence[bytes]) -> Iterator[Ruling]:
        done = 0
        while done < len(inputs):
            try:
                for outcome in self._child.outcomes(ADMISSION, inputs[done:], self._answer_s):
                    done += 1
                    yield ruling_of(outcome)
            except EngineAway:
                self._child = Child.start(self._files, self._root)
                for input_json in inputs[done : done + _SUSPECTS]:
                    done += 1
                    yield ruling_of(self._alone(input_json))

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _alone(self, input_json: bytes) -> Outcome:
        """The outcome of one input that may end the process."""
        try:
            return Outcome(self._child.evaluate(ADMISSION, input_json, self._answer_s))
        except EvaluationError as error:
            if self._child.process.returncode is None and not isinstance(error, EngineAway):
                return Outcome(None, str(error))
            self._ends += 1
            if self._ends > ENDS_MAX:
                raise BundleError(
                    str(self._root), 0, f"ends the engine on more than {ENDS_MAX} inputs: {error}"
                ) from error
            self._child = Child.start(self._files, self._root)
            return Outcome(None, str(error))


class Judges:
    """Decides cases by a new bundle, and by an old one where their recorded rulings are not to count.

    `slice_max` cases go to a process at once; at most twice as many slices as there are processes are under way.
    """

    def __init__(self, new: Path, old: Path | None = None, processes: int | None = None) -> None:
        self._pairs: queue.SimpleQueue[tuple[Judge, Judge | None]] = queue.SimpleQueue()
        self._processes = processes or os.cpu_count() or 1
        self._owned = ExitStack()
        try:
            self.revision, self.old_revision = self._start(new, old)
        except BaseException:
            self._owned.close()
            raise

    def judged(self, cases: Iterable[Case], slice_max: int = SLICE) -> Iterator[list[Judged]]:
        """The cases with both rulings, slice by slice and in their order; BundleError."""
        under_way: deque[Future[list[Judged]]] = deque()
        with ThreadPoolExecutor(self._processes, thread_name_prefix="judge") as threads:
            try:
                for each in _sliced(cases, slice_max):
                    under_way.append(threads.submit(self._judge, each))
                    if len(under_way) > 2 * self._processes:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End the processes."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, new: Path, old: Path | None) -> tuple[str, str]:
        new_files, old_files = files_of(new), files_of(old) if old is not None else None
        revisions = ("", "")
        for _ in range(self._processes):
            judge = self._judge_of(new_files, new)
            other = self._judge_of(old_files, old) if old_files is not None and old is not None else None
            self._pairs.put((judge, other))
            revisions = judge.revision, other.revision if other is not None else ""
        return revisions

    def _judge_of(self, files: Mapping[str, bytes], root: Path) -> Judge:
        judge = Judge(files, root)
        self._owned.callback(judge.close)
        return judge

    def _judge(self, cases: list[Case]) -> list[Judged]:
        pair = self._pairs.get()
        try:
            judge, other = pair
            inputs = [case.input_json for case in cases]
            before = other.rulings(inputs) if other is not None else [case.ruling for case in cases]
            return list(map(Judged, cases, before, judge.rulings(inputs)))
        finally:
            self._pairs.put(pair)


def _sliced(cases: Iterable[Case], slice_max: int) -> Iterator[list[Case]]:
    current: list[Case] = []
    for case in cases:
        current.append(case)
        if len(current) >= slice_max:
            yield current
            current = []
    if current:
        yield current
