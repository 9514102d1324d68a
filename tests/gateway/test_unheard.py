"""Unheard: who was charged and never computed is found a few at a time, and only once the engine has gone on."""

from pathlib import Path

from gateway.engine_accounts import EngineAccounts
from gateway.offers import Runtime
from gateway.unheard import AT_ONCE, UNHEARD_MAX, Unheard
from runtime.telemetry.writer import TelemetryWriter

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1, "knobs": {}}


async def test_of_thousands_so_many_are_told_at_once_and_the_rest_is_not_looked_at(tmp_path: Path) -> None:
    runtime = Runtime(id="v", owner="o", url="http://127.0.0.1:9", telemetry="told")
    engines, told = EngineAccounts(runtime, tmp_path, {}), TelemetryWriter(tmp_path, "engine-0", FACTS)
    at, unheard = {"v": engines}, Unheard()
    told.step(1_000, 1_500, 5, 0, 0, [])
    await engines.poll(2_000)
    row = {"runtime": "v", "certainty": "at_most", "gpu_us": 1}
    for number in range(UNHEARD_MAX):
        unheard.take({**row, "request_id": str(number), "ts_us": 2_000 + number}, at)
    assert unheard.never_computed(at, at) == []
    told.step(3_001 + AT_ONCE, 3_002 + AT_ONCE, 5, 0, 0, [])
    await engines.poll(4_000)
    assert unheard.never_computed(at, ()) == [], "an engine that goes by other ids tells nothing by its silence"
    found = [unheard.never_computed(at, at) for _ in range(5)]
    assert [len(each) for each in found] == [AT_ONCE, AT_ONCE, AT_ONCE, 1, 0]
    assert found[0][0] == ("v", "0")
    assert len(unheard._settled["v"]) == UNHEARD_MAX - 3 * AT_ONCE - 1
    assert (unheard.never_computed({}, ()), unheard._settled) == ([], {}), "of a runtime that is gone nothing is kept"
