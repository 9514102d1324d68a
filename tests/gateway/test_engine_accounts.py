"""The accounts of one runtime: what keeps them from being known is said, and no folder keeps a poll from its end."""

import os
from pathlib import Path
from typing import Any

from gateway.engine_accounts import READ_BYTES, READS_MAX, EngineAccounts
from gateway.offers import Runtime
from runtime.power import Power, Reading
from runtime.telemetry.writer import TelemetryWriter

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1}
NOW_US = 1_700_000_000_000_000


def accounts_of(folder: Path, **settings: Any) -> EngineAccounts:
    return EngineAccounts(Runtime(id="v", owner="o", url="http://127.0.0.1:1", telemetry="t", **settings), folder, {})


async def test_a_file_without_an_end_does_not_keep_a_poll_from_its_own(tmp_path: Path) -> None:
    (tmp_path / "engine-0.0.jsonl").touch()
    os.truncate(tmp_path / "engine-0.0.jsonl", 1 << 40)
    accounts = accounts_of(tmp_path)
    for _ in range(1 + (4 << 20) // (READ_BYTES * READS_MAX)):
        assert await accounts.poll(NOW_US) == []
    assert accounts.lost == {"long": 1}


async def test_what_a_poll_leaves_the_next_one_reads(tmp_path: Path) -> None:
    engine = TelemetryWriter(tmp_path, "engine-0", FACTS, clock_us=lambda: NOW_US)
    for number in range(60_000):
        engine.step(NOW_US + 10 * number, NOW_US + 10 * number + 9, 5, 1, 0)
    accounts = accounts_of(tmp_path)
    await accounts.poll(NOW_US)
    assert 0 < accounts.totals().steps < 60_000
    while accounts.totals().steps < 60_000:
        await accounts.poll(NOW_US)
    assert accounts.totals().busy_us == 9 * 60_000


async def test_a_poll_of_several_reads_asks_once_what_the_devices_drew(tmp_path: Path) -> None:
    used_mj = iter([0, 3_000])
    accounts = accounts_of(tmp_path)
    accounts.power = Power(0, lambda: meter)

    class Meter:
        def read(self) -> Reading:
            return Reading(next(used_mj), 1_000)

    meter = Meter()
    await accounts.poll(NOW_US)
    engine = TelemetryWriter(tmp_path, "engine-0", FACTS, clock_us=lambda: NOW_US)
    for number in range(10_000):
        engine.step(NOW_US + 1_000 * number, NOW_US + 1_000 * (number + 1), 5, 1, 0)
    assert (tmp_path / "engine-0.0.jsonl").stat().st_size > READ_BYTES
    await accounts.poll(NOW_US + 10_000_000)
    assert accounts.totals().energy_uj == 3_000_000


async def test_what_keeps_time_from_being_known_is_said_until_it_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "told"
    accounts = accounts_of(folder)
    said = []

    async def look() -> None:
        await accounts.poll(NOW_US)
        said.append(accounts.trouble)

    await look()
    folder.mkdir()
    (folder / "engine-0.0.jsonl").symlink_to("/dev/zero")
    await look()
    (folder / "engine-0.0.jsonl").unlink()
    TelemetryWriter(folder, "engine-0", FACTS | {"off": "prompts are streamed"}).close()
    await look()
    TelemetryWriter(folder, "engine-0", FACTS)
    await look()
    missing, unreadable, off, nothing = said
    assert missing == f"there is no folder {folder} that can be read"
    assert unreadable.startswith(f"{folder / 'engine-0.0.jsonl'} cannot be read: ")
    assert (off, nothing) == ("engine-0 is not metered: prompts are streamed", "")
