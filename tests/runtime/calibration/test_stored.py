"""A calibration comes back from its file as it was, or is refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domain.prices import GpuRate
from runtime.calibration.engine import CalibratedEngine
from runtime.calibration.errors import BadCalibration, OutsideRange
from runtime.calibration.ranges import Ranges
from runtime.calibration.stored import Calibration, Device
from runtime.sim.deployment import Overhead
from tests.runtime.calibration.engine_telemetry import TRUE

ENGINE = CalibratedEngine("vllm 0.32.0", "m", 16, 100, 1, {"max_model_len": 512, "max_num_seqs": 4}, "cpu")
MADE = Calibration(
    ENGINE,
    Device("cpu", 2),
    TRUE,
    Overhead(arrival_us=2_000, gap_token_ns=5),
    GpuRate(0, 30, 500),
    Ranges({"requests in a step": (1, 4)}),
    1_700_000_000,
    {"outlier_steps": 3},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a calibration, in a folder that it made."""
    path = tmp_path / "calibrations" / "m.json"
    MADE.save(path)
    return path


def test_what_was_kept_comes_back(path: Path) -> None:
    assert Calibration.load(path) == MADE
    assert [each.name for each in path.parent.iterdir()] == ["m.json"]


def test_the_digest_names_the_figures() -> None:
    assert MADE.digest == replace(MADE).digest
    assert MADE.digest != replace(MADE, created_unix_s=1_700_000_001).digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "has schema 2, and 1 is read here"),
        ({"overhead": {"arrival_us": 1}}, "Overhead has arrival_token_ns"),
        ({"ranges": {"requests in a step": [1]}}, "something amiss"),
        ({"rate": {}}, "something amiss"),
        ({"engine": {"engine": "vllm"}}, "the engine's facts do not say 'model'"),
        ({"created_unix_s": 1}, "was changed since it was made"),
        ({"digest": "sha256:0"}, "was changed since it was made"),
    ],
)
def test_what_was_changed_is_refused(path: Path, change: dict[str, Any], said: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")
    with pytest.raises(BadCalibration, match=said):
        Calibration.load(path)


@pytest.mark.parametrize("price", [1.5, True, "5", None])
def test_a_coefficient_is_a_whole_number(path: Path, price: object) -> None:
    kept = json.loads(path.read_text())
    kept["step_time"]["base_us"] = price
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(BadCalibration, match="are whole numbers"):
        Calibration.load(path)


@pytest.mark.parametrize(("content", "said"), [(b"", "cannot be read"), (b"[1]", "is not a"), (b"{}", "is not a")])
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(BadCalibration, match=said):
        Calibration.load(path)


def test_a_file_that_is_too_large_or_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(BadCalibration, match="there is no calibration"):
        Calibration.load(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BadCalibration, match="is not a calibration"):
        Calibration.load(path)


def test_it_is_of_one_engine() -> None:
    """Knobs may differ, for the simulation has its own; the version, the model and the size of blocks may not."""
    MADE.check_engine(replace(ENGINE, knobs={}, num_blocks=7))
    with pytest.raises(BadCalibration, match="model 'm', not 'other'"):
        MADE.check_engine(replace(ENGINE, model="other"))
    with pytest.raises(BadCalibration, match=r"engine 'vllm 0\.32\.0', not 'vllm 0\.33\.0'"):
        MADE.check_engine(replace(ENGINE, engine="vllm 0.33.0"))


def test_beyond_its_ranges_it_says_so_or_refuses() -> None:
    within, beyond = Ranges({"requests in a step": (1, 4)}), Ranges({"requests in a step": (1, 9)})
    assert MADE.check_range(within, strict=True) == []
    assert [str(each) for each in MADE.check_range(beyond, strict=False)] == [
        "requests in a step 9 (125 % beyond 1 to 4)"
    ]
    with pytest.raises(OutsideRange, match="requests in a step 9"):
        MADE.check_range(beyond, strict=True)
