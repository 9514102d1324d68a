"""Descriptions: a workload said in a few lines of YAML, a recorded trace or a synthetic one.

DescriptionError   what is described is no workload; a WorkloadError
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from runtime.workload.draws import NotNegative, Part, Positive
from runtime.workload.opening import open_workload
from runtime.workload.port import Workload, WorkloadError
from runtime.workload.synthetic import Synthetic, SyntheticWorkload

BYTES_MAX = 64 << 10
LEVELS_MAX = 32
_MISTAKES_TOLD = 3
SUFFIXES = (".yaml", ".yml")


class DescriptionError(WorkloadError):
    """A description is not one of a workload: the message names the file, the member and what is wrong with it."""


class Recorded(Part):
    """A trace file, or a part of it."""

    kind: Literal["trace"]
    trace: Annotated[str, Field(min_length=1, max_length=4096)]
    form: Literal["azure", "mooncake", "bursar"] | None = None
    requests_max: Annotated[int, Field(ge=1)] | None = None
    from_s: NotNegative = 0.0
    until_s: Positive | None = None
    rate: Positive = 1.0


_DESCRIPTIONS: TypeAdapter[Synthetic | Recorded] = TypeAdapter(
    Annotated[Synthetic | Recorded, Field(discriminator="kind")]
)


def load_workload(path: str | Path, seed: int | None = None, environ: Mapping[str, str] = os.environ) -> Workload:
    """The workload of a YAML description, or of a trace file or its bare name; `seed` stands in for the description's.

    DescriptionError, TraceError.
    """
    if Path(path).suffix not in SUFFIXES:
        return open_workload(path, environ=environ)
    try:
        with Path(path).open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise DescriptionError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(text) > BYTES_MAX:
        raise DescriptionError(f"{path} is longer than {BYTES_MAX:,} bytes: this is no description of a workload")
    try:
        _check_shape(path, text)
        described = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return workload_of(described, seed, str(path), environ)


def _check_shape(path: str | Path, text: bytes) -> None:
    """Refuse what a small file can be large with: aliases, and levels without end."""
    levels = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise DescriptionError(f"{path} has a YAML alias (*name): write out what it stands for")
        levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if levels > LEVELS_MAX:
            raise DescriptionError(f"{path} is nested more than {LEVELS_MAX} levels deep")


def workload_of(
    described: Any, seed: int | None = None, named: str = "the workload", environ: Mapping[str, str] = os.environ
) -> Workload:
    """The workload that a description is of, as it is read from YAML or JSON. DescriptionError, TraceError."""
    try:
        asked = _DESCRIPTIONS.validate_python(described)
    except ValidationError as error:
        raise DescriptionError(_said(error, named)) from None
    if isinstance(asked, Synthetic):
        return SyntheticWorkload(asked, asked.seed if seed is None else seed)
    return open_workload(
        asked.trace,
        asked.form,
        requests_max=asked.requests_max,
        from_s=asked.from_s,
        until_s=asked.until_s,
        rate=asked.rate,
        environ=environ,
    )


def _said(error: ValidationError, named: str) -> str:
    """The first mistakes of a description in a line, and how many more there are."""
    mistakes = error.errors(include_url=False)
    more = f" (and {len(mistakes) - _MISTAKES_TOLD} more)" if len(mistakes) > _MISTAKES_TOLD else ""
    return f"{named}: {'; '.join(map(_mistake, mistakes[:_MISTAKES_TOLD]))}{more}"


def _mistake(mistake: Mapping[str, Any]) -> str:
    place = ".".join(map(str, mistake["loc"]))
    begin = f"{place}: " if place else ""
    if mistake["type"] == "union_tag_invalid":
        return f"{begin}there is no kind {mistake['ctx']['tag']!r:.60}: there are {mistake['ctx']['expected_tags']}"
    if mistake["type"] == "union_tag_not_found":
        return f"{begin}it has no kind"
    if not place:
        return f"it must be members with their values, of which kind is one; it is {mistake['input']!r:.60}"
    return f"{begin}{mistake['msg']}; it is {mistake['input']!r:.60}"
