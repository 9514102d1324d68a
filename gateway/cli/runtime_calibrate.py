"""`bursar runtime calibrate`: drive a real engine through designed loads, fit its step times, and keep the fit."""

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from domain.prices import GpuRate
from gateway.cli.options import CONFIG, HOME, BadSetting, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.runtime_place import CALIBRATIONS, NoRuntime, place_of
from gateway.cli.runtime_settings import KnobOption, knobs_of
from gateway.home import Home
from runtime.calibration.drive import Target
from runtime.calibration.engine import Telemetry
from runtime.calibration.session import Plan, lone_rate
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
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[RUNTIME]", help="The id of a configured runtime.")] = "",
    launch: Annotated[Path | None, typer.Option(metavar="MODEL", help="Start vLLM on this model's folder.")] = None,
    python: Annotated[
        Path | None, typer.Option(envvar="BURSAR_VLLM_PYTHON", help="The interpreter of vLLM's environment.")
    ] = None,
    knobs: KnobOption = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; otherwise one in the home.")] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=300, help="How long an open load lasts; a closed one twice that, or two turns.")
    ] = 10.0,
    turns: Annotated[int, typer.Option(min=2, max=100, help="Requests of a user in closed loads, at most.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="What the loads are drawn from.")] = 0,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Drive an engine up to saturation, fit its step times and keep them; a few minutes, and nobody else may use it."""
    if bool(name) == (launch is not None):
        raise NoRuntime("name either a configured RUNTIME or --launch with the folder of a model")
    if launch is None and (knobs or _is_typed(context, "python")):
        raise BadSetting("--set and --python go with --launch: a configured runtime keeps the knobs that it runs with")
    with ExitStack() as stack:
        if launch is None:
            driven = _configured(name, home, config)
        else:
            driven = stack.enter_context(_launched(launch, python, knobs, Home(home)))
        found = _calibrated(driven, Plan(seconds, turns, seed), quiet=as_json)
    path = out or Home(home).path / CALIBRATIONS / f"{driven.name}.json"
    found.save(path)
    if as_json:
        lone = _rates(lone_rate(found.step_time, found.engine))
        print_json({**found.view(), "lone_rate": lone, "digest": found.digest, "path": str(path)})
        return
    print_calibration(found, path)


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line; the environment may name one for other commands."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
    return _Driven(Target(place.url, place.models[0], place.authorization()), place.telemetry, name, 0)


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
    try:
        engine = telemetry.facts()
        with _progress(quiet=quiet) as (done, say):
            trials = Trials(driven.target, telemetry, lambda: f"cal-{secrets.token_hex(4)}", progress=done)
            device = Device(engine.device, driven.cores)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(calibrated(trials, engine, device, int(time.time()), plan, say))
    finally:
        telemetry.close()


_Done = Callable[[str, int, int], None]
_Say = Callable[[str], None]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[_Done, _Say]]:
    """What is told while loads are sent: a bar on a terminal, elsewhere a line for each load that has ended."""
    told = Console(stderr=True, highlight=False, emoji=False)
    if not told.is_terminal:
        yield _ended, _line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=told, disable=quiet) as progress:
        task = progress.add_task("starting", total=None)

        def done(load: str, count: int, total: int) -> None:
            progress.update(task, description=load, completed=count, total=total)

        yield done, partial(told.print, markup=False)


def _ended(load: str, count: int, total: int) -> None:
    if count == total:
        _line(f"{load}: {total} requests ended")


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _rates(rate: GpuRate) -> dict[str, int]:
    return {"gpu_us_per_input_mtok": rate.input_us_per_mtok, "gpu_us_per_output_mtok": rate.output_us_per_mtok}


def print_calibration(found: Calibration, path: Path) -> None:
    """Print a calibration as people read it, and where it is kept."""
    view = found.view()
    parts = (view["step_time"], view["overhead"], view["rate"])
    rows = [{"coefficient": name, "value": value} for part in parts for name, value in part.items()]
    print_rows(f"{found.engine.engine}, {found.engine.model}", rows, _COEFFICIENTS, as_json=False)
    errors = view["errors"]
    print_rows("Step times on loads that nothing was fitted to", _errors(errors["held_out"]), _LOADS, as_json=False)
    print_rows("Step times on those that it was fitted to", _errors(errors["training"]), _LOADS, as_json=False)
    out = partial(console().print, markup=False)
    lone = _rates(lone_rate(found.step_time, found.engine))
    out(
        "The rates are those of full batches. By the same fit a request that is alone takes "
        + " and ".join(f"{name} {value:,}" for name, value in lone.items())
        + ": with less, holds and settlements are too low in quiet hours"
    )
    out("seen: " + "; ".join(f"{name} {low:,} to {high:,}" for name, (low, high) in found.ranges.spans.items()))
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
