"""Exposition: metric families as Prometheus' text format, with integers as integers.

prometheus_client's own writer turns every value into a float, which rounds nano-USD above 2^53, and takes more than
twice as long, which the event loop would feel at every scrape.
"""

import math
from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# An OpenMetrics type that the text format lacks, and the suffix its samples carry.
SUFFIXES = {"counter": "_total", "info": "_info"}
TYPES = {"info": "gauge", "unknown": "untyped"}

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def expose(families: Iterable[Metric]) -> bytes:
    """The families in the text format, of type `CONTENT_TYPE`; touches nothing else, so any thread may do it."""
    lines = []
    for family in families:
        name = family.name + SUFFIXES.get(family.type, "")
        lines.append(f"# HELP {name} {family.documentation.translate(_HELP_ESCAPES)}\n")
        lines.append(f"# TYPE {name} {TYPES.get(family.type, family.type)}\n")
        for sample in family.samples:
            value = sample.value
            shown = str(value) if type(value) is int else _number(value)
            if sample.labels:
                labels = ",".join([f'{key}="{text.translate(_ESCAPES)}"' for key, text in sample.labels.items()])
                lines.append(f"{sample.name}{{{labels}}} {shown}\n")
            else:
                lines.append(f"{sample.name} {shown}\n")
    return "".join(lines).encode("utf-8")


def _number(value: float) -> str:
    """A float as Go, and so Prometheus, reads it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))
