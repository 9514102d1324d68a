"""The picture of a run: queue, batch and KV cache over time."""

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from runtime.sim.durations import IntArray
from runtime.sim.run import Run

_SUFFIXES: Final = (".png", ".svg")
_POINTS_MAX: Final = 2_000
_REST_US: Final = 10_000
_PANELS: Final = (
    ("waiting", "requests waiting"),
    ("running", "requests in the batch"),
    ("used_blocks", "KV cache in use"),
)


def chart(run: Run, path: Path) -> None:
    """Write the picture, PNG or SVG by the path's suffix, a line for each replica; ValueError for another suffix.

    A point is the most in a two-thousandth of the time. The same run gives the same bytes.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path.name} is neither .png nor .svg")
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for axes, (name, label) in zip(panels, _PANELS, strict=True):
        for replica in range(run.deployment.replicas):
            mine = run.steps["replica"] == replica
            values = run.steps[name][mine]
            scale = run.deployment.engine.num_blocks if name == "used_blocks" else 1
            at_us, most = peaks(*with_rests(run.steps["begin_us"][mine], run.steps["end_us"][mine], values))
            axes.plot(at_us / 1e6, most / scale, drawstyle="steps-post", linewidth=1, label=f"replica {replica}")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    panels[-1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[-1].set_xlabel("time (s)")
    panels[0].set_title(run.workload)
    if run.deployment.replicas > 1:
        panels[0].legend()
    # Without the date and with fixed ids, the same run gives the same bytes.
    with rc_context({"svg.hashsalt": "bursar", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def with_rests(begin_us: IntArray, end_us: IntArray, values: IntArray) -> tuple[IntArray, IntArray]:
    """The values at the begin of each step, and none at the end of one that was followed by a rest."""
    rests = np.flatnonzero(np.append(begin_us[1:] - end_us[:-1] > _REST_US, np.ones(min(1, len(end_us)), dtype=bool)))
    return np.insert(begin_us, rests + 1, end_us[rests]), np.insert(values, rests + 1, 0)


def peaks(at_us: IntArray, values: IntArray) -> tuple[IntArray, IntArray]:
    """At most two thousand points of a column in order of time: the highest value in each equal span of it."""
    if len(at_us) <= _POINTS_MAX:
        return at_us, values
    first, last = int(at_us[0]), int(at_us[-1])
    spans = (at_us - first) * _POINTS_MAX // (last - first + 1)
    begins = np.flatnonzero(np.diff(spans, prepend=-1))
    return at_us[begins], np.maximum.reduceat(values, begins)
