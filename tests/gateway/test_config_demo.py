"""The demo's configuration: valid as shipped, wherever it is copied to."""

import shutil
from pathlib import Path

import pytest

from gateway.config_file import load
from runtime.step_time import StepTime, StepWork

NOW_S = 1_760_000_000
DEMO = Path(__file__).parents[2] / "gateway" / "demo.yaml"


def alone_us(input_tokens: int, output_tokens: int) -> int:
    """The accelerator time of a request that has each step of the simulator to itself."""
    work = [StepWork(1, input_tokens)]
    work += [StepWork(decode_requests=1, decode_context=input_tokens + done) for done in range(1, output_tokens)]
    return sum(map(StepTime().duration_us, work))


@pytest.mark.parametrize("input_tokens", [1, 2, 9, 300, 1_300])
@pytest.mark.parametrize("output_tokens", [0, 1, 16, 64, 1_024])
def test_a_hold_of_the_demo_is_no_less_than_what_a_request_can_take(input_tokens: int, output_tokens: int) -> None:
    config = load(DEMO, {}, lambda: NOW_S).config
    (runtime,), template = config.runtimes, config.models[0].template_tokens_fixed
    held_us = runtime.hold_rate.gpu_us(input_tokens + template, output_tokens)
    assert alone_us(input_tokens, output_tokens) <= held_us


def test_the_demo_is_valid_and_has_what_it_promises(tmp_path: Path) -> None:
    copy = shutil.copy(DEMO, tmp_path / "bursar.yaml")
    config = load(copy, {}, lambda: NOW_S).config
    assert [model.id for model in config.models] == ["sim-large", "sim-small", "sim-embed"]
    assert all(config.prices_at(model.id, NOW_S).input_nusd_per_mtok > 0 for model in config.models)
    assert len(config.budgets) == 5
    assert {runtime.url for runtime in config.runtimes} == {"sim://"}
