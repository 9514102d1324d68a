"""The real vLLM that simulations are compared with: on CPU, metered, serving a tiny model of some shape."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import MeasurementError
from runtime.calibration.drive import Bounds, Target
from runtime.calibration.engine import Telemetry
from runtime.calibration.trials import Trials
from runtime.vllm.catalogue import KnobValue
from runtime.vllm.knobs import CPU, VllmKnobs
from runtime.vllm.launcher import IN_PROCESS_EXECUTOR, VllmLaunch, VllmServer, VllmServerError
from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT, TINY_MODEL

_ENVIRONMENT: Final = ROOT / "tests" / "e2e" / "vllm_environment.py"
_INSTALL_TIMEOUT_S: Final = 2_400
_MODEL_TIMEOUT_S: Final = 300
_NAME: Final = "tiny"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """How deep and how wide the model is; the first is the one that the end-to-end tests serve."""

    name: str
    layers: int
    hidden: int

    @property
    def folder(self) -> Path:
        """Where the model of this shape lies."""
        return MODEL if self == SHAPES[0] else MODEL.with_name(f"{MODEL.name}-{self.layers}x{self.hidden}")


SHAPES: Final = (ModelShape("tiny", 12, 64), ModelShape("deep", 28, 64), ModelShape("wide", 8, 256))


@contextmanager
def engine(
    shape: ModelShape, knobs: dict[str, KnobValue] | None = None, bounds: Bounds | None = None
) -> Iterator[tuple[Trials, Telemetry]]:
    """A vLLM that computes in the engine's own process, stopped at the end; MeasurementError where it cannot be had."""
    _prepare(shape)
    with tempfile.TemporaryDirectory(prefix="bursar-bench-") as folder:
        launch = VllmLaunch(
            python=PYTHON,
            model=shape.folder,
            served_model_name=_NAME,
            log=ROOT / "build" / "vllm-bench.log",
            knobs=VllmKnobs(CPU, **(knobs or {})),
            telemetry=Path(folder),
            executor=IN_PROCESS_EXECUTOR,
        )
        server = VllmServer(launch)
        try:
            server.start()
            telemetry = Telemetry(Path(folder))
            target = Target(server.base_url, _NAME)
            yield Trials(target, telemetry, lambda: f"cal-{secrets.token_hex(4)}", bounds), telemetry
        except VllmServerError as error:
            raise MeasurementError(str(error)) from error
        finally:
            server.stop()


def _prepare(shape: ModelShape) -> None:
    """Bring the environment, the plugin and the model up to date."""
    commands = [([sys.executable, str(_ENVIRONMENT)], _INSTALL_TIMEOUT_S)]
    if shape != SHAPES[0]:
        made = [str(PYTHON), str(TINY_MODEL), str(shape.folder), str(shape.layers), str(shape.hidden)]
        commands.append((made, _MODEL_TIMEOUT_S))
    for command, timeout_s in commands:
        done = subprocess.run(command, check=False, capture_output=True, timeout=timeout_s, env=dict(os.environ))
        if done.returncode != 0:
            raise MeasurementError(f"{command[1]}: {done.stderr.decode(errors='replace')[-500:]}")
