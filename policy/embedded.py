"""The embedded engine: a bundle evaluated by a child process, which is ended where an evaluation takes too long."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self, TypeVar, cast

from policy.bundle import files_of
from policy.child import Child
from policy.frames import FRAME_BYTES_MAX, Frames, question, value_in
from policy.port import Answer, BundleError, EngineAway, EvaluationError, Unfinished

TIMEOUT_MS = 250
WAITING_MAX = 10_000
WAIT_S_MAX = 5.0
REFUSED_MAX = 1_000
REFUSED_S = 60.0
INPUT_BYTES_MAX = FRAME_BYTES_MAX // 2
RESTART_S = 0.1
RESTART_S_MAX = 30.0

# A stalled event loop sees its timers before the answers that came meanwhile: they are looked at once more.
_GRACE_S = 0.005
# How often those that wait behind a long evaluation, or for a new process, are told that they have waited too long.
_LOOK_S = 0.05
# Why there may be none now and one later: no memory, process or thread is to be had.
_SHORT = (BundleError, OSError, RuntimeError, MemoryError)
_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Question:
    entry: str
    input_json: bytes
    answer: asyncio.Future[bytes]
    until_s: float
    was_lost: bool = False


@dataclass(slots=True)
class Counts:
    """What has happened to engines: processes started in place of others, and evaluations refused for their input."""

    restarts: int = 0
    refused: int = 0


class _Refused(NamedTuple):
    why: str
    until_s: float


class EmbeddedEngine:
    """Evaluates the entry points of one bundle in a child process, in the order asked; for one event loop.

    An evaluation that takes longer than `timeout_ms`, or that ends the process twice, fails and is refused for a
    minute; a new process goes on with those that waited behind it. It may have been the machine that was slow, so it is
    tried again then. `on_loss` is told why a process is replaced, and `counts`, which engines may share, how often.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        root: Path | str,
        child: Child,
        timeout_ms: int,
        counts: Counts | None = None,
    ) -> None:
        self._files = files
        self._root = root
        self._child = child
        self.timeout_ms = timeout_ms
        self._timeout_s = timeout_ms / 1000
        self._waiting: deque[_Question] = deque()
        # By the digest of the input, which may be long.
        self._refused: dict[tuple[str, bytes], _Refused] = {}
        self._link: _Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first_since_s = 0.0
        self._given_up_s = 0.0
        self._restarting: asyncio.Task[None] | None = None
        self._is_closed = False
        self.on_loss: Callable[[str], None] | None = None
        self.counts = Counts() if counts is None else counts

    @classmethod
    async def open(cls, root: Path | str, timeout_ms: int = TIMEOUT_MS, counts: Counts | None = None) -> Self:
        """The engine over the bundle in a folder; raises BundleError where that cannot serve."""
        files = await asyncio.to_thread(files_of, root)
        engine = cls(files, root, await _started(files, root), timeout_ms, counts)
        await engine._connect()
        return engine

    @property
    def revision(self) -> str:
        """The digest of the bundle, `sha256:` and 64 hexadecimal digits."""
        return self._child.revision

    @property
    def entries(self) -> tuple[str, ...]:
        """The entry points that the bundle has rules for."""
        return self._child.entries

    @property
    def away_since_s(self) -> float | None:
        """None: the bundle is this engine's own, also while a process starts again."""
        return None

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        """What an entry point is worth for one input; raises EvaluationError or one of its kinds."""
        loop = asyncio.get_running_loop()
        if self._refused:
            self._check(entry, input_json, loop.time())
        if len(input_json) > INPUT_BYTES_MAX:
            # What cannot be sent must not wait: it would be given the answer to what is asked next.
            raise EvaluationError(f"an input of {len(input_json)} bytes is larger than {INPUT_BYTES_MAX}")
        if self._is_closed or len(self._waiting) >= WAITING_MAX:
            raise EngineAway("the engine is closed" if self._is_closed else f"{WAITING_MAX} evaluations wait")
        asked = _Question(entry, input_json, loop.create_future(), loop.time() + WAIT_S_MAX)
        self._waiting.append(asked)
        if self._link is not None:
            self._link.ask(asked)
        if len(self._waiting) == 1:
            self._time()
        return Answer(value_in(await asked.answer), self.revision)

    async def close(self) -> None:
        """End the process; evaluations under way fail."""
        self._is_closed = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.close()
        await asyncio.to_thread(self._child.close)
        for each in self._waiting:
            _fail(each, EngineAway("the engine is closed"))
        self._waiting.clear()

    async def _connect(self) -> None:
        self._child.sock.settimeout(0)
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_unix_connection(lambda: _Link(self), sock=self._child.sock)
        for each in self._waiting:
            self._link.ask(each)
        self._time()

    def answered(self, frame: bytes) -> None:
        """Take the answer to the question that waits longest."""
        if not self._waiting:
            return
        first = self._waiting.popleft()
        if not first.answer.done():
            first.answer.set_result(frame)
        self._time()

    def lost(self, link: "_Link") -> None:
        """The process has ended: a new one takes the questions that wait."""
        if self._is_closed or link is not self._link:
            return
        self._link = None
        self._restarting = asyncio.get_running_loop().create_task(self._restart(None))
        self._watch()

    def _time(self) -> None:
        """Give the first question its time, from now on."""
        self._first_since_s = asyncio.get_running_loop().time()
        self._watch()

    def _watch(self) -> None:
        """Look again when the first question has had its time, or has waited too long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            first = self._waiting[0]
            look_at_s = min(self._first_since_s + self._timeout_s, max(first.until_s, self._given_up_s))
            self._timer = asyncio.get_running_loop().call_at(look_at_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for each in self._waiting:
            if each.until_s > now_s:
                break
            # The answer, should it still come, is nobody's.
            _fail(each, EngineAway(f"the engine did not come to this evaluation within {WAIT_S_MAX:g} s"))
        self._given_up_s = now_s + _LOOK_S
        if self._link is not None and self._waiting and now_s - self._first_since_s >= self._timeout_s:
            self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._expire, self._waiting[0])
        else:
            self._first_since_s = now_s if self._link is None else self._first_since_s
            self._watch()

    def _expire(self, first: _Question) -> None:
        if self._link is None or not self._waiting or self._waiting[0] is not first:
            return
        link, self._link = self._link, None
        link.close()
        why = f"the evaluation did not end within {self.timeout_ms} ms"
        self._restarting = asyncio.get_running_loop().create_task(self._restart(why))
        self._watch()

    async def _restart(self, why: str | None) -> None:
        """Go on with a new process on the same files, however long it takes, without the question that is to blame."""
        ended = await _at_last(partial(asyncio.to_thread, self._child.ended))
        if self.on_loss is not None:
            self.on_loss(why or f"the engine {ended}")
        if self._waiting:
            first = self._waiting[0]
            if why is not None or first.was_lost:
                self._waiting.popleft()
                self._refuse(first, why or f"the engine {ended} on this input, twice")
            first.was_lost = True
        self._child = await _at_last(partial(_started, self._files, self._root))
        self.counts.restarts += 1
        await self._connect()

    def _check(self, entry: str, input_json: bytes, now_s: float) -> None:
        """Raises Unfinished for an input that is refused, and forgets those that are so no longer."""
        while self._refused and (oldest := next(iter(self._refused.items())))[1].until_s <= now_s:
            del self._refused[oldest[0]]
        refused = self._refused.get(_key(entry, input_json))
        if refused is not None:
            self.counts.refused += 1
            raise Unfinished(refused.why)

    def _refuse(self, question: _Question, why: str) -> None:
        self.counts.refused += 1
        key = _key(question.entry, question.input_json)
        self._refused.pop(key, None)
        while len(self._refused) >= REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        until_s = asyncio.get_running_loop().time() + REFUSED_S
        self._refused[key] = _Refused(why, until_s)
        _fail(question, Unfinished(why))


def _key(entry: str, input_json: bytes) -> tuple[str, bytes]:
    return entry, hashlib.sha256(input_json).digest()


async def _started(files: Mapping[str, bytes], root: Path | str) -> Child:
    """A process on these files, started in a thread; ended where nobody waits for it any more when it has started."""
    starting = asyncio.ensure_future(asyncio.to_thread(Child.start, files, root))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(*_SHORT):
            await asyncio.to_thread((await starting).close)
        raise


async def _at_last(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """What comes of it, tried again as long as that is short of something."""
    wait_s = RESTART_S
    while True:
        try:
            return await work()
        except _SHORT:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RESTART_S_MAX)


def _fail(question: _Question, error: EvaluationError) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)


class _Link(asyncio.Protocol):
    """The socket to a child."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derive from none of asyncio's

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._engine.answered(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.lost(self)

    def ask(self, asked: _Question) -> None:
        assert self._transport is not None
        self._transport.write(question(asked.entry, asked.input_json))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
