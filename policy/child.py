"""Tries a bundle out in another process first, because the embedded engine ends its own on some mistakes.

rego-cpp calls `abort` on a few shapes of Rego that it does not know and overruns its stack on others. In a process of
their own these are a BundleError; in the gateway's they would end every request in flight.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from policy.bundle import Module
from policy.embedded import compile_session
from policy.port import BundleError, EvaluationError

TIMEOUT_S = 30

_IMPORTS_FROM = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    """What one entry point answered to an empty input: its value, or why it has none."""

    value: Any
    failure: str


def try_out(modules: Sequence[Module], data: dict[str, Any], entries: Sequence[str]) -> list[Outcome]:
    """The outcome of each entry point; raises BundleError where the bundle does not compile, crashes or hangs."""
    task = {"modules": [[module.file, module.text] for module in modules], "data": data, "entries": list(entries)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "policy.child"],
            input=orjson.dumps(task),
            capture_output=True,
            cwd=_IMPORTS_FROM,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(modules[0].file, 0, f"the engine did not end within {TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise BundleError(modules[0].file, 0, f"the engine ended with {done.returncode} on this bundle: {said}")
    answer = orjson.loads(done.stdout)
    if "mistake" in answer:
        raise BundleError(*answer["mistake"])
    return [Outcome(*outcome) for outcome in answer["outcomes"]]


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    modules = [Module(file, text) for file, text in task["modules"]]
    try:
        session = compile_session(modules, task["data"], task["entries"])
    except BundleError as error:
        return {"mistake": [error.file, error.line, error.message]}
    return {"outcomes": [list(_outcome(session, entry)) for entry in task["entries"]]}


def _outcome(session: Any, entry: str) -> Outcome:
    try:
        return Outcome(session.evaluate(entry.encode(), {}), "")
    except EvaluationError as error:
        return Outcome(None, str(error))


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(_answer(orjson.loads(sys.stdin.buffer.read()))))
