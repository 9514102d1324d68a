"""The tables of `docs/accuracy.md`, made of `build/accuracy.json` and never by hand."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.vllm_engine import SHAPES
from runtime.calibration.accuracy import METRICS, Accuracy, Compared, Figures

DOCS: Final = Path("docs") / "accuracy.md"
BEGIN: Final = "<!-- measured: python -m bench.accuracy writes what follows -->"
END: Final = "<!-- end of what is measured -->"
TARGETS: Final[Mapping[str, float]] = {"e2e": 0.07, "itl": 0.07, "ttft": 0.15}
SPREADS: Final = 1.5
"""A target is no less than so many times what two runs of the same load on vLLM differ by."""
QUIET_MAX: Final = 0.2
"""Where two runs of the same load differ by more on average, the machine was not quiet, and nothing is concluded."""
HIT_RATE_MAX: Final = 0.01


def target(metric: str, accuracy: Accuracy) -> float:
    """The most that the mean error of a metric may be."""
    return max(TARGETS[metric], SPREADS * accuracy.spreads[metric])


def is_quiet(accuracy: Accuracy) -> bool:
    """Whether vLLM's own runs agree well enough for a verdict."""
    return accuracy.spreads["e2e"] <= QUIET_MAX


def write_docs(kept: Mapping[str, Mapping[str, Any]], docs: Path = DOCS) -> None:
    """Put the tables between their marks; ValueError where the page has none."""
    text = docs.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{docs} has no place for the tables: it needs the lines {BEGIN} and {END}")
    tables = "\n".join(line for name, parts in kept.items() for line in _shape(name, parts))
    docs.write_text(f"{head}{BEGIN}\n\n{coverage(kept)}\n\n{tables}\n{END}{tail}", encoding="utf-8")


def coverage(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """Of what there are tables and of what there are none, in a line."""
    asked = [(f"accuracy on {shape.name}", shape.name, "accuracy") for shape in SHAPES]
    asked.append(("ranking of configurations", SHAPES[0].name, "ranking"))
    done = [label for label, shape, part in asked if part in kept.get(shape, {})]
    lacking = [label for label, shape, part in asked if part not in kept.get(shape, {})]
    said = f"Measured: {', '.join(done) or 'nothing yet'}."
    return f"{said} Not measured, so without a table: {', '.join(lacking)}." if lacking else said


def _shape(name: str, parts: Mapping[str, Any]) -> Iterator[str]:
    measured = parts.get("accuracy")
    if measured is not None:
        yield from _accuracy(name, measured)
    ranked = parts.get("ranking")
    if ranked is not None:
        yield from _ranking(name, ranked)


def _accuracy(name: str, measured: Mapping[str, Any]) -> Iterator[str]:
    shape, engine = measured["shape"], measured["calibration"]["engine"]
    day = datetime.fromtimestamp(measured["measured_unix_s"], UTC).date()
    compared = [_compared(each) for each in measured["loads"]]
    runs = min(len(each.runs) for each in compared)
    yield f"## {name}: {shape['layers']} layers of {shape['hidden']}"
    yield ""
    yield (
        f"{engine['engine']} on {engine['device']} ({measured['cores']} cores), {day}, {runs} runs of each load, "
        f"`max_num_seqs` {engine['knobs']['max_num_seqs']}, `max_num_batched_tokens` "
        f"{engine['knobs']['max_num_batched_tokens']}; of each load 95 % of the requests left within "
        f"{measured['lag_us'] / 1e3:.1f} ms of their time."
    )
    for saturated in (False, True):
        part = [each for each in compared if each.saturated == saturated]
        if part:
            yield ""
            yield "Saturated loads:" if saturated else "Loads that the engine keeps up with:"
            yield ""
            yield from _table(part, saturated=saturated)
    yield ""


def _table(compared: list[Compared], *, saturated: bool) -> Iterator[str]:
    yield (
        "| load | "
        + " | ".join(f"{metric.upper()} vLLM | simulated | error | spread" for metric in METRICS)
        + " | hit rate vLLM | simulated |"
    )
    yield "|" + " --- |" * (1 + 4 * len(METRICS) + 2)
    for each in compared:
        cells = [each.load]
        for metric in METRICS:
            measured = sum(run.value(metric) for run in each.runs) / len(each.runs)
            cells += [
                _ms(measured),
                _ms(each.simulated.value(metric)),
                _percent(each.error(metric)),
                _percent(each.spread(metric)),
            ]
        hit_rate = sum(run.hit_rate for run in each.runs) / len(each.runs)
        cells += [_percent(hit_rate), _percent(each.simulated.hit_rate)]
        yield "| " + " | ".join(cells) + " |"
    accuracy = Accuracy.of(compared)
    means = ["**mean**"]
    for metric in METRICS:
        means += ["", "", f"**{_percent(accuracy.errors[metric])}**", _percent(accuracy.spreads[metric])]
    yield "| " + " | ".join([*means, "", f"{accuracy.hit_rate * 100:.2f} points apart"]) + " |"
    if saturated:
        return
    yield ""
    if not is_quiet(accuracy):
        yield "vLLM's own runs differ by too much for a verdict: the machine was not quiet."
        return
    verdicts = [
        f"{metric.upper()} {_percent(accuracy.errors[metric])} of at most {_percent(target(metric, accuracy))}: "
        f"{'met' if accuracy.errors[metric] <= target(metric, accuracy) else '**not met**'}"
        for metric in METRICS
    ]
    met = "met" if accuracy.hit_rate <= HIT_RATE_MAX else "**not met**"
    yield (
        "; ".join(
            [*verdicts, f"hit rate {accuracy.hit_rate * 100:.2f} of at most {HIT_RATE_MAX * 100:g} points: {met}"]
        )
        + "."
    )


def _ranking(name: str, ranked: Mapping[str, Any]) -> Iterator[str]:
    day = datetime.fromtimestamp(ranked["measured_unix_s"], UTC).date()
    met = "met" if ranked["tau"] >= ranked["tau_min"] else "**not met**"
    yield f"## {name}: ranking of configurations"
    yield ""
    yield (
        f"{day}, {len(ranked['configurations'])} configurations, {ranked['runs']} runs of one load each. By the mean "
        f"of whole answers, over the {ranked['pairs']} pairs whose difference exceeds the noise, Kendall's τ is "
        f"**{ranked['tau']:.3f}** (at least {ranked['tau_min']:g}: {met})."
    )
    yield ""
    yield "| configuration | vLLM | noise | simulated |"
    yield "| --- | --- | --- | --- |"
    for each in sorted(ranked["configurations"], key=lambda one: float(one["measured_us"])):
        knobs = ", ".join(f"{knob} {value}" for knob, value in each["knobs"].items())
        yield f"| {knobs} | {_ms(each['measured_us'])} | {_ms(each['noise_us'])} | {_ms(each['simulated_us'])} |"
    yield ""


def _compared(view: Mapping[str, Any]) -> Compared:
    runs = tuple(Figures(**run) for run in view["runs"])
    return Compared(view["load"], view["saturated"], runs, Figures(**view["simulated"]))


def _ms(us: float) -> str:
    return f"{us / 1_000:,.1f} ms"


def _percent(part: float) -> str:
    return f"{part:.1%}"
