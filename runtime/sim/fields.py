"""Typed reads of the fields of a JSON object; a wrong type or value is a BadRequest that names the field."""

from typing import Any, Final

import orjson

from runtime.sim.errors import BadRequest

_INT64_MAX: Final = (1 << 63) - 1


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body


def text_field(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A string; required where there is no default. Null counts as absent."""
    value = body.get(name)
    if value is None:
        if default is None:
            raise BadRequest(f"'{name}' is required", name)
        return default
    if not isinstance(value, str):
        raise BadRequest(f"'{name}' must be a string", name)
    return value


def flag_field(body: dict[str, Any], name: str) -> bool:
    """A boolean, false where absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be a boolean", name)
    return value


def int_field(body: dict[str, Any], name: str, low: int = -_INT64_MAX, high: int = _INT64_MAX) -> int | None:
    """An integer from `low` to `high`, None where absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int:  # not isinstance: true and false are ints to Python
        raise BadRequest(f"'{name}' must be an integer", name)
    if not low <= value <= high:
        raise BadRequest(f"'{name}' must be between {low} and {high}, and is {value}", name)
    return value


def texts_field(body: dict[str, Any], name: str, count_max: int) -> tuple[str, ...]:
    """A string or a list of at most `count_max` strings, none of them empty; () where absent or null."""
    value = body.get(name)
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise BadRequest(f"'{name}' must be a non-empty string or a list of them", name)
    if len(texts) > count_max:
        raise BadRequest(f"'{name}' has {len(texts)} items, at most {count_max} are allowed", name)
    return tuple(texts)
