"""Conformity with JSON Schema: of an answer with the schema that its request asked for, of arguments with a tool's.

References to other documents are never fetched. A pattern may take for ever, and is Python's `re`: a process that can
be ended makes this check.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from policy.checks.port import Finding, SchemaRefused

FINDINGS_MAX = 8
DEPTH_MAX = 64
_PATH_CHARS_MAX = 120


def validator(schema: Any) -> Validator:
    """What holds values to a schema; raises SchemaRefused where it is no schema or refers to another document."""
    if not isinstance(schema, dict | bool):
        raise SchemaRefused("it is not an object")
    for reference in _references(schema, 0):
        if not reference.startswith("#"):
            raise SchemaRefused("it refers to another document, and none is fetched")
    dialect = validator_for(schema, default=Draft202012Validator)
    try:
        dialect.check_schema(schema)  # type: ignore[arg-type]  # a schema may be true or false, which the stubs forget
    except SchemaError as error:
        raise SchemaRefused(f"{_path(error)} is not as JSON Schema wants it ({error.validator})") from error
    except RecursionError as error:
        raise SchemaRefused("it is nested too deep") from error
    return dialect(schema, registry=Registry())


def nonconformities(text: str, schema: Any, where: str) -> list[Finding]:
    """Where a JSON text does not conform to a schema; raises SchemaRefused. The values themselves are not told."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return [Finding("not_json", where)]
    checker = validator(schema)
    try:
        errors = list(islice(checker.iter_errors(value), FINDINGS_MAX))
    except Unresolvable as error:
        raise SchemaRefused("it refers to a definition that it does not have") from error
    except RecursionError:
        return [Finding("nested_too_deep", where)]
    return [Finding(str(error.validator), f"{where} {_path(error)}") for error in errors]


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse_constant), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _references(schema: Any, depth: int) -> Iterator[str]:
    if depth > DEPTH_MAX:
        raise SchemaRefused(f"it is nested more than {DEPTH_MAX} levels deep")
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value, depth + 1)


def _path(error: ValidationError | SchemaError) -> str:
    """Where in a value an error is, by the schema's own names and by places; what the value made up is not told."""
    steps = ["$"]
    for step in error.absolute_path:
        steps.append(f"[{step}]" if isinstance(step, int) else ".*" if _is_own(error) else f".{step}")
    return "".join(steps)[:_PATH_CHARS_MAX]


def _is_own(error: ValidationError | SchemaError) -> bool:
    """Whether the path may lead through a name that the value made up."""
    return any(step in ("additionalProperties", "patternProperties", "propertyNames") for step in error.schema_path)
