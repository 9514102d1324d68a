"""The other side of the process that makes checks: it is started when it is first needed, asked, and replaced.

One process makes one check at a time, so one that hangs delays the others by its timeout at most; then it is ended.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from policy.checks.port import BY_LINE, CheckFailed, Finding, SchemaRefused
from policy.frames import FRAME_BYTES_MAX, packed

START_S = 60.0
WAITING_MAX = 256
# The alarm in the process is for where nobody is left to end it.
_ALARM_AFTER_S = 5.0
_LENGTH_BYTES = 4
# The process, or what a check needs in it, cannot be had.
NOT_STARTED = "not_started"
_IMPORTS_FROM = Path(__file__).resolve().parents[2]
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# What makes a process import the libraries of a check: the smallest thing that it can be given.
_FIRST: dict[str, dict[str, Any]] = {
    "secrets": {"texts": [["", 1, "x"]]},
    "pii": {"texts": [["", 1, "x"]], "score_min": 1.0},
    "json_schema": {"texts": [["", None]], "schema": {}},
    "tool_calls": {"calls": [], "offered": {}},
}


class _Unread(CheckFailed):
    """The process ended before it had read all of what it was asked, so that is not what ended it."""


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ready: set[str]


class CheckProcess:
    """Makes checks in a process of its own, for one event loop; `close` it in the end.

    A check has `timeout_s` from its turn on and as long again to wait for it; importing what a check needs has
    `start_s`. At most `waiting_max` wait. One that its process did not come to read before it ended is made once more.
    """

    def __init__(
        self,
        timeout_s: float,
        pii_entities: Sequence[str],
        *,
        start_s: float = START_S,
        waiting_max: int = WAITING_MAX,
        command: Sequence[str] = (sys.executable, "-m", "policy.checks"),
    ) -> None:
        self.timeout_s = timeout_s
        self.start_s = start_s
        self.waiting_max = waiting_max
        self.waiting = 0
        self.ended = 0
        self._entities = list(pii_entities)
        self._command = list(command)
        self._running: _Running | None = None
        self._is_preparing = False
        self._is_closed = False
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def pid(self) -> int | None:
        """The process that is running now."""
        return None if self._running is None else self._running.process.pid

    async def find(self, check: str, given: dict[str, Any]) -> list[Finding]:
        """What a check finds; raises CheckFailed and SchemaRefused."""
        if self.waiting >= self.waiting_max:
            raise CheckFailed("busy", f"{self.waiting_max} checks are waiting already")
        self.waiting += 1
        try:
            await self._my_turn()
        finally:
            self.waiting -= 1
        # What has been asked is answered, also to nobody: the next one would read its answer.
        exchange = self._spawn(self._exchange(check, given))
        exchange.add_done_callback(lambda _: self._turn.release())
        return _read(await asyncio.shield(exchange))

    def warm(self, checks: Sequence[str]) -> None:
        """Have the libraries of these checks imported meanwhile."""
        ready = self._running.ready if self._running is not None else set()
        if not self._tasks and not ready.issuperset(checks):
            self._spawn(self._warm([check for check in checks if check not in ready]))

    async def close(self) -> None:
        """End the process, whatever it does; it makes no checks any more, for whoever still waits either."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()

    async def _my_turn(self) -> None:
        try:
            async with asyncio.timeout(self.timeout_s + (self.start_s if self._is_preparing else 0)):
                await self._turn.acquire()
        except TimeoutError:
            raise CheckFailed("busy", "other checks took too long") from None

    async def _warm(self, checks: list[str]) -> None:
        async with self._turn:
            for check in checks:
                with suppress(CheckFailed):
                    await self._prepare(check)

    async def _exchange(self, check: str, given: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._made(check, given)
        except _Unread:
            return await self._made(check, given)

    async def _made(self, check: str, given: dict[str, Any]) -> dict[str, Any]:
        running = await self._prepare(check)
        return await self._ask(running, check, given, self.timeout_s)

    async def _prepare(self, check: str) -> _Running:
        """A process that has what the check needs."""
        if self._is_closed:
            raise CheckFailed("busy", "the gateway is stopping")
        self._is_preparing = True
        try:
            return await self._prepared(check)
        except CheckFailed as failed:
            # It was given nothing of a request yet, so this is the fault of nobody who asks.
            raise type(failed)(NOT_STARTED, f"the check cannot be prepared: {failed}") from failed
        finally:
            self._is_preparing = False

    async def _prepared(self, check: str) -> _Running:
        running = self._running
        if running is not None and (running.process.poll() is not None or running.reader.at_eof()):
            await self._end()  # it died while it had nothing to do
            running = None
        if running is None:
            running = self._running = await self._start()
        if check not in running.ready:
            given = _FIRST[check] | ({"entities": self._entities} if check == "pii" else {})
            said = await self._ask(running, check, given, self.start_s)
            if "missing" not in said:
                _read(said)  # raises where it failed
                running.ready.add(check)
        return running

    async def _ask(self, running: _Running, check: str, given: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        job = orjson.dumps({"check": check, "given": given, "alarm_s": timeout_s + _ALARM_AFTER_S})
        if len(job) > FRAME_BYTES_MAX:
            raise CheckFailed("too_large", f"there is more to check than {FRAME_BYTES_MAX} bytes")
        try:
            async with asyncio.timeout(timeout_s):
                running.writer.write(packed(job))
                await running.writer.drain()
                length = int.from_bytes(await running.reader.readexactly(_LENGTH_BYTES), "big")
                said: dict[str, Any] = orjson.loads(await running.reader.readexactly(length))
                return said
        except TimeoutError:
            await self._end()
            raise CheckFailed("timeout", f"the check did not end within {timeout_s:g} s") from None
        except OSError:
            # A socket is reset where its other side is closed with something unread.
            await self._end()
            raise _Unread("crash", "the process that makes checks ended when it was asked") from None
        except (EOFError, ValueError):
            await self._end()
            raise CheckFailed("crash", "the process that makes checks ended") from None
        except asyncio.CancelledError:
            await self._end()
            raise

    async def _start(self) -> _Running:
        try:
            process, ours = self._launched()
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            raise CheckFailed(NOT_STARTED, f"the process that makes checks cannot be started: {error}") from error
        return _Running(process, reader, writer, set())

    def _launched(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The process, and our end of what it is asked over; OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=_IMPORTS_FROM,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                )
            except OSError:
                ours.close()
                raise
        return process, ours

    async def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self.ended += 1
            running.writer.close()
            running.process.kill()
            await asyncio.to_thread(running.process.wait)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it, or has left


class CheckProcesses:
    """Two processes: one for checks of texts, one for those by schemas, which a client can write to take for ever."""

    def __init__(self, texts: CheckProcess, schemas: CheckProcess) -> None:
        self._texts = texts
        self._schemas = schemas

    @property
    def ended(self) -> int:
        """How many processes were ended, or found dead."""
        return self._texts.ended + self._schemas.ended

    async def find(self, check: str, given: dict[str, Any]) -> list[Finding]:
        """What a check finds; raises CheckFailed and SchemaRefused."""
        return await (self._texts if check in BY_LINE else self._schemas).find(check, given)

    def warm(self, checks: Sequence[str]) -> None:
        """Have the libraries of these checks imported meanwhile."""
        self._texts.warm([check for check in checks if check in BY_LINE])
        self._schemas.warm([check for check in checks if check not in BY_LINE])

    async def close(self) -> None:
        """End both."""
        await self._texts.close()
        await self._schemas.close()


def _read(said: dict[str, Any]) -> list[Finding]:
    if "refused" in said:
        raise SchemaRefused(said["refused"])
    if "missing" in said:
        raise CheckFailed("library_missing", f"{said['missing']} is not installed: install the extra `verify`")
    if "failed" in said:
        raise CheckFailed("crash", f"the check ended in a {said['failed']}")
    return [Finding(kind, where) for kind, where in said["findings"]]
