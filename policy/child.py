"""A child process that evaluates one bundle: started, asked one question after another, and ended."""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import orjson

from policy.bundle import files_of
from policy.frames import packed, question, received, value_in
from policy.port import BundleError, EngineAway, EvaluationError, Unfinished

START_S = 30.0
ANSWER_S = 30.0

_IMPORTS_FROM = Path(__file__).resolve().parent.parent
# What a policy may not read, its process is not given.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# As much as the socket holds in both directions, or each side would wait for the other one to read.
_SENT_AHEAD_BYTES_MAX = 32 * 1024
_SENT_AHEAD_MAX = 64


class Outcome(NamedTuple):
    """What one entry point answered to one input: its value, or why it has none."""

    value: Any
    failure: str = ""


class Child:
    """The process and the socket to it; not for several threads at once.

    `revision` names the bundle it evaluates, and `entries` are the entry points that this has rules for.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self._stream: BinaryIO = sock.makefile("rb")
        self.said = ""
        self.revision = ""
        self.entries: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path | str) -> Self:
        """Start on the bundle in a folder; raises BundleError."""
        return cls.start(files_of(root), root)

    @classmethod
    def start(
        cls,
        files: Mapping[str, bytes],
        root: Path | str,
        *,
        entries: Sequence[str] | None = None,
        with_tests: bool = False,
        timeout_s: float = START_S,
    ) -> Self:
        """Compile the files of a bundle in a new process; raises BundleError where it does not compile, ends or hangs.

        `entries` are the known entry points unless they are named.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _process(theirs)
            except OSError as error:
                ours.close()
                raise BundleError(str(root), 0, f"no process can be started for it: {error}") from error
        child = cls(process, ours)
        try:
            child._begin(files, str(root), entries, with_tests, timeout_s)
        except BaseException:
            child.close()
            raise
        return child

    def evaluate(self, entry: str, input_json: bytes, timeout_s: float = ANSWER_S) -> Any:
        """The value of an entry point for one input; raises EvaluationError or one of its kinds."""
        self.sock.settimeout(timeout_s)
        try:
            self.sock.sendall(question(entry, input_json))
            frame = received(self._stream)
        except TimeoutError as error:
            self.close()
            raise Unfinished(f"the evaluation did not end within {timeout_s:g} s") from error
        except OSError as error:
            raise EngineAway(f"the engine {self.ended()}") from error
        if frame is None:
            raise EngineAway(f"the engine {self.ended()}")
        return value_in(frame)

    def outcomes(self, entry: str, inputs: Iterable[bytes], timeout_s: float = ANSWER_S) -> Iterator[Outcome]:
        """The outcome of each input in order; some are sent ahead of their turn. Raises EngineAway where it ends."""
        self.sock.settimeout(timeout_s)
        waiting: deque[int] = deque()
        ahead = 0
        for input_json in inputs:
            while waiting and (ahead + len(input_json) > _SENT_AHEAD_BYTES_MAX or len(waiting) >= _SENT_AHEAD_MAX):
                ahead -= waiting.popleft()
                yield self._next()
            self._send(question(entry, input_json))
            waiting.append(len(input_json))
            ahead += len(input_json)
        for _ in waiting:
            yield self._next()

    def ended(self) -> str:
        """End the process and say how it ended."""
        self.close()
        return f"ended with {self.process.returncode}{': ' if self.said else ''}{self.said}"

    def close(self) -> None:
        """End the process, whatever it does."""
        self._stream.close()
        self.sock.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        stderr = self.process.stderr
        if stderr is not None and not stderr.closed:
            self.said = stderr.read().decode(errors="replace").strip()[-500:]
            stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(
        self, files: Mapping[str, bytes], root: str, entries: Sequence[str] | None, with_tests: bool, timeout_s: float
    ) -> None:
        task = {"root": root, "files": list(files), "entries": entries, "with_tests": with_tests}
        self.sock.settimeout(timeout_s)
        try:
            self.sock.sendall(packed(orjson.dumps(task)))
            for content in files.values():
                self.sock.sendall(packed(content))
            frame = received(self._stream)
        except TimeoutError as error:
            raise BundleError(root, 0, f"the engine did not end within {timeout_s:g} s") from error
        except OSError:
            frame = None
        if frame is None:
            raise BundleError(root, 0, f"the engine {self.ended()} on this bundle")
        said = orjson.loads(frame)
        if "mistake" in said:
            raise BundleError(*said["mistake"])
        self.revision, self.entries = said["revision"], tuple(said["entries"])

    def _send(self, frame: bytes) -> None:
        try:
            self.sock.sendall(frame)
        except OSError as error:
            raise EngineAway(f"the engine {self.ended()}") from error

    def _next(self) -> Outcome:
        try:
            frame = received(self._stream)
        except OSError as error:
            raise EngineAway(f"the engine {self.ended()}") from error
        if frame is None:
            raise EngineAway(f"the engine {self.ended()}")
        try:
            return Outcome(value_in(frame))
        except EvaluationError as error:
            return Outcome(None, str(error))


def _process(sock: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "policy.evaluator", str(sock.fileno())],
        pass_fds=(sock.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=_IMPORTS_FROM,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )
