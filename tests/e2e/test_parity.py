"""The two engines are one: OPA and the embedded engine answer the same to every input, or both do not answer.

The inputs are drawn from a seed (`BURSAR_PARITY_SEED` for another, `BURSAR_PARITY_INPUTS` for more).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from policy.bundle import load
from policy.child import Child
from policy.opa import OpaEngine, OpaServer
from policy.opa_build import build
from policy.port import ADMISSION, SCORING, EngineAway, EvaluationError, Undefined
from tests import opa_server
from tests.e2e.policy_inputs import Inputs

SHIPPED = Path(__file__).resolve().parents[2] / "rego"
SEED = int(os.environ.get("BURSAR_PARITY_SEED", "1"))
INPUTS = int(os.environ.get("BURSAR_PARITY_INPUTS", "12000"))
INPUTS_MIN = 10_000
ADMISSION_SHARE = 0.5
TIMEOUT_MS = 20_000
AT_ONCE = 8
DRAWN_MAX = 20
SHOWN_MAX = 3
UNDEFINED = "undefined"
FAILED = "failed"


class Case(NamedTuple):
    """An input as it is asked, and what each engine said to it."""

    entry: str
    input_json: bytes
    opa: str
    embedded: str

    def __str__(self) -> str:
        return f"{self.entry} of {self.input_json.decode()}\n  OPA:      {self.opa}\n  embedded: {self.embedded}"


def distinct(drawn: Inputs, entry: str, count: int) -> list[bytes]:
    """So many inputs of an entry point, no two of them alike."""
    texts = (orjson.dumps(each, option=orjson.OPT_SORT_KEYS) for each in islice(drawn.of(entry), DRAWN_MAX * count))
    found: dict[bytes, None] = {}
    for each in texts:
        found[each] = None
        if len(found) == count:
            break
    return list(found)


@asynccontextmanager
async def engine_on(root: Path, folder: Path) -> AsyncIterator[OpaEngine]:
    """An OPA that serves the bundle in a folder."""
    file = folder / "bundle.tar.gz"
    revision = build(root, file, str(opa_server.binary())).revision
    with opa_server.OpaServer(paths=[file], are_bundles=True) as opa:
        engine = OpaEngine(OpaServer(opa.url, timeout_ms=TIMEOUT_MS, connections_max=AT_ONCE))
        try:
            await engine.poll()
            assert engine.revision == revision
            yield engine
        finally:
            await engine.close()


def text(value: Any) -> str:
    """The one JSON text of a value."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


async def opa_answers(engine: OpaEngine, entry: str, inputs: list[bytes]) -> list[str]:
    """What OPA says to each input."""
    answers = [""] * len(inputs)
    left = iter(enumerate(inputs))

    async def ask() -> None:
        for number, input_json in left:
            try:
                answers[number] = text((await engine.evaluate(entry, input_json)).value)
            except EngineAway:
                raise
            except Undefined:
                answers[number] = UNDEFINED
            except EvaluationError:
                answers[number] = FAILED

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return answers


def embedded_answers(root: Path, entry: str, inputs: list[bytes]) -> Iterator[str]:
    """What the embedded engine says to each input."""
    with Child.of(root) as child:
        for outcome in child.outcomes(entry, inputs):
            if not outcome.failure:
                yield text(outcome.value)
            else:
                yield UNDEFINED if "is undefined" in outcome.failure else FAILED


async def differences(root: Path, folder: Path, counts: dict[str, int]) -> tuple[list[Case], list[Case]]:
    """Every case, and those in which the engines differ."""
    drawn = Inputs(SEED, load(root).data)
    cases: list[Case] = []
    async with engine_on(root, folder) as engine:
        for entry, count in counts.items():
            inputs = distinct(drawn, entry, count)
            said = await opa_answers(engine, entry, inputs)
            ours = await asyncio.to_thread(lambda: list(embedded_answers(root, entry, inputs)))  # noqa: B023  awaited
            cases += [Case(entry, *each) for each in zip(inputs, said, ours, strict=True)]
    return cases, [case for case in cases if case.opa != case.embedded]


def shares(root: Path) -> dict[str, int]:
    """How many inputs each entry point of the bundle gets: half of them are admissions."""
    with Child.of(root) as child:
        entries = child.entries
    others = [entry for entry in entries if entry not in (ADMISSION, SCORING)]
    each = int(INPUTS * (1 - ADMISSION_SHARE)) // max(1, len(others))
    known = {ADMISSION: INPUTS - each * len(others), **dict.fromkeys(others, each)}
    return known | ({SCORING: 1} if SCORING in entries else {})  # it has no input


async def test_both_engines_say_the_same_to_every_input(tmp_path: Path) -> None:
    cases, differing = await differences(SHIPPED, tmp_path, shares(SHIPPED))
    assert len({(case.entry, case.input_json) for case in cases}) >= INPUTS_MIN
    shown = "\n".join(map(str, differing[:SHOWN_MAX]))
    assert differing == [], f"{len(differing)} of {len(cases)} differ, seed {SEED}:\n{shown}"
    for entry in {case.entry for case in cases}:
        answers = {case.opa for case in cases if case.entry == entry}
        assert answers - {UNDEFINED, FAILED}, entry
    admitted = sum('"allow":true' in case.opa for case in cases if case.entry == ADMISSION)
    assert 0.1 < admitted / sum(case.entry == ADMISSION for case in cases) < 0.9


async def test_a_bundle_on_which_they_differ_is_found_and_shown(tmp_path: Path) -> None:
    """The embedded engine compares texts by their JSON: a product of fractions prints differently, say."""
    rules = tmp_path / "rego" / "bursar" / "admission" / "admission.rego"
    rules.parent.mkdir(parents=True)
    rules.write_text(
        "package bursar.admission\n\nimport rego.v1\n\n"
        "decision := {\n"
        '\t"allow": input.risk.level == "normal",\n'
        '\t"reasons": [format_int(input.intent.run.depth / 3, 10)],\n'
        '\t"obligations": {"queue_ms_max": input.intent.run.depth / 3},\n'
        "}\n"
    )
    cases, differing = await differences(tmp_path / "rego", tmp_path, {ADMISSION: 200})
    assert len(cases) == 200
    assert differing
    first = str(differing[0])
    assert first.startswith(f"{ADMISSION} of {{")
    assert f"OPA:      {differing[0].opa}" in first
    assert f"embedded: {differing[0].embedded}" in first


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_draws_the_same_inputs(seed: int) -> None:
    tables = load(SHIPPED).data
    first, second, other = (list(islice(Inputs(each, tables).of(ADMISSION), 50)) for each in (seed, seed, seed + 7))
    assert first == second
    assert first != other
