"""The picture of hit rates over cache sizes."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from runtime.cache_replay.table import HitRates

_LINES = (
    ("infinite", "infinite cache", "black", ":"),
    ("optimum", "optimum (the future known)", "black", "--"),
    ("reuse", "reuse", "tab:red", "-"),
    ("arc", "ARC", "tab:green", "-"),
    ("lru", "LRU", "tab:blue", "-"),
)


def hit_rate_plot(rows: Sequence[HitRates], path: Path, title: str = "") -> None:
    """Write a picture of the rows, PNG or SVG by the path's suffix; ValueError for no rows or another suffix."""
    if not rows:
        raise ValueError("there are no rows to draw")
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path.name} is neither .png nor .svg")
    rows = sorted(rows, key=lambda row: row.capacity_blocks)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = [row.capacity_blocks for row in rows]
    for name, label, colour, style in _LINES:
        rates = [getattr(row, name) for row in rows]
        axes.plot(sizes, rates, style, color=colour, label=label, marker="o", markersize=3, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xticks(sizes, minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="x", labelrotation=30)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="cache size (blocks)", ylabel="hit rate (of looked-up blocks)", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    # Without the date and with fixed ids, the same rows give the same bytes.
    with rc_context({"svg.hashsalt": "bursar", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)
