"""A bundle compiled once by regopy, and asked in this process: which is one of its own, because regopy can end it."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from regopy import Interpreter, LogLevel, RegoError

from policy.bundle import Bundle, Module
from policy.frames import value_of
from policy.lint import problems, rule_lines, unknown_names
from policy.native import Session
from policy.needs import Needs, narrowed, needs
from policy.port import ADMISSION, ENTRIES, BundleError, Document
from policy.reach import reachable

_PARSE_ERROR = re.compile(r"\(error \d+:(?P<file>[^|]*)\|(?P<offset>\d+)\|\d+\s*\(errormsg \d+:(?P<message>[^)]*)\)")


class _Compiled(NamedTuple):
    """An entry point as the engine calls it, what it is compiled in, and what that reads of the input."""

    name: bytes
    session: Session
    needs: Needs | None


class BundleSession:
    """Evaluates the entry points of one bundle; one caller at a time, and an evaluation cannot be interrupted.

    Without `entries` these are the known ones that the bundle has rules for, and the admission is required: it is then
    compiled apart, of the modules that it reaches, because each further rule slows every evaluation. With `with_tests`
    the tests are compiled too. Raises BundleError with the file and line as far as they are known.
    """

    def __init__(self, bundle: Bundle, entries: Sequence[str] | None = None, *, with_tests: bool = False) -> None:
        modules = bundle.modules + bundle.tests if with_tests else bundle.modules
        self.revision = bundle.revision
        self._compiled: dict[str, _Compiled] = {}
        if entries is None:
            found = unknown_names(modules, bundle)
            if found:
                raise BundleError(*found[0])
            require_entry(bundle, ADMISSION)
            known = [entry for entry in ENTRIES if entry in rule_lines(bundle.modules)]
            self.entries = tuple(known)
            apart = reachable(modules, ADMISSION)
            rest = [entry for entry in known if entry != ADMISSION]
            if not rest and len(apart) < len(modules):
                rest = [ADMISSION]  # or else the mistakes in what nothing reaches would not be found
            self._compile(modules, bundle.data, rest)
            self._compile(apart, bundle.data, [ADMISSION])
        else:
            self.entries = tuple(entries)
            self._compile(modules, bundle.data, self.entries)

    def answer(self, entry: str, document: Document) -> bytes:
        """What `value_of` reads the value from; raises EvaluationError or one of its kinds."""
        compiled = self._compiled.get(entry)
        if compiled is None:
            return b"undefined"
        return compiled.session.answer(compiled.name, narrowed(document, compiled.needs))

    def evaluate(self, entry: str, document: Document) -> Any:
        """The value of an entry point for one input; raises EvaluationError or one of its kinds."""
        return value_of(self.answer(entry, document))

    def _compile(self, modules: Sequence[Module], data: dict[str, Any], entries: Sequence[str]) -> None:
        if entries:
            session, needed = _compiled(modules, data, entries), needs(modules)
            self._compiled |= {entry: _Compiled(entry.encode(), session, needed) for entry in entries}


def require_entry(bundle: Bundle, entry: str) -> None:
    """Raises BundleError where a bundle has no rule at an entry point, which the engine would answer as undefined."""
    if entry not in rule_lines(bundle.modules):
        raise BundleError(str(bundle.root), 0, f"no rule data.{entry.replace('/', '.')}")


def _compiled(modules: Sequence[Module], data: dict[str, Any], entries: Sequence[str]) -> Session:
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
