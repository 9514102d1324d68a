"""Overrides: values of the configuration that environment variables `BURSAR_…` put in place of the file's.

`BURSAR_LISTEN__PORT=0` sets one value, `BURSAR_RUNTIMES__0__URL=…` one of the first runtime, and `BURSAR_BUDGETS='[…]'`
a whole section in JSON. `null` empties a value that may be empty.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource

from gateway.config import Config
from gateway.consistency import nearest

PREFIX = "BURSAR_"
NESTING = "__"

Location = tuple[str | int, ...]


class _Environment(Config, BaseSettings):  # type: ignore[misc]  # SettingsConfigDict is a ConfigDict with more keys
    """The configuration as pydantic-settings sees it: never made, only its fields are read."""


@dataclass(slots=True)
class Overrides:
    """What the environment says: values to lay over the file's, and faults as (variable, message)."""

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    variables: frozenset[str] = frozenset()
    origins: dict[Location, str] = field(default_factory=dict)

    def lay_over(self, data: Any) -> Any:
        """The file's data with the overrides in it; the location of each override is kept in `origins`."""
        return self._merge(data, self.values, ()) if self.values else data

    def origin(self, location: Location) -> str | None:
        """The variable that put the value at a location, or put something below it."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.origins:
                return self.origins[location[:length]]
        below = (name for place, name in self.origins.items() if place[: len(location)] == location)
        return next(below, None) if location else None

    def _merge(self, base: Any, over: Any, location: Location) -> Any:
        if isinstance(over, dict) and isinstance(base, list):
            return self._merge_items(base, over, location)
        if not isinstance(over, dict):
            names = (variable(location[:length]) for length in range(len(location), 0, -1))
            self.origins[location] = next(name for name in names if name in self.variables)
            return None if over == "null" else over
        merged = dict(base) if isinstance(base, dict) else {}
        for key, value in over.items():
            merged[key] = self._merge(merged.get(key), value, (*location, key))
        return merged

    def _merge_items(self, base: list[Any], over: dict[str, Any], location: Location) -> list[Any]:
        merged = list(base)
        for key, value in over.items():
            if key.isdecimal() and int(key) < len(merged):
                merged[int(key)] = self._merge(merged[int(key)], value, (*location, int(key)))
            else:
                name = variable((*location, key)) + (NESTING + "…" if isinstance(value, dict) else "")
                self.faults.append((name, f"the file has no such item: {len(merged)} are counted from 0"))
        return merged


def read_overrides(environ: Mapping[str, str]) -> Overrides:
    """The overrides that an environment holds; other variables that begin with `BURSAR_` are left to their owners."""
    overrides = Overrides(variables=frozenset(name.upper() for name in environ))
    source = EnvSettingsSource(_Environment, env_prefix=PREFIX, env_nested_delimiter=NESTING)
    source.env_vars = {name.lower(): value for name, value in environ.items() if name.upper().startswith(PREFIX)}
    for name, info in Config.model_fields.items():
        try:
            value, _, is_complex = source.get_field_value(info, name)
            value = source.prepare_field_value(name, info, value, is_complex)
        except ValueError:
            overrides.faults.append((variable((name,)), "is not JSON"))
            continue
        if isinstance(value, list) and source.explode_env_vars(name, info, source.env_vars):
            overrides.faults.append((variable((name,)), "sets all of the section, so nothing below it can be set too"))
        if value is not None:
            overrides.values[name] = value
    overrides.faults.extend(_strangers(environ))
    return overrides


def variable(location: Location) -> str:
    """The environment variable that overrides the value at a location."""
    return PREFIX + NESTING.join(str(part) for part in location).upper()


def _strangers(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Nested names that mean no section: a slip that would otherwise go unnoticed."""
    for name in environ:
        section, nested, _ = name.upper().removeprefix(PREFIX).partition(NESTING)
        if name.upper().startswith(PREFIX) and nested and section.lower() not in Config.model_fields:
            yield name, f"names no section of the configuration{nearest(section.lower(), Config.model_fields)}"
