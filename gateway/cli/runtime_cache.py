"""`bursar runtime cache`: what caches of other sizes and eviction policies would find in a workload."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from gateway.cli.options import BadSetting, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.runtime_settings import SeedOption, SpecOption, TraceOption, check_picture, workload_of
from runtime.cache_replay.table import HitRates, hit_rate_table

_SIZES_MAX = 32
_COLUMNS = ("blocks", "LRU", "ARC", "reuse", "optimum", "infinite")
app = typer.Typer()


@app.command()
def cache(
    blocks: Annotated[str, typer.Option(metavar="N,N,…", help="Cache sizes, in blocks of the workload.")],
    trace: TraceOption = "",
    workload: SpecOption = "",
    seed: SeedOption = None,
    chart: Annotated[Path | None, typer.Option(help="Draw the rates into this .png or .svg.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a workload's blocks against caches of some sizes, under each eviction policy and the best possible."""
    sizes = _sizes(blocks)
    check_picture(chart)
    asked = workload_of(trace, workload, seed)
    rows: list[HitRates] = []
    # Gone at the end, so that what is wrong with a trace is said in a line of its own.
    told = Console(stderr=True)
    for size in track(sizes, asked.name, console=told, disable=as_json or not told.is_terminal, transient=True):
        rows += hit_rate_table(asked, [size])
    if chart is not None:
        # matplotlib takes half a second to import, which a replay without a picture need not wait for.
        from runtime.cache_replay.plot import hit_rate_plot  # noqa: PLC0415

        hit_rate_plot(rows, chart, asked.name)
    if as_json:
        print_json({"workload": asked.name, "block_tokens": asked.block_tokens, "rows": [asdict(row) for row in rows]})
        return
    print_rows(
        f"Hit rates of {asked.name}, of looked-up blocks", [_row(each) for each in rows], _COLUMNS, as_json=False
    )
    if chart is not None:
        console().print(f"drawn in {chart}", markup=False)


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > _SIZES_MAX or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise BadSetting(
            f"--blocks takes 1 to {_SIZES_MAX} sizes of at least 1 block, separated by commas, not {text!r}"
        )
    return sorted({int(part) for part in parts})


def _row(rates: HitRates) -> dict[str, int | str]:
    shown = (rates.lru, rates.arc, rates.reuse, rates.optimum, rates.infinite)
    named = zip(_COLUMNS[1:], shown, strict=True)
    return {"blocks": rates.capacity_blocks, **{name: f"{rate:.1%}" for name, rate in named}}
