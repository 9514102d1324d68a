"""The catalogue of knobs against the options of the real vLLM: none is invented, and none has another default."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from runtime.vllm.catalogue import KNOBS, VERSION
from tests.e2e.vllm_environment import PYTHON

# Options as vLLM's own parser has them, and where its configuration keeps each value that it has by default.
LISTING = """
import json
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.version import __version__
parser = make_arg_parser(FlexibleArgumentParser())
configs = {"cache_config": CacheConfig, "model_config": ModelConfig, "parallel_config": ParallelConfig,
           "scheduler_config": SchedulerConfig}
plain = lambda value: value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
print(json.dumps({
    "version": __version__,
    "options": {each.dest: [each.option_strings, plain(each.default), list(each.choices or [])]
                for each in parser._actions},
    "fields": {name: sorted(kind.__dataclass_fields__) for name, kind in configs.items()},
    "top": sorted(VllmConfig.__dataclass_fields__),
}))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """What the installed vLLM says of its options."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [str(PYTHON), "-c", LISTING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    listed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return listed


def test_the_catalogue_is_of_the_version_that_is_installed(vllm: dict[str, Any]) -> None:
    assert vllm["version"].startswith(f"{VERSION}.")


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_is_an_option_with_this_default_and_these_choices(vllm: dict[str, Any], name: str) -> None:
    knob = KNOBS[name]
    options, default, choices = vllm["options"][name]
    assert knob.option in options
    assert knob.default == default
    assert set(knob.choices) <= set(choices or knob.choices), "Bursar may offer fewer"
    assert (f"--no-{knob.option[2:]}" in options) == (knob.kind == "flag")


@pytest.mark.parametrize("name", [name for name, knob in KNOBS.items() if knob.config])
def test_a_knobs_value_is_where_the_running_engine_is_asked_for_it(vllm: dict[str, Any], name: str) -> None:
    place, _, field = KNOBS[name].config.rpartition(".")
    assert field in (vllm["fields"][place] if place else vllm["top"])
