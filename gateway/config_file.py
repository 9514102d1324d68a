"""The configuration file: read, overridden by the environment, checked as a whole, digested and compared."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config import Config
from gateway.config_overrides import Overrides, read_overrides
from gateway.config_values import SECRET_NAME
from gateway.config_yaml import BYTES_MAX, Document, Location, Mark, read_document
from gateway.consistency import inconsistencies, nearest

SECRET_HELP = "secrets never stand in the file: name an environment variable (…_env) or a file (…_file)"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: its place in the file (line 0 where it has none), the field, and what is wrong.

    `source` is the file or the environment variable that is at fault.
    """

    line: int
    column: int
    field: str
    message: str
    source: str = ""

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return f"{place} {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; every problem found is listed, one to a line. Safe to show."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration in effect: `digest` is the SHA-256 (hex) of its canonical JSON and `raw` the file's text."""

    config: Config
    digest: str
    path: Path
    raw: str


def load(path: Path | str, env: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.time) -> LoadedConfig:
    """The configuration in a file under an environment; ConfigError with every problem that was found.

    Problems of the whole (unknown names, folders that do not exist) are looked for once every value is right by itself.
    """
    file = Path(path)
    content = _read(file)
    document = read_document(content)
    overrides = read_overrides(env)
    report = _Report(file, document, overrides)
    unread = document.data is None and bool(document.faults)
    config = None if unread else _validated(overrides.lay_over(document.data or {}), report)
    report.add_faults()
    if config is not None:
        report.add_all(inconsistencies(config, clock()))
        report.add_all(_missing_files(config, file))
    if report.problems or config is None:
        raise ConfigError(sorted(report.problems, key=lambda problem: (problem.line, problem.column, problem.field)))
    return LoadedConfig(config, digest(config), file, content.decode())


def digest(config: Config) -> str:
    """The SHA-256 (hex) of the effective configuration as canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def diff(old: Config, new: Config) -> list[str]:
    """Dotted paths of what differs, list items by their id: `budgets.acme-day.limit`; empty when the digests agree."""
    return list(_changes(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError([Problem(0, 0, "", f"cannot be read: {reason}", str(path))]) from error
    if len(content) > BYTES_MAX:
        raise ConfigError([Problem(0, 0, "", f"is larger than {BYTES_MAX} bytes", str(path))])
    return content


def _missing_files(config: Config, file: Path) -> Iterator[tuple[Location, str]]:
    folder = config.policy.folder
    if folder and not config.policy.is_remote and not (file.parent / folder).is_dir():
        yield ("policy", "url"), f"there is no folder {folder} here; embedded: alone is the bundle shipped with Bursar"
    shadow = (config.policy.shadow or "").removeprefix("embedded:")
    if shadow and not (file.parent / shadow).is_dir():
        yield ("policy", "shadow"), f"there is no folder {shadow} here"
    for index, model in enumerate(config.models):
        if model.tokenizer is not None and not (file.parent / model.tokenizer).is_file():
            yield ("models", index, "tokenizer"), f"there is no file {model.tokenizer}"


class _Report:
    """Collects problems, finding for each the line of the file or the variable that is at fault."""

    def __init__(self, path: Path, document: Document, overrides: Overrides) -> None:
        self.problems: list[Problem] = []
        self._path = path
        self._document = document
        self._overrides = overrides

    def add_faults(self) -> None:
        """Take over what reading the text and the environment found."""
        for fault in self._document.faults:
            self._place(fault.mark, fault.location, fault.message)
        for name, message in self._overrides.faults:
            self.problems.append(Problem(0, 0, "", message, name))

    def add_all(self, findings: Iterable[tuple[Location, str]]) -> None:
        for location, message in findings:
            self.add(location, message)

    def add(self, location: Location, message: str) -> None:
        name = self._overrides.origin(location)
        if name is not None:
            self.problems.append(Problem(0, 0, _dotted(location), message, name))
            return
        marks = self._document.marks
        known = (location[:length] for length in range(len(location), -1, -1) if location[:length] in marks)
        self._place(marks.get(next(known, ()), Mark(1, 1)), location, message)

    def _place(self, mark: Mark, location: Location, message: str) -> None:
        self.problems.append(Problem(mark.line, mark.column, _dotted(location), message, str(self._path)))


def _validated(data: Any, report: _Report) -> Config | None:
    """The configuration in plain data, or None with its problems reported."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        for detail in details:
            if not _is_echo(detail, details):
                report.add(_location(detail["loc"], data), _message(detail))
    return None


def _is_echo(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether an error only follows from another: a default that needed a wrong value, a list short of wrong items."""
    if detail["type"] == "default_factory_not_called":
        return True
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details
    )


def _location(loc: Location, data: Any) -> Location:
    """The place in the data that pydantic means: without the names of union members, which no file holds."""
    parts: list[str | int] = []
    for part in loc:
        if isinstance(part, str) and not isinstance(data, dict):
            continue
        parts.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(parts)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        name = str(detail["loc"][-1])
        hint = nearest(name, _fields_at(detail["loc"][:-1]))
        return f"{SECRET_HELP}{hint}" if SECRET_NAME.search(name) else f"is not a field{hint}"
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return detail["msg"][0].lower() + detail["msg"][1:]


def _fields_at(loc: Location) -> Iterable[str]:
    """The fields that the section at a location has."""
    section: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:
            section = next(_sections(section.model_fields[part].annotation), section)
    return section.model_fields


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's annotation names, however deep they are wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _dotted(location: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:
    if old == new:
        return
    before, after = _by_name(old), _by_name(new)
    if before is None or after is None:
        yield path
        return
    for name in sorted({*before, *after}):
        here = f"{path}.{name}" if path else name
        if name in before and name in after:
            yield from _changes(before[name], after[name], here)
        else:
            yield here
    shared = ([name for name in side if name in before and name in after] for side in (before, after))
    if isinstance(old, list) and any(left != right for left, right in zip_longest(*shared)):
        yield path


def _by_name(value: Any) -> dict[str, Any] | None:
    """A mapping, or the items of a list by their ids; None for what has no parts with names."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "id" in item for item in value):
        return {item["id"]: item for item in value}
    return None
