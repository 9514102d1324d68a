"""What a decision costs that an OPA server makes: the time it takes over loopback, of inputs not seen before."""

import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import uvloop

from bench.errors import MeasurementError
from bench.harness import Harness
from bench.row import Row
from bench.teams import bundle, inputs
from policy.decider import Decider
from policy.opa import OpaEngine, OpaServer
from policy.opa_build import build
from tests import opa_server

ROUNDS: Final = 5
WARM_UP: Final = 1_000
MISSES: Final = 2_000
TARGET_MS: Final = 3.0
TIMEOUT_MS: Final = 5_000
# As docs/opa.md runs it: Go then collects its garbage a quarter as often, which is what a p99 of it is made of.
ENVIRON: Final = {"GOGC": "400"}


def misses(harness: Harness) -> list[Row]:
    """The 99th percentile of a decision of the shipped rules over a table of 100 teams, the median of rounds."""
    return misses_of(WARM_UP, MISSES, ROUNDS)


def misses_of(warm_up: int, misses: int, rounds: int) -> list[Row]:
    """The same, of so many decisions in so many rounds."""
    try:
        binary = str(opa_server.binary())
    except opa_server.OpaMissing as error:
        raise MeasurementError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bundle.tar.gz")
        build(bundle(Path(folder, "rego")), file, binary)
        with opa_server.OpaServer(paths=[file], are_bundles=True, environ=ENVIRON) as opa:
            p99_ms = uvloop.run(_p99_ms(opa.url, warm_up, misses, rounds))
    return [Row.at_most("policy_opa_miss_p99_ms", "ms", p99_ms, TARGET_MS)]


async def _p99_ms(url: str, warm_up: int, misses: int, rounds: int) -> float:
    engine = OpaEngine(OpaServer(url, timeout_ms=TIMEOUT_MS))
    await engine.poll()
    decider = Decider(engine)
    asked = inputs()
    for _ in range(warm_up):
        await decider.decide(next(asked))
    p99s_ms = []
    for _ in range(rounds):
        took_ns = []
        for _ in range(misses):
            given = next(asked)
            began_ns = time.perf_counter_ns()
            decision = await decider.decide(given)
            took_ns.append(time.perf_counter_ns() - began_ns)
            if not decision.allow:
                raise MeasurementError(f"OPA refused {given}: {decision.reasons}")
        p99s_ms.append(quantiles(took_ns, n=100)[98] / 1e6)
    await engine.close()
    if decider.misses != warm_up + misses * rounds:
        raise MeasurementError(f"{decider.misses} of {warm_up + misses * rounds} decisions were asked of OPA")
    return median(p99s_ms)
