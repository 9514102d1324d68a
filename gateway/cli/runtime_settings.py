"""What the commands over runtimes are told in words: knobs, and what is promised."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import BadSetting
from runtime.vllm.catalogue import KNOBS, KnobValue
from runtime.vllm.couplings import KnobError
from runtime.workload.description import load_workload
from runtime.workload.port import Workload

KnobOption = Annotated[list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="A knob, by vLLM's name.")]
SloOption = Annotated[str, typer.Option(metavar="ttft_ms=N,itl_ms=N,e2e_ms=N", help="What a good answer keeps within.")]
TraceOption = Annotated[
    str, typer.Option(metavar="TRACE", help="A trace file, or the bare name of one in the folder of traces.")
]
SpecOption = Annotated[str, typer.Option("--workload", metavar="SPEC", help="A workload described in YAML.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Stands in for the description's own seed.")]

_PICTURES = (".png", ".svg")
_PROMISES = ("ttft_ms", "itl_ms", "e2e_ms")
_WORDS: Mapping[str, KnobValue] = {"true": True, "false": False, "none": None, "null": None}


def workload_of(trace: str, described: str, seed: int | None) -> Workload:
    """The one workload that is named; BadSetting for none or two, WorkloadError where it cannot be read."""
    if bool(trace) == bool(described):
        raise BadSetting("name one workload: --trace with a file, or --workload with a description")
    return load_workload(trace or described, seed)


def knobs_of(settings: Sequence[str] | None) -> dict[str, KnobValue]:
    """The knobs that `NAME=VALUE` set, each possible by itself; KnobError, and BadSetting for what is no such thing."""
    found: dict[str, KnobValue] = {}
    for each in settings or ():
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise BadSetting(f"--set takes KNOB=VALUE, not {each!r}")
        if name not in KNOBS:
            raise KnobError(f"vLLM has no knob {name} in the catalogue: there are {', '.join(KNOBS)}")
        if name in found:
            raise BadSetting(f"--set names {name} twice")
        value = _value(text)
        objection = KNOBS[name].objection(value)
        if objection is not None:
            raise KnobError(objection)
        found[name] = value
    return found


def promises_of(text: str) -> dict[str, int]:
    """The bounds in milliseconds that `ttft_ms=500,itl_ms=50` names; BadSetting."""
    found: dict[str, int] = {}
    for each in filter(None, text.split(",")):
        name, _, value = each.partition("=")
        if name not in _PROMISES or name in found or not value.isdecimal() or not int(value):
            raise BadSetting(
                f"--slo takes {', '.join(f'{name}=N' for name in _PROMISES)} in milliseconds, not {each!r}"
            )
        found[name] = int(value)
    return found


def _value(text: str) -> KnobValue:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_picture(path: Path | None) -> None:
    """BadSetting for a picture that could not be written once all is computed."""
    if path is None:
        return
    if path.suffix not in _PICTURES:
        raise BadSetting(f"--chart takes a {' or '.join(_PICTURES)}, not {path.name}")
    if not path.parent.is_dir():
        raise BadSetting(f"--chart names a folder that is not there: make {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadSetting(f"--chart names what cannot be written: {path}")
