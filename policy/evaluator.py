"""The process that evaluates a bundle for a gateway: it compiles what it is sent, answers in order, and ends with it.

rego-cpp calls `abort` on a few shapes of Rego that it does not know, overruns its stack on others and cannot be
interrupted. In a process of their own these cost one evaluation; in the gateway's they would end every request.
"""

import os
import resource
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from policy import tables
from policy.bundle import assemble
from policy.frames import answered, asked, failed, packed, received
from policy.port import BundleError, EvaluationError
from policy.session import BundleSession

# The engine reserves more address space than any limit could allow; what can be said is who goes first without memory.
_OOM_SCORE = "900"


def main(descriptor: int) -> None:
    """Serve on an open socket until the other side closes it."""
    # A whole group may be told to stop, and the gateway then still drains, or to reload, which is the gateway's to do.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    sock = socket.socket(fileno=descriptor)
    threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
    stream = sock.makefile("rb")
    session = _built(sock, stream)
    while session is not None:
        frame = received(stream)
        if frame is None:
            return
        sock.sendall(_answer(session, *asked(frame)))


def _end_with(sock: socket.socket) -> None:
    """End this process as soon as nobody is at the other side, even in an evaluation that never ends."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    poll.poll()
    os._exit(0)


def _built(sock: socket.socket, stream: BinaryIO) -> BundleSession | None:
    task = _table(received(stream))
    contents = {name: received(stream) or b"" for name in task["files"]}
    try:
        bundle = assemble(task["root"], contents)
        tables.require(contents, bundle.data)
        session = BundleSession(bundle, task["entries"], with_tests=task["with_tests"])
    except BundleError as error:
        sock.sendall(packed(orjson.dumps({"mistake": [error.file, error.line, error.message]})))
        return None
    sock.sendall(packed(orjson.dumps({"revision": session.revision, "entries": session.entries})))
    return session


def _table(frame: bytes | None) -> dict[str, Any]:
    if frame is None:
        sys.exit(0)
    task: dict[str, Any] = orjson.loads(frame)
    return task


def _answer(session: BundleSession, entry: str, input_json: bytes) -> bytes:
    try:
        return answered(session.answer(entry, orjson.loads(input_json)))
    except EvaluationError as error:
        return failed(error)
    except ValueError as error:
        return failed(EvaluationError(f"the input is not JSON: {error}"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
