"""A calibration as it is kept: one JSON file with the engine, the coefficients, their errors and where they hold."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import orjson

from domain.prices import GpuRate
from runtime.calibration.engine import CalibratedEngine
from runtime.calibration.errors import BadCalibration, OutsideRange
from runtime.calibration.ranges import Excess, Ranges
from runtime.sim.deployment import Overhead
from runtime.step_time import StepTime

SCHEMA: Final = 1
_BYTES_MAX: Final = 1 << 20

Coefficients = TypeVar("Coefficients", StepTime, Overhead)


@dataclass(frozen=True, slots=True)
class Device:
    """What the engine ran on; another one makes other times."""

    name: str
    cores: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted to one engine on one device, how well it holds and in which ranges.

    `rate` is what a token took of the accelerator on average over the mixed loads: an estimate for holds. `errors` are
    plain figures by name, for people. `created_unix_s` is when it was made.
    """

    engine: CalibratedEngine
    device: Device
    step_time: StepTime
    overhead: Overhead
    rate: GpuRate
    ranges: Ranges
    created_unix_s: int
    errors: Mapping[str, Any] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        """As JSON shows it, without the digest."""
        return {
            "schema": SCHEMA,
            "created_unix_s": self.created_unix_s,
            "engine": self.engine.view(),
            "device": asdict(self.device),
            "step_time": asdict(self.step_time),
            "overhead": asdict(self.overhead),
            "rate": {
                "gpu_us_per_input_mtok": self.rate.input_us_per_mtok,
                "gpu_us_per_output_mtok": self.rate.output_us_per_mtok,
            },
            "ranges": self.ranges.view(),
            "errors": dict(self.errors),
        }

    @property
    def digest(self) -> str:
        """What names these very figures."""
        return f"sha256:{hashlib.sha256(_canonical(self.view())).hexdigest()}"

    def save(self, path: Path) -> None:
        """Write the file, all of it or none."""
        content = orjson.dumps({**self.view(), "digest": self.digest}, option=orjson.OPT_INDENT_2) + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_bytes(content)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; BadCalibration where it is none, is of another version, or was changed."""
        try:
            with path.open("rb") as file:
                raw = file.read(_BYTES_MAX + 1)
            found = orjson.loads(raw) if len(raw) <= _BYTES_MAX else None
        except FileNotFoundError as error:
            raise BadCalibration(
                f"there is no calibration at {path}: make one with `bursar runtime calibrate`"
            ) from error
        except (OSError, ValueError) as error:
            raise BadCalibration(f"{path} cannot be read as a calibration: {error}") from error
        if not isinstance(found, dict) or "schema" not in found:
            raise BadCalibration(f"{path} is not a calibration")
        if found["schema"] != SCHEMA:
            raise BadCalibration(f"{path} has schema {found['schema']}, and {SCHEMA} is read here: calibrate again")
        return cls._of(path, found)

    @classmethod
    def _of(cls, path: Path, found: dict[str, Any]) -> Self:
        digest = found.pop("digest", None)
        try:
            made = cls(
                engine=CalibratedEngine.of(found["engine"]),
                device=Device(**found["device"]),
                step_time=_coefficients(StepTime, found["step_time"]),
                overhead=_coefficients(Overhead, found["overhead"]),
                rate=GpuRate(0, found["rate"]["gpu_us_per_input_mtok"], found["rate"]["gpu_us_per_output_mtok"]),
                ranges=Ranges({name: (low, high) for name, (low, high) in found["ranges"].items()}),
                created_unix_s=found["created_unix_s"],
                errors=found["errors"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadCalibration(f"{path} is a calibration with something amiss: {error}; calibrate again") from error
        if made.digest != digest:
            raise BadCalibration(f"{path} was changed since it was made, for its digest is another: calibrate again")
        return made

    def check_engine(self, other: CalibratedEngine) -> None:
        """Raise BadCalibration where it was made of another engine, saying what differs."""
        difference = self.engine.difference(other)
        if difference:
            raise BadCalibration(f"the calibration is of another engine: {difference}; calibrate this one")

    def check_range(self, run: Ranges, *, strict: bool) -> list[Excess]:
        """What of a run lies outside of what was seen; OutsideRange for any with `strict`."""
        found = self.ranges.excesses(run)
        if found and strict:
            raise OutsideRange(f"the run goes beyond what the calibration saw: {'; '.join(map(str, found))}")
        return found


def _coefficients(kind: type[Coefficients], found: Mapping[str, Any]) -> Coefficients:
    """Whole numbers by their names, every one of them and no other."""
    names = {each.name for each in fields(kind)}
    if set(found) != names:
        raise ValueError(f"{kind.__name__} has {', '.join(sorted(names))}")
    if any(type(value) is not int for value in found.values()):
        raise ValueError(f"the values of {kind.__name__} are whole numbers")
    return kind(**found)


def _canonical(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
