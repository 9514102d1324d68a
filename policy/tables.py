"""Tables judged by the JSON schemas that a bundle ships, each mistake with the file and line where it stands.

`schemas/data/<name>.json` describes the table `data.bursar.<name>`, whichever files that is made of; a `/` in the name
is a level of the table.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from policy.bundle import SCHEMAS, assemble, files_of, is_schema
from policy.checks.port import SchemaRefused
from policy.lint import Problem
from policy.port import BundleError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

ROOT = "bursar"
PROBLEMS_MAX = 50
_ERRORS_MAX = 10_000
_MESSAGE_CHARACTERS_MAX = 300
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Steps = tuple[str | int, ...]


def check(root: Path | str) -> list[Problem]:
    """Every mistake in the tables of the bundle in a folder; raises BundleError where it has none to judge."""
    contents = files_of(root)
    return problems(contents, assemble(root, contents).data)


def require(contents: Mapping[str, bytes], data: dict[str, Any]) -> None:
    """Raises BundleError with the first mistake in the tables that the files of a bundle make up."""
    found = problems(contents, data)
    if found:
        raise BundleError(*found[0])


def problems(contents: Mapping[str, bytes], data: dict[str, Any]) -> list[Problem]:
    """Every mistake in the tables that the files of a bundle make up, at most fifty."""
    schemas = {file: content for file, content in contents.items() if is_schema(file)}
    lines = Lines(contents)
    found = (problem for file, content in schemas.items() for problem in _judged(file, content, lines, data))
    return list(islice(found, PROBLEMS_MAX))


def _judged(file: str, content: bytes, lines: "Lines", data: dict[str, Any]) -> Iterator[Problem]:
    # It takes a twentieth of a second to import, which a bundle without schemas need not wait for.
    from jsonschema.exceptions import best_match  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    # And so it does here.
    from policy.checks.json_schema import validator  # noqa: PLC0415

    path = (ROOT, *file.removeprefix(SCHEMAS).removesuffix(".json").split("/"))
    table = _at(data, path)
    if table is None:
        yield Problem(file, 0, f"describes data.{'.'.join(path)}, which no file of the bundle gives")
        return
    try:
        errors = islice(validator(orjson.loads(content)).iter_errors(table), _ERRORS_MAX)
        for error in sorted(errors, key=lambda each: [str(step) for step in each.absolute_path]):
            yield _problem(best_match([error]) or error, path, lines)
    except orjson.JSONDecodeError as error:
        yield Problem(file, error.lineno, error.msg)
    except SchemaRefused as refused:
        yield Problem(file, 0, f"not a JSON schema that can be used: {refused}")
    except Unresolvable as error:
        yield Problem(file, 0, f"refers to a definition that it does not have: {error}")


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _problem(error: "ValidationError", path: tuple[str, ...], lines: "Lines") -> Problem:
    where = (*path, *error.absolute_path, *_strange_name(error))
    said = error.message
    if len(said) > _MESSAGE_CHARACTERS_MAX:
        # It begins with the whole value.
        said = f"breaks the rule {error.validator}: {str(error.validator_value)[:_MESSAGE_CHARACTERS_MAX]}"
    return Problem(*lines.of(where), f"{dotted(where)}: {said}")


def _strange_name(error: "ValidationError") -> Steps:
    """The first name that a schema does not know, where that is the mistake."""
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return ()
    schema: Any = error.schema
    known = schema.get("properties", {}) if isinstance(schema, dict) else {}
    if isinstance(schema, dict) and "patternProperties" in schema:
        return ()
    return next(((name,) for name in error.instance if name not in known), ())


def dotted(path: Steps) -> str:
    """A path in the tables as Rego writes it, with brackets around what is no name."""
    steps = (
        f".{step}" if isinstance(step, str) and step.isidentifier() else f"[{orjson.dumps(step).decode()}]"
        for step in path
    )
    return "data" + "".join(steps)


class Lines:
    """Where the values of the tables stand in the files that they are made of."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = {
            file: content for file, content in contents.items() if not file.endswith(".rego") and not is_schema(file)
        }
        self._composed: dict[str, Any] = {}

    def of(self, path: Steps) -> tuple[str, int]:
        """The file and line of a value, or of what is nearest around it; line 0 where none is known."""
        nearest: tuple[int, str, int] = (-1, "", 0)
        for file in self._contents:
            folder = tuple(file.split("/")[:-1])
            if path[: len(folder)] == folder:
                depth, line = self._within(file, path[len(folder) :])
                nearest = max(nearest, (len(folder) + depth, file, line))
        return nearest[1], nearest[2]

    def _within(self, file: str, path: Steps) -> tuple[int, int]:
        """How far a path leads in a file, and the line that it ends at."""
        if file not in self._composed:
            self._composed[file] = _composed(self._contents[file])
        node = self._composed[file]
        line = 1 if node is not None else 0
        for depth, step in enumerate(path):
            found = _below(node, step)
            if found is None:
                return depth, line
            key, node = found
            line = key.start_mark.line + 1
        return len(path), line


def _composed(content: bytes) -> Any:
    """The nodes of a table, which tell where they stand; None where they cannot be told apart."""
    # JSON is YAML, but for tabs.
    text = content.decode(errors="replace").replace("\t", " ")
    try:
        return yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return None


def _below(node: Any, step: str | int) -> tuple[Any, Any] | None:
    """The node of a key and that of its value, or an item of a list twice."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None
