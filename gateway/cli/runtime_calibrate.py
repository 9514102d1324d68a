"""`bursar runtime calibrate`: drive a real engine through designed loads, fit its step times, and keep the fit."""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.runtime_place import CALIBRATIONS, NoRuntime, place_of
from gateway.cli.runtime_settings import KnobOption, knobs_of
from gateway.home import Home
from runtime.calibration.drive import Target
from runtime.calibration.engine import Telemetry
from runtime.calibration.session import Plan
from runtime.calibration.session import calibrate as calibrated
from runtime.calibration.stored import Calibration, Device
from runtime.calibration.trials import Trials
from runtime.vllm.couplings import EngineFacts
from runtime.vllm.knobs import VllmKnobs
from runtime.vllm.launcher import IN_PROCESS_EXECUTOR, VllmLaunch, VllmServer

_LOADS = ("load", "steps", "time", "mean error", "R²")
_COEFFICIENTS = ("coefficient", "value")


@dataclass(frozen=True, slots=True)
class _Driven:
    """An engine that can be driven: where it is, what tells of its steps, and the name that the fit is kept under."""

    target: Target
    telemetry: Path
    name: str
    cores: int


app = typer.Typer()


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="[RUNTIME]", help="The id of a configured runtime.")] = "",
    launch: Annotated[Path | None, typer.Option(metavar="MODEL", help="Start vLLM on this model's folder.")] = None,
    python: Annotated[
        Path | None, typer.Option(envvar="BURSAR_VLLM_PYTHON", help="The interpreter of vLLM's environment.")
    ] = None,
    knobs: KnobOption = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; otherwise one in the home.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=300, help="How long each open load lasts.")] = 10.0,
    turns: Annotated[int, typer.Option(min=2, max=100, help="Requests of each user in closed loads.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="What the loads are drawn from.")] = 0,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Drive an engine up to saturation, fit its step times and keep them; a few minutes, and nobody else may use it."""
    if bool(name) == (launch is not None):
        raise NoRuntime("name either a configured RUNTIME or --launch with the folder of a model")
    with ExitStack() as stack:
        if launch is None:
            driven = _configured(name, home, config)
        else:
            driven = stack.enter_context(_launched(launch, python, knobs, Home(home)))
        found = _calibrated(driven, Plan(seconds, turns, seed), quiet=as_json)
    path = out or Home(home).path / CALIBRATIONS / f"{driven.name}.json"
    found.save(path)
    if as_json:
        print_json({**found.view(), "digest": found.digest, "path": str(path)})
        return
    _print(found, path)


def _configured(name: str, home: Path, config: Path) -> _Driven:
    place = place_of(name, home, config)
    if place.url is None:
        raise NoRuntime(f"runtime {name} is embedded and does not run: start `bursar up`")
    if place.telemetry is None:
        raise NoRuntime(
            f"runtime {name} has no telemetry folder: name it as runtimes.telemetry, and start vLLM with it"
        )
    if not place.models:
        raise NoRuntime(f"no model is served by runtime {name}: name it in a model's runtimes")
    return _Driven(Target(place.url, place.models[0], place.authorization), place.telemetry, name, 0)


@contextmanager
def _launched(model: Path, python: Path | None, knobs: list[str] | None, home: Home) -> Iterator[_Driven]:
    """A vLLM of our own on one core of this machine, stopped at the end."""
    if python is None or not python.exists():
        raise NoRuntime("--launch needs the interpreter of vLLM's environment: name it with --python")
    if not (model / "config.json").is_file():
        raise NoRuntime(f"there is no model in {model}: a folder with config.json is needed")
    settings = VllmKnobs(EngineFacts(device="cpu"), **knobs_of(knobs))
    name = model.resolve().name
    with tempfile.TemporaryDirectory(prefix="bursar-calibrate-") as folder:
        start = VllmLaunch(
            python=python,
            model=model,
            served_model_name=name,
            log=home.logs / "calibrate-vllm.log",
            knobs=settings,
            telemetry=Path(folder),
            executor=IN_PROCESS_EXECUTOR,
        )
        with VllmServer(start) as server:
            yield _Driven(Target(server.base_url, name), Path(folder), name, len(os.sched_getaffinity(0)))


def _calibrated(driven: _Driven, plan: Plan, *, quiet: bool) -> Calibration:
    telemetry = Telemetry(driven.telemetry)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("starting", total=None)

        def done(load: str, count: int, total: int) -> None:
            progress.update(task, description=load, completed=count, total=total)

        trials = Trials(driven.target, telemetry, lambda: f"cal-{secrets.token_hex(4)}", progress=done)
        try:
            engine = telemetry.facts()
            device = Device(engine.device, driven.cores)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(calibrated(trials, engine, device, int(time.time()), plan))
        finally:
            telemetry.close()


def _print(found: Calibration, path: Path) -> None:
    view = found.view()
    parts = (view["step_time"], view["overhead"], view["rate"])
    rows = [{"coefficient": name, "value": value} for part in parts for name, value in part.items()]
    print_rows(f"{found.engine.engine}, {found.engine.model}", rows, _COEFFICIENTS, as_json=False)
    errors = view["errors"]
    print_rows("Step times on loads that nothing was fitted to", _errors(errors["held_out"]), _LOADS, as_json=False)
    print_rows("Step times on those that it was fitted to", _errors(errors["training"]), _LOADS, as_json=False)
    out = partial(console().print, markup=False)
    out(f"{errors['outlier_steps']} steps, {errors['outlier_time_share']:.1%} of the time, were left out as outliers")
    out(f"kept as {path}")


def _errors(errors: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "load": load,
            "steps": each["steps"],
            "time": f"{each['total']:+.1%}",
            "mean error": f"{each['mean_absolute']:.1%}",
            "R²": f"{each['r_squared']:.3f}",
        }
        for load, each in errors.items()
    ]
