"""The process that makes the checks which take a processor: it answers one job after another.

A regular expression that backtracks for ever cannot be interrupted by Python, so each job begins with an alarm whose
signal ends the process. Libraries are imported by the first job that needs them.
"""

import resource
import signal
import socket
import sys
from importlib import import_module
from typing import Any

import orjson

from policy.checks import port
from policy.checks.port import Finding, SchemaRefused, Text
from policy.frames import packed, received

MEMORY_BYTES_MAX = 4 * 1024**3


def main(descriptor: int) -> None:
    """Serve on an open socket until the other side closes it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a whole group may be told to stop, and the gateway then still drains
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    sock = socket.socket(fileno=descriptor)
    frames = sock.makefile("rb")
    while (frame := received(frames)) is not None:
        job = orjson.loads(frame)
        signal.setitimer(signal.ITIMER_REAL, job["alarm_s"])
        answer = packed(orjson.dumps(_answer(job)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sock.sendall(answer)


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"findings": [list(finding) for finding in _findings(job)]}
    except SchemaRefused as refused:
        return {"refused": str(refused)}
    except ImportError as error:
        return {"missing": error.name or "a library"}
    except Exception as error:  # noqa: BLE001  whatever a library raises on some text, the check has failed
        return {"failed": type(error).__name__}


def _findings(job: dict[str, Any]) -> list[Finding]:
    check, given = job["check"], job["given"]
    module: Any = import_module(_MODULES[check])
    if check == port.SECRETS:
        found = module.find([Text(*each) for each in given["texts"]])
    elif check == port.PII:
        found = module.find([Text(*each) for each in given["texts"]], tuple(given["entities"]), given["score_min"])
    elif check == port.TOOL_CALLS:
        found = module.find(given["calls"], given["offered"])
    else:
        found = [each for where, text in given["texts"] for each in _conforming(module, text, given["schema"], where)]
    return list(found)


def _conforming(module: Any, text: str | None, schema: Any, where: str) -> list[Finding]:
    """Findings of one text; without a text the schema itself is tried."""
    if text is None:
        module.validator(schema)
        return []
    return list(module.nonconformities(text, schema, where))


_MODULES = {
    port.SECRETS: "policy.checks.secrets",
    port.PII: "policy.checks.pii",
    port.JSON_SCHEMA: "policy.checks.json_schema",
    port.TOOL_CALLS: "policy.checks.tool_calls",
}


if __name__ == "__main__":
    main(int(sys.argv[1]))
