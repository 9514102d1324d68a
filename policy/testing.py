"""Runs a bundle's Rego tests and checks, on the embedded engine and on OPA where its binary is present."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
from regopy import Interpreter

from policy.bundle import Bundle, Module, assemble, files_of
from policy.child import Child
from policy.lint import Problem, problems, rule_lines, unknown_names
from policy.port import ADMISSION, BundleError, EngineAway
from policy.session import require_entry
from policy.source import references, statements

EMBEDDED = "embedded"
OPA = "opa"
OPA_TIMEOUT_S = 60
SCHEMAS = "schemas"

_PREFIX = "test_"
_INPUT_TABLE = "input_of_the_test"


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one Rego test ended on one engine; `line` is 0 where the engine does not say."""

    __test__: ClassVar[bool] = False

    name: str
    passed: bool
    file: str
    line: int
    message: str
    engine: str


def find_opa() -> str | None:
    """The path of an `opa` binary, if there is one."""
    return shutil.which("opa")


def run_tests(root: Path | str, opa: str | None = None) -> list[TestResult]:
    """The results of every `test_` rule, embedded first; `opa` names OPA's binary, by default the one found on PATH.

    Raises BundleError where the bundle or its tests do not compile.
    """
    files = files_of(root)
    results = list(_embedded_results(assemble(root, files), files))
    binary = opa or find_opa()
    return results + _opa_results(binary, root) if binary else results


def check(root: Path | str, opa: str | None = None) -> list[Problem]:
    """Every mistake found in a bundle and its tests without deciding anything; empty when it can serve."""
    try:
        files = files_of(root)
        bundle = assemble(root, files)
        modules = bundle.modules + bundle.tests
        found = problems(modules, Interpreter().is_builtin) + unknown_names(modules, bundle)
        if not found:
            require_entry(bundle, ADMISSION)
            Child.start(files, root).close()
            if _test_paths(bundle.tests):
                _with_tests(bundle, files).close()
    except BundleError as error:
        return [Problem(error.file, error.line, error.message)]
    binary = opa or find_opa()
    return found + _opa_problems(binary, root) if binary else found


def _test_paths(tests: Sequence[Module]) -> tuple[str, ...]:
    return tuple(path for path in rule_lines(tests) if path.rpartition("/")[2].startswith(_PREFIX))


def _embedded_results(bundle: Bundle, files: Mapping[str, bytes]) -> Iterator[TestResult]:
    paths = _test_paths(bundle.tests)
    if not paths:
        return
    lines = rule_lines(bundle.tests)
    try:
        with _with_tests(bundle, files) as child:
            outcomes = [next(child.outcomes(path, (b"{}",))) for path in paths]
    except EngineAway as error:
        raise BundleError(str(bundle.root), 0, f"a test ends the engine: {error}") from error
    for path, outcome in zip(paths, outcomes, strict=True):
        passed = outcome.value is True
        message = "" if passed else outcome.failure or f"is {outcome.value!r:.100}, not true"
        yield TestResult(_dotted(path), passed, *lines[path], message, EMBEDDED)


def _with_tests(bundle: Bundle, files: Mapping[str, bytes]) -> Child:
    """A process with the bundle and its tests compiled; raises BundleError where they do not compile."""
    rewritten = {module.file: _with_input_as_table(module).encode() for module in bundle.modules + bundle.tests}
    tried = {**files, **rewritten, f"{_INPUT_TABLE}/data.json": b"{}"}
    return Child.start(tried, bundle.root, entries=_test_paths(bundle.tests), with_tests=True)


def _with_input_as_table(module: Module) -> str:
    """The module with `input` read from a table: rego-cpp aborts on `with input as`, and not on `with data.x as`."""
    lines = module.text.split("\n")
    inputs = [
        statement[reference.at]
        for statement in statements(module.file, module.text)
        for reference in references(statement)
        if reference.path[0] == "input"
    ]
    for token in reversed(inputs):
        line, start = lines[token.line - 1], token.column - 1
        lines[token.line - 1] = f"{line[:start]}data.{_INPUT_TABLE}{line[start + len(token.text) :]}"
    return "\n".join(lines)


def _dotted(path: str) -> str:
    return "data." + path.replace("/", ".")


def _opa(binary: str, *arguments: str) -> Any:
    """What OPA answered as JSON; raises BundleError where it answered anything else."""
    try:
        done = subprocess.run([binary, *arguments], capture_output=True, timeout=OPA_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(binary, 0, f"cannot be run: {error}") from error
    text = done.stdout.strip() or done.stderr.strip()
    try:
        return orjson.loads(text or b"null")
    except ValueError as error:
        raise BundleError(binary, 0, text.decode(errors="replace")[:500]) from error


def _opa_results(binary: str, root: Path | str) -> list[TestResult]:
    answer = _opa(binary, "test", "--bundle", "--format", "json", str(root))
    if isinstance(answer, dict):
        raise BundleError(*_opa_errors(answer)[0])
    return [_opa_result(item, Path(root)) for item in answer or ()]


def _opa_result(item: dict[str, Any], root: Path) -> TestResult:
    location = item.get("location") or {}
    problem = item.get("error") or ("not true" if item.get("fail") else "")
    message = problem if isinstance(problem, str) else str(problem.get("message", problem))
    return TestResult(
        f"{item['package']}.{item['name']}",
        not message and not item.get("skip"),
        _relative(str(location.get("file", "")), root),
        int(location.get("row", 0)),
        message,
        OPA,
    )


def _opa_problems(binary: str, root: Path | str) -> list[Problem]:
    try:
        answer = _opa(binary, "check", "--bundle", "--strict", *_schemas(root), "--format", "json", str(root))
    except BundleError as error:
        return [Problem(error.file, error.line, error.message)]
    found = _opa_errors(answer) if answer else []
    return [problem._replace(file=_relative(problem.file, Path(root))) for problem in found]


def _schemas(root: Path | str) -> list[str]:
    """What has OPA hold the inputs to the schemas that a bundle brings; its annotations name them."""
    folder = Path(root, SCHEMAS)
    return ["--schema", str(folder)] if folder.is_dir() else []


def _opa_errors(answer: dict[str, Any]) -> list[Problem]:
    errors = answer.get("errors") or [{"message": f"OPA answered {str(answer)[:200]}"}]
    return [_opa_problem(error, error.get("location") or {}) for error in errors]


def _opa_problem(error: dict[str, Any], location: dict[str, Any]) -> Problem:
    return Problem(str(location.get("file", OPA)), int(location.get("row", 0)), str(error.get("message", "")))


def _relative(file: str, root: Path) -> str:
    """A file as the bundle names it; OPA prints the path that it opened."""
    for base in (str(root), str(root.resolve())):
        for prefix in (base, base.lstrip("/")):
            if file.startswith(prefix + "/"):
                return file[len(prefix) + 1 :]
    return file
