"""The embedded engine: a bundle compiled once by regopy and evaluated in this process."""

import re
import threading
from collections.abc import Sequence
from typing import Any

import orjson
from regopy import Interpreter, LogLevel, RegoError

from policy.bundle import Bundle, Module
from policy.lint import problems, rule_lines
from policy.native import Session
from policy.needs import narrowed, needs
from policy.port import ADMISSION, BundleError, Document, MalformedDecision

_PARSE_ERROR = re.compile(r"\(error \d+:(?P<file>[^|]*)\|(?P<offset>\d+)\|\d+\s*\(errormsg \d+:(?P<message>[^)]*)\)")


class EmbeddedEngine:
    """Evaluates one entry point of a bundle in process; threads may share it, and take turns.

    Building raises BundleError with the file and line as far as they are known; a bundle from outside is tried out in
    another process first (`policy.child`). An evaluation cannot be interrupted.
    """

    def __init__(self, bundle: Bundle, entry: str = ADMISSION) -> None:
        require_entry(bundle, entry)
        self.revision = bundle.revision
        self._session = compile_session(bundle.modules, bundle.data, (entry,))
        self._entry = entry.encode()
        self._needs = needs(bundle.modules)
        self._turn = threading.Lock()

    def evaluate(self, document: Document) -> Document:
        """The raw decision for one input; raises EvaluationError, Undefined or MalformedDecision."""
        needed = narrowed(document, self._needs)
        with self._turn:
            value = self._session.evaluate(self._entry, needed)
        if not isinstance(value, dict):
            raise MalformedDecision(f"the decision is a {type(value).__name__}, not an object")
        return value


def require_entry(bundle: Bundle, entry: str) -> None:
    """Raises BundleError where a bundle has no rule at an entry point, which the engine would answer as undefined."""
    if entry not in rule_lines(bundle.modules):
        raise BundleError(str(bundle.root), 0, f"no rule data.{entry.replace('/', '.')}")


def compile_session(modules: Sequence[Module], data: dict[str, Any], entries: Sequence[str]) -> Session:
    """Compiles modules and tables for the entry points; raises BundleError at the first mistake."""
    interpreter = Interpreter()
    interpreter.log_level = LogLevel.NONE
    interpreter.strict_built_in_errors = True
    found = problems(modules, interpreter.is_builtin)
    if found:
        raise BundleError(*found[0])
    for module in modules:
        try:
            interpreter.add_module(module.file, module.text)
        except RegoError as error:
            raise _bundle_error(error, modules, module.file) from error
    try:
        # The engine compares strings by their JSON text, so tables and inputs must be written by the same encoder.
        interpreter.add_data_json(orjson.dumps(data).decode())
        compiled = interpreter.build(None, entries)
    except RegoError as error:
        raise _bundle_error(error, modules, modules[0].file) from error
    if not compiled.ok():
        raise BundleError(modules[0].file, 0, "the bundle does not compile")
    return Session(interpreter, compiled)


def _bundle_error(error: RegoError, modules: Sequence[Module], file: str) -> BundleError:
    """regopy's error with the byte offset that it prints turned into a line."""
    texts = {module.file: module.text.encode() for module in modules}
    match = _PARSE_ERROR.search(str(error))
    if match is None or match["file"] not in texts:
        return BundleError(file, 0, " ".join(str(error).split())[:500])
    line = texts[match["file"]][: int(match["offset"])].count(b"\n") + 1
    return BundleError(match["file"], line, match["message"].strip())
