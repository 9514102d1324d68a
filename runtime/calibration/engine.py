"""The engine that is calibrated: what its telemetry says of it, and how its records are followed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from runtime.calibration.errors import BadCalibration, CalibrationError, NothingSeen
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Open, Parser, Record
from runtime.telemetry.writer import VERSION, segments

SOURCE: Final = "engine-0"
_OPEN_BYTES_MAX: Final = 1 << 20
_READ_BYTES_MAX: Final = 1 << 24
_MODEL_LEN_MIN: Final = 256
# What must be the same for a calibration to hold: others change how much work there is, these how long it takes.
_SAME: Final = ("engine", "model", "accelerators", "block_size")


@dataclass(frozen=True, slots=True)
class CalibratedEngine:
    """What an engine says of itself: name and version, model, cache, accelerators, device, and its knobs by name."""

    engine: str
    model: str
    block_size: int
    num_blocks: int
    accelerators: int
    knobs: Mapping[str, Any]
    device: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """The facts as telemetry or a stored calibration has them; BadCalibration where one is missing."""
        try:
            texts = [facts["engine"], facts["model"]]
            counts = [facts["block_size"], facts["num_blocks"], facts["accelerators"]]
            knobs = facts["knobs"]
        except (KeyError, TypeError) as error:
            raise BadCalibration(f"the engine's facts do not say {error}") from error
        whole = all(type(each) is int and each > 0 for each in counts)
        if not whole or not all(type(each) is str for each in texts) or not isinstance(knobs, Mapping):
            raise BadCalibration("the engine's facts are not those of an engine: is its plugin of this version?")
        return cls(texts[0], texts[1], counts[0], counts[1], counts[2], dict(knobs), str(facts.get("device", "")))

    def knob(self, name: str) -> int:
        """A whole number among the knobs; CalibrationError where the engine does not say it."""
        value = self.knobs.get(name)
        if type(value) is not int:
            raise CalibrationError(f"the engine's telemetry does not say the knob {name}")
        return value

    def difference(self, other: Self) -> str:
        """What differs that a calibration must have in common with an engine; empty where nothing does."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in _SAME]
        return ", ".join(f"{name} {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs)

    def view(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of an engine bounds its loads."""

    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_blocks: int

    def __post_init__(self) -> None:
        if self.max_model_len < _MODEL_LEN_MIN or min(self.max_num_seqs, self.block_size, self.num_blocks) < 1:
            raise CalibrationError(
                f"an engine is calibrated with a context of at least {_MODEL_LEN_MIN} tokens and at least one "
                f"sequence and block, not {self}"
            )

    @classmethod
    def of(cls, facts: CalibratedEngine) -> Self:
        """The shape that an engine's facts tell."""
        return cls(facts.knob("max_model_len"), facts.knob("max_num_seqs"), facts.block_size, facts.num_blocks)

    @property
    def tokens(self) -> int:
        """How many tokens its KV cache holds."""
        return self.num_blocks * self.block_size


class Telemetry:
    """Follows the telemetry folder of one engine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._follower = Follower(folder)
        self._parser = Parser()

    def records(self) -> list[Record]:
        """What the engine has told since the last call."""
        found: list[Record] = []
        while pieces := [each for each in self._follower.read(_READ_BYTES_MAX) if each.source == SOURCE]:
            for piece in pieces:
                found += [piece.lost] if piece.lost is not None else self._parser.records(piece.data)
        return found

    def latest(self) -> list[Record]:
        """What was told so far, from the begin of the newest segment on.

        What an engine told before it was restarted, and what is missing in between, is of no use to who begins now.
        """
        found = self.records()
        opened = [at for at, record in enumerate(found) if isinstance(record, Open)]
        return found[opened[-1] :] if opened else []

    def facts(self) -> CalibratedEngine:
        """What the engine says of itself now; NothingSeen where no engine has told anything in this folder."""
        present = segments(self._folder, SOURCE)
        if not present:
            raise NothingSeen(
                f"no engine has told of its steps in {self._folder}: start vLLM with Bursar's plugin and this folder, "
                "and send it a request"
            )
        with (self._folder / f"{SOURCE}.{present[-1]}.jsonl").open("rb") as file:
            line = file.readline(_OPEN_BYTES_MAX)
        try:
            kind, version, *_, facts = orjson.loads(line)
        except (ValueError, TypeError) as error:
            raise NothingSeen(f"{self._folder} holds no telemetry that can be read") from error
        if kind != "open" or version != VERSION:
            raise NothingSeen(
                f"the engine writes telemetry of version {version}, and {VERSION} is read here: install this Bursar's "
                "plugin beside it and start it again"
            )
        if facts.get("off"):
            raise NothingSeen(f"the engine is not metered: {facts['off']}")
        return CalibratedEngine.of(facts)

    def close(self) -> None:
        """Let go of the files."""
        self._follower.close()
