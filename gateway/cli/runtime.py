"""`bursar runtime …`: what runs models, what is known of each engine, and what a change of it would do."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.runtime_place import Place, place_of, places, probed
from runtime.description import Description
from runtime.vllm.describe import describe as described_over_http
from runtime.vllm.describe import described, said_in

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

_LISTED = ("id", "owner", "url", "health", "models", "telemetry")
_KNOBS = ("name", "value", "default", "unit", "live", "couples")
_NAME = Annotated[str, typer.Argument(metavar="RUNTIME", help="The id of a configured runtime.")]


@app.command("list")
def list_(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List the configured runtimes: where they are, whether they answer, and whether their engines are metered."""
    rows = [_row(place) for place in places(home, config)]
    print_rows("Runtimes", rows, _LISTED, as_json=as_json)


@app.command()
def describe(name: _NAME, home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Describe a running engine: its parts, its knobs and what couples them, and what it can hold."""
    found = _description(place_of(name, home, config))
    if as_json:
        print_json(found.as_json())
        return
    _print(name, found)


def _row(place: Place) -> dict[str, Any]:
    state = said_in(place.telemetry).telemetry
    return {
        "id": place.id,
        "owner": place.owner,
        "url": place.url or "sim://",
        "health": probed(place),
        "models": list(place.models),
        "telemetry": f"off: {state.reason}" if state.status == "off" else state.status,
    }


def _description(place: Place) -> Description:
    """What is known of an engine: a simulated one says all of it in its telemetry, and vLLM some more over HTTP."""
    said = said_in(place.telemetry)
    if place.is_sim or place.url is None or str(said.facts.get("engine", "")).startswith("sim "):
        return described(said)
    return described_over_http(place.url, place.telemetry)


def _print(name: str, found: Description) -> None:
    out = console()
    versions = " ".join(f"{part} {version}".strip() for part, version in found.versions.items())
    capacity = found.capacity
    out.print(f"{name}: {versions}, model {found.model or '-'} on {found.device or '-'}", markup=False)
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
            "unit": knob.unit,
            "live": "yes" if knob.live else "restart",
            "couples": list(knob.couples),
        }
        for knob in found.knobs
    ]
    print_rows("Knobs", rows, _KNOBS, as_json=False)
    for coupling in found.couplings:
        if coupling.violated:
            out.print(f"{coupling.name}: {coupling.violated}", markup=False)
