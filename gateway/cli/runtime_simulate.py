"""`bursar runtime simulate`: what a deployment would make of a workload, in seconds instead of its own time."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from gateway.cli.options import CONFIG, HOME, BadSetting, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json
from gateway.cli.runtime_place import CALIBRATIONS, NoRuntime, place_of
from gateway.cli.runtime_report import print_simulation
from gateway.cli.runtime_settings import (
    KnobOption,
    SeedOption,
    SloOption,
    SpecOption,
    TraceOption,
    check_picture,
    knobs_of,
    promises_of,
    workload_of,
)
from runtime.calibration.engine import Telemetry
from runtime.calibration.errors import BadCalibration
from runtime.calibration.ranges import Excess, Ranges
from runtime.calibration.simulated import deployment_of
from runtime.calibration.stored import Calibration
from runtime.eviction.arc import ArcEviction
from runtime.eviction.port import EvictionPolicy
from runtime.eviction.reuse import ReuseEviction
from runtime.routing.least_load import LeastLoad
from runtime.routing.port import RoutingPolicy
from runtime.routing.prefix_affinity import PrefixAffinity
from runtime.routing.round_robin import RoundRobin
from runtime.sim.deployment import Deployment, lru
from runtime.sim.report import Report, Slo, over_seeds, report
from runtime.sim.run import Run
from runtime.sim.simulation import simulate as simulated

EVICTIONS: Final[Mapping[str, Callable[[int], EvictionPolicy]]] = {
    "lru": lru,
    "arc": ArcEviction,
    "reuse": ReuseEviction,
}
ROUTINGS: Final[Mapping[str, Callable[[], RoutingPolicy]]] = {
    "round_robin": RoundRobin,
    "least_load": LeastLoad,
    "prefix_affinity": PrefixAffinity,
}
_SEEDS_MAX: Final = 64
_NOT_CALIBRATED: Final = (
    "no calibration was named, so step times are the worked-out ones of an 8-billion-parameter model: make one with "
    "`bursar runtime calibrate`"
)
app = typer.Typer()


@app.command()
def simulate(
    trace: TraceOption = "",
    workload: SpecOption = "",
    calibration: Annotated[str, typer.Option(metavar="NAME|FILE", help="One in the home, or a file.")] = "",
    runtime: Annotated[
        str, typer.Option(metavar="RUNTIME", help="Its own calibration, if it is still that engine.")
    ] = "",
    knobs: KnobOption = None,
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="Equal engines behind a router.")] = 1,
    routing: Annotated[str, typer.Option(help=f"Of several replicas: {', '.join(ROUTINGS)}.")] = "",
    eviction: Annotated[str, typer.Option(help=f"What the cache gives up: {', '.join(EVICTIONS)}.")] = "lru",
    slo: SloOption = "",
    seed: SeedOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=_SEEDS_MAX, help="Runs of a described workload, a seed each.")] = 1,
    picture: Annotated[Path | None, typer.Option("--chart", help="Draw queue, batch and cache: .png or .svg.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what goes beyond what the calibration saw.")] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Simulate a workload on a deployment: latencies, goodput, cache hits and accelerator time, with intervals."""
    _check(replicas, routing, eviction, picture, seeds, workload)
    fitted = _calibration(calibration, runtime, home)
    if strict and fitted is None:
        raise BadSetting("--strict holds to what a calibration saw: name one with --calibration or --runtime")
    if runtime and fitted is not None:
        _check_engine(fitted, runtime, home, config)
    promised = _slo(slo)
    deployment = deployment_of(
        fitted,
        knobs_of(knobs),
        replicas=replicas,
        routing=ROUTINGS[routing] if routing else None,
        eviction=EVICTIONS[eviction],
    )
    runs: list[Run] = []
    with Console(stderr=True).status("simulating") if not as_json else Console(quiet=True).status(""):
        reports = []
        for each in range(seeds):
            run = simulated(workload_of(trace, workload, (seed or 0) + each if seeds > 1 else seed), deployment)
            reports.append(report(run, promised))
            runs = runs or [run]
    outside = _outside(fitted, runs[0], strict=strict)
    if picture is not None:
        # matplotlib takes half a second to import, which a simulation without a picture need not wait for.
        from runtime.sim.chart import chart  # noqa: PLC0415

        chart(runs[0], picture)
    found = reports[0] if seeds == 1 else over_seeds(reports)
    if as_json:
        print_json(_view(found, deployment, fitted, outside))
        return
    _print(found, deployment, fitted, outside, picture)


def _check(replicas: int, routing: str, eviction: str, picture: Path | None, seeds: int, workload: str) -> None:
    if eviction not in EVICTIONS:
        raise BadSetting(f"--eviction takes {', '.join(EVICTIONS)}, not {eviction!r}")
    if routing and routing not in ROUTINGS:
        raise BadSetting(f"--routing takes {', '.join(ROUTINGS)}, not {routing!r}")
    if replicas > 1 and not routing:
        raise BadSetting(f"several replicas need a routing policy: add --routing with {', '.join(ROUTINGS)}")
    check_picture(picture)
    if seeds > 1 and not workload:
        raise BadSetting("--seeds draws a described workload anew: name one with --workload")


def _calibration(name: str, runtime: str, home: Path) -> Calibration | None:
    """The one in the home under a name or a runtime's, or in a file; BadCalibration where there is none."""
    if not name and not runtime:
        return None
    kept = home / CALIBRATIONS / f"{name or runtime}.json"
    if kept.is_file() or (name and Path(name).is_file()):
        return Calibration.load(kept if kept.is_file() else Path(name))
    if name:
        raise BadCalibration(f"there is no calibration {name}: {kept} is not there, nor a file of that name")
    raise BadCalibration(
        f"runtime {runtime} has no calibration, for {kept} is not there: make it with "
        f"`bursar runtime calibrate {runtime}`"
    )


def _check_engine(fitted: Calibration, runtime: str, home: Path, config: Path) -> None:
    """Raise BadCalibration where the runtime's engine is another than the one that was calibrated."""
    place = place_of(runtime, home, config)
    if place.telemetry is None:
        raise NoRuntime(f"runtime {runtime} has no telemetry folder, so what its engine is cannot be compared")
    telemetry = Telemetry(place.telemetry)
    try:
        fitted.check_engine(telemetry.facts())
    finally:
        telemetry.close()


def _slo(text: str) -> Slo | None:
    promised = promises_of(text)
    if not promised:
        return None
    ttft_us, tpot_us, e2e_us = (
        promised[name] * 1_000 if name in promised else None for name in ("ttft_ms", "itl_ms", "e2e_ms")
    )
    return Slo(ttft_us, tpot_us, e2e_us)


def _outside(fitted: Calibration | None, run: Run, *, strict: bool) -> list[Excess]:
    return [] if fitted is None else fitted.check_range(Ranges.of_run(run), strict=strict)


def _view(found: Report, deployment: Deployment, fitted: Calibration | None, outside: list[Excess]) -> dict[str, Any]:
    return {
        **asdict(found),
        "engine": asdict(deployment.engine),
        "replicas": deployment.replicas,
        "calibration": None if fitted is None else fitted.digest,
        "outside": [{**each._asdict(), "percent": each.percent} for each in outside],
    }


def _print(
    found: Report, deployment: Deployment, fitted: Calibration | None, outside: list[Excess], picture: Path | None
) -> None:
    print_simulation(found, deployment)
    if picture is not None:
        console().print(f"drawn in {picture}", markup=False)
    if fitted is None:
        complain(_NOT_CALIBRATED)
    for each in outside:
        complain(f"beyond what the calibration saw: {each}")
