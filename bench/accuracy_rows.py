"""How far the simulator is from the vLLM that it was calibrated on, over loads that nothing was fitted to."""

from dataclasses import replace

from rich.console import Console

from bench.accuracy import RESULTS, Asked, keep, measure
from bench.accuracy_tables import is_quiet, target
from bench.errors import MeasurementError
from bench.harness import Harness
from bench.row import Row
from bench.vllm_engine import SHAPES
from runtime.calibration.accuracy import METRICS


def errors(harness: Harness) -> list[Row]:
    """Mean errors over the loads that the engine keeps up with, beside what vLLM's own runs differ by."""
    found = measure(SHAPES[0], Asked(), Console(stderr=True))
    keep(RESULTS, found.shape.name, "accuracy", found.view())
    accuracy = found.of(saturated=False)
    if not is_quiet(accuracy):
        spread = accuracy.spreads["e2e"]
        raise MeasurementError(f"two runs of one load on vLLM differ by {spread:.0%} on average: is the machine quiet?")
    rows = []
    for metric in METRICS:
        bound = round(target(metric, accuracy), 4)
        row = Row.at_most(f"simulator_error_{metric}", "part of vLLM's mean", accuracy.errors[metric], bound)
        spread = round(accuracy.spreads[metric], 4)
        rows.append(replace(row, reference=spread, reference_name="vLLM, run to run"))
    return rows
