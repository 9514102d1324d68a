"""`bursar runtime …`: what runs models, what is known of each engine, and what a change of it would do."""

from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.runtime_metering import metered
from gateway.cli.runtime_place import NOT_RUNNING, Place, answers, place_of, places, probed
from runtime.description import Description, KnobState
from runtime.vllm.describe import DescribeError, described, said_in
from runtime.vllm.describe import describe as described_over_http

_LATE = {
    "calibrate": (
        "gateway.cli.runtime_calibrate",
        "Drive an engine up to saturation, and keep a fit of its step times.",
    ),
    "simulate": ("gateway.cli.runtime_simulate", "Simulate a workload on a deployment, with intervals."),
    "cache": ("gateway.cli.runtime_cache", "Replay a workload's blocks against caches, under each eviction policy."),
}


class _Commands(TyperGroup):
    """The commands, of which those of `_LATE` are imported only to be run.

    They need numpy, scipy and matplotlib, and importing these takes longer than most other commands do.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LATE]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _LATE:
            return TyperGroup(name=cmd_name, help=_LATE[cmd_name][1])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in _LATE:
            return super().resolve_command(ctx, args)
        command = get_command(import_module(_LATE[args[0]][0]).app)
        command.name = args[0]
        return command.name, command, args[1:]


app = typer.Typer(
    cls=_Commands,
    help="Runtimes: list, describe, calibrate and simulate them, and replay a trace against caches.",
    no_args_is_help=True,
)

_LISTED = ("id", "owner", "url", "health", "models", "accelerators", "telemetry")
_KNOBS = ("name", "value", "default", "range", "unit", "live", "couples")
_COUPLINGS = ("coupling", "knobs", "holds")
_NAME = Annotated[str, typer.Argument(metavar="RUNTIME", help="The id of a configured runtime.")]


@app.command("list")
def list_(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List the configured runtimes: where they are, whether they answer, and whether their engines are metered."""
    rows = [_row(place) for place in places(home, config)]
    print_rows("Runtimes", rows, _LISTED, as_json=as_json)


@app.command()
def describe(name: _NAME, home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Describe an engine: its parts, its knobs and what couples them, and what it can hold; as of when it last ran."""
    place = place_of(name, home, config)
    health = probed(place)
    found = _description(place, is_there=answers(health))
    if as_json:
        print_json(found.as_json())
        return
    if not answers(health):
        reason = found.telemetry.reason
        console().print(f"{name}: {reason if reason.startswith(NOT_RUNNING) else health}", markup=False)
    _print(name, found)


def _row(place: Place) -> dict[str, Any]:
    health = probed(place)
    found = metered(place.telemetry, place.gpus, place.url if answers(health) else None)
    return {
        "id": place.id,
        "owner": place.owner,
        "url": place.url or "sim://",
        "health": health,
        "models": list(place.models),
        "accelerators": found.accelerators,
        "telemetry": found.brief,
    }


def _description(place: Place, *, is_there: bool) -> Description:
    """What is known of an engine: a simulated one says all of it in its telemetry, and vLLM some more over HTTP.

    Where it does not answer that is what it said last. Its accelerators are those that count, of all engines together.
    """
    said = said_in(place.telemetry)
    found = metered(place.telemetry, place.gpus, place.url if is_there else None)
    is_simulated = place.is_sim or str(said.facts.get("engine", "")).startswith("sim ")
    if place.url is None or is_simulated or (said.facts and not is_there):
        description = described(said)
    else:
        try:
            description = described_over_http(place.url, place.telemetry)
        except DescribeError as error:
            raise DescribeError(f"{error}; telemetry {found.brief}") from error
    capacity = replace(description.capacity, accelerators=found.accelerators)
    return replace(description, capacity=capacity, telemetry=found.state)


def _print(name: str, found: Description) -> None:
    out = console()
    versions = " ".join(f"{part} {version}".strip() for part, version in found.versions.items())
    capacity = found.capacity
    device = f" on {found.device}" if found.device else ""
    out.print(f"{name}: {versions}, model {found.model or '-'}{device}", markup=False)
    out.print(
        f"cache {capacity.cache_tokens or '-'} tokens, context {capacity.model_len_tokens or '-'}, "
        f"seats {capacity.seats or '-'}, accelerators {capacity.accelerators}; telemetry {found.telemetry.status}"
        f"{': ' + found.telemetry.reason if found.telemetry.reason else ''}",
        markup=False,
    )
    for part in found.components:
        out.print(f"{part.name}: {part.does}", markup=False)
    rows = [
        {
            "name": knob.name,
            "value": knob.value,
            "default": knob.default,
            "range": _range(knob),
            "unit": knob.unit,
            "live": "yes" if knob.live else "restart",
            "couples": list(knob.couples),
        }
        for knob in found.knobs
    ]
    print_rows("Knobs", rows, _KNOBS, as_json=False)
    print_rows("Couplings", _couplings(found), _COUPLINGS, as_json=False)


def _range(knob: KnobState) -> str:
    """What a knob may be set to; empty for text and for what is no knob of vLLM."""
    if knob.choices:
        return ", ".join(knob.choices)
    if isinstance(knob.value, bool):
        return "true, false"
    low, high = (f"{each:,}" if isinstance(each, int) else f"{each:g}" for each in (knob.low or 0, knob.high or 0))
    return "" if knob.low is None else f"{low} and more" if knob.high is None else f"{low} to {high}"


def _couplings(found: Description) -> list[dict[str, Any]]:
    """The conditions on knobs that the engine has, and whether each holds."""
    had = {knob.name for knob in found.knobs}
    mine = [each for each in found.couplings if each.knobs[0] in had or each.violated]
    return [
        {
            "coupling": each.name,
            "knobs": [knob for knob in each.knobs if knob in had],
            "holds": each.violated or "yes",
        }
        for each in mine
    ]
