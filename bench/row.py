"""One line of the benchmark table, and how lines are kept in `build/bench.json` and shown."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Self

import orjson
from rich.table import Table

from bench.errors import MeasurementError

RATIO_DIGITS: Final = 4
VALUE_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured. `met` is None where there is no target; so is what has no reference."""

    name: str
    unit: str
    ours: float
    reference: float | None
    reference_name: str | None
    ratio: float | None
    target: float | None
    met: bool | None

    @classmethod
    def against(
        cls, name: str, unit: str, ours: float, reference: float, reference_name: str, ratio_max: float | None
    ) -> Self:
        """A row whose target, if any, bounds the ratio of ours to a reference.

        A reference of zero or less, as a small difference of noisy latencies may be, gives no ratio. With a target to
        meet that is a MeasurementError.
        """
        if reference <= 0 and ratio_max is not None:
            raise MeasurementError(f"{name}: the reference {reference_name} measured {reference} {unit}")
        ratio = ours / reference if reference > 0 else None
        return cls(
            name=name,
            unit=unit,
            ours=round(ours, VALUE_DIGITS),
            reference=round(reference, VALUE_DIGITS),
            reference_name=reference_name,
            ratio=None if ratio is None else round(ratio, RATIO_DIGITS),
            target=None if ratio_max is None else round(ratio_max, RATIO_DIGITS),
            met=None if ratio is None or ratio_max is None else ratio <= ratio_max,
        )

    @classmethod
    def at_most(cls, name: str, unit: str, ours: float, target: float) -> Self:
        """A row whose target is the most that the value itself may be."""
        return cls(name, unit, round(ours, VALUE_DIGITS), None, None, None, target, ours <= target)

    @classmethod
    def at_least(cls, name: str, unit: str, ours: float, target: float) -> Self:
        """A row whose target is the least that the value itself may be."""
        return cls(name, unit, round(ours, VALUE_DIGITS), None, None, None, target, ours >= target)


def load_rows(path: Path) -> list[Row]:
    """The rows kept in a file, none if there is no file. Raises ValueError when it holds anything else."""
    if not path.exists():
        return []
    names = {field.name for field in fields(Row)}
    entries = orjson.loads(path.read_bytes())
    if not isinstance(entries, list) or any(not isinstance(entry, dict) or set(entry) != names for entry in entries):
        raise ValueError(f"{path} does not hold benchmark rows; delete it")
    return [Row(**entry) for entry in entries]


def replace_rows(path: Path, measured: Iterable[Row], asked: Iterable[str]) -> None:
    """Put measured rows in place of every row that was asked for: a failed measurement leaves no old number behind."""
    asked_for = set(asked)
    kept = [row for row in load_rows(path) if row.name not in asked_for]
    path.parent.mkdir(parents=True, exist_ok=True)
    rendered = orjson.dumps([asdict(row) for row in [*kept, *measured]], option=orjson.OPT_INDENT_2)
    path.write_bytes(rendered + b"\n")


def table(rows: Iterable[Row]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="Bursar benchmarks")
    for heading in ("name", "unit"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("ours", "reference"):
        shown.add_column(heading, justify="right")
    shown.add_column("reference name")
    for heading in ("ratio", "target"):
        shown.add_column(heading, justify="right")
    shown.add_column("met")
    for row in rows:
        shown.add_row(
            row.name,
            row.unit,
            _number(row.ours),
            _number(row.reference),
            row.reference_name or "",
            _number(row.ratio),
            _number(row.target),
            {True: "yes", False: "[bold red]no[/]", None: ""}[row.met],
        )
    return shown


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
