"""The accounts of a runtime with several engines: each is on the clock by itself, and each row adds up."""

from pathlib import Path
from typing import Any

import pytest

from gateway.engine_accounts import DONE_MAX, EngineAccounts
from gateway.offers import Runtime
from runtime.attribution.engine import REST_LAG_US
from runtime.attribution.shares import Totals
from runtime.telemetry.writer import TelemetryWriter

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1}
SECOND_US = 1_000_000
BEGAN_US = 1_700_000_000_000_000


class Served:
    """A runtime with so many engines, of which the first computes one step after another; all look at one clock."""

    def __init__(self, folder: Path, engines: int) -> None:
        self.folder = folder
        self.now_us = BEGAN_US
        self.writers = [self.start(index) for index in range(engines)]
        self.writers[0].join(0, "r", 40, 0, 0)

    def start(self, index: int, **facts: Any) -> TelemetryWriter:
        return TelemetryWriter(self.folder, f"engine-{index}", FACTS | facts, clock_us=lambda: self.now_us)

    def go_on(self, seconds: int) -> None:
        for _ in range(10 * seconds):
            self.now_us += SECOND_US // 10
            self.writers[0].step(self.now_us - SECOND_US // 10, self.now_us, 5, 1, 0)


def accounts_of(folder: Path, account_from_us: dict[str, int] | None = None, **settings: Any) -> EngineAccounts:
    runtime = Runtime(id="v", owner="o", url="http://127.0.0.1:1", telemetry="t", **settings)
    return EngineAccounts(runtime, folder, account_from_us or {})


async def row(served: Served, accounts: EngineAccounts, shown: int, *, is_busy: bool = True) -> tuple[int, Totals]:
    """What a sample at this time says."""
    await accounts.poll(served.now_us)
    accounts.rest(served.now_us, shown, is_busy=is_busy)
    return accounts.since_asked()


async def test_an_engine_that_is_idle_beside_a_busy_one_is_idle_in_each_row(tmp_path: Path) -> None:
    served, rows = Served(tmp_path, 3), []
    accounts = accounts_of(tmp_path)
    for _ in range(4):
        served.go_on(10)
        rows.append(await row(served, accounts, 3))
    first_us, *later_us = [new.idle_us for _, new in rows]
    assert first_us == 2 * (10 * SECOND_US - REST_LAG_US)
    assert later_us == [20 * SECOND_US] * 3
    for accelerators, new in rows:
        assert accelerators == 3
        assert abs(new.capacity_us - accelerators * new.wall_us) <= accelerators
        assert new.busy_us == 10 * SECOND_US
    assert [new.wall_us for _, new in rows[1:]] == [10 * SECOND_US] * 3
    assert accounts.totals().capacity_us == sum(new.capacity_us for _, new in rows)


async def test_a_restart_goes_on_where_each_engine_was_accounted(tmp_path: Path) -> None:
    served = Served(tmp_path, 2)
    accounts = accounts_of(tmp_path)
    served.go_on(10)
    _, before = await row(served, accounts, 2)
    kept = accounts.known_until_us()
    served.go_on(5)
    again = accounts_of(tmp_path, kept | {"engine-7": 7})
    await again.poll(served.now_us)
    assert again.known_until_us()["engine-1"] == kept["engine-1"], "nothing was said of it since"
    assert again.known_until_us()["engine-7"] == 7, "its file may come back"
    served.go_on(5)
    _, after = await row(served, again, 2)
    assert before.busy_us + after.busy_us == 20 * SECOND_US
    assert before.idle_us + after.idle_us == 20 * SECOND_US - REST_LAG_US


async def row_and_level(served: Served, accounts: EngineAccounts) -> tuple[Totals, int]:
    """What a sample at this time says, and the busy time in flight that stands beside it."""
    _, new = await row(served, accounts, 1)
    return new, sum(account.in_flight_us for account in accounts.accounts.values())


@pytest.mark.parametrize("is_seen", [False, True])
async def test_what_was_in_flight_when_engine_and_gateway_were_killed_together_is_attributed_once(
    tmp_path: Path, is_seen: bool
) -> None:
    """Whether the gateway had a row of the engine's new start before it ended, or not."""
    served, accounts, rows = Served(tmp_path, 1), accounts_of(tmp_path), []
    served.go_on(10)
    rows.append(await row_and_level(served, accounts))
    assert rows[0][1] == 10 * SECOND_US
    served.now_us += 60 * SECOND_US
    if is_seen:
        served.writers = [served.start(0)]
        rows.append(await row_and_level(served, accounts))
    again = accounts_of(tmp_path, accounts.known_until_us())
    if not is_seen:
        await again.poll(served.now_us)
        served.writers = [served.start(0)]
    (claim,) = await again.poll(served.now_us)
    share = claim.share
    assert (share.gpu_us, share.certainty, share.is_replayed) == (10 * SECOND_US, "at_least", is_seen)
    rows.append(await row_and_level(served, again))
    served.writers[0].join(0, "s", 40, 0, 0)
    served.go_on(5)
    rows.append(await row_and_level(served, again))
    before_us = 0
    for new, level_us in rows:
        assert new.busy_us == new.attributed_us + new.unattributed_us + level_us - before_us
        assert new.capacity_us == new.busy_us + new.idle_us + new.lost_us
        before_us = level_us
    assert sum(new.attributed_us for new, _ in rows) == 10 * SECOND_US
    assert sum(new.wall_us for new, _ in rows) == 15 * SECOND_US, "the time that it was away is nobody's"


async def test_an_engine_of_a_run_that_was_killed_and_came_back_with_fewer_is_in_no_account(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 2), accounts_of(tmp_path)
    served.writers[1].join(0, "killed", 40, 0, 0)
    served.writers[1].step(served.now_us, served.now_us + SECOND_US, 5, 1, 0, [(0, 40)])
    served.go_on(10)
    await row(served, accounts, 2)
    served.now_us += 30 * SECOND_US
    served.writers = [served.start(0)]
    served.writers[0].join(0, "s", 40, 0, 0)
    await row(served, accounts, 1)
    (claim,) = await accounts.poll(served.now_us)
    share = claim.share
    assert (share.request_id, share.gpu_us, share.certainty) == ("killed", SECOND_US, "at_least")
    for _ in range(2):
        served.go_on(10)
        accelerators, new = await row(served, accounts, 1)
        assert (accelerators, new.wall_us, new.capacity_us, new.idle_us) == (1, *[10 * SECOND_US] * 2, 0)
    assert accounts.told_until_us == served.now_us - SECOND_US // 10, "nobody waits for what it will never compute"
    assert set(accounts.known_until_us()) == {"engine-0", "engine-1"}, "its file is still there after a restart"


async def test_what_a_runtime_showed_before_it_was_started_anew_takes_nobody_for_gone(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 1), accounts_of(tmp_path)
    served.go_on(10)
    await row(served, accounts, 1)
    served.writers = [served.start(0)]
    served.writers[0].join(0, "s", 40, 0, 0)
    served.writers[0].step(served.now_us, served.now_us + 10, 5, 1, 0, [(0, 40)])
    served.now_us += SECOND_US
    served.start(1)
    assert [claim.share.request_id for claim in await accounts.poll(served.now_us)] == ["r"], "and not of the new run"
    assert accounts.knows("s")


async def test_an_engine_that_comes_back_has_an_account_again(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 2), accounts_of(tmp_path)
    served.go_on(10)
    served.writers[0] = served.start(0)
    served.writers[0].join(0, "s", 40, 0, 0)
    served.go_on(10)
    assert (await row(served, accounts, 1))[0] == 1
    served.writers[1] = served.start(1)
    served.go_on(10)
    accelerators, new = await row(served, accounts, 2)
    assert (accelerators, new.idle_us) == (2, 10 * SECOND_US - REST_LAG_US)


async def test_where_requests_run_of_which_no_engine_has_told_nobody_is_idle(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 1), accounts_of(tmp_path)
    served.now_us += 60 * SECOND_US
    assert (await row(served, accounts, 1, is_busy=True))[1].wall_us == 0
    assert (await row(served, accounts, 1, is_busy=False))[1].idle_us == 60 * SECOND_US - REST_LAG_US


async def test_nobody_is_idle_up_to_a_time_at_which_the_telemetry_was_not_read(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 1), accounts_of(tmp_path)
    served.now_us += 60 * SECOND_US
    await accounts.poll(served.now_us)
    for _ in range(2):
        accounts.rest(served.now_us, 1, is_busy=False)
        assert accounts.totals().idle_us == 60 * SECOND_US - REST_LAG_US
        served.now_us += 60 * SECOND_US


async def test_an_engine_that_ended_by_itself_has_no_more_accelerators(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 2), accounts_of(tmp_path)
    served.writers[1].close()
    served.go_on(10)
    assert (await row(served, accounts, 2))[0] == 1
    served.writers[0].close()
    await row(served, accounts, 2)
    assert accounts.accelerators() == 2, "so many it had"


async def test_times_that_no_engine_can_have_are_left_out_of_a_row_and_said(tmp_path: Path) -> None:
    served, accounts = Served(tmp_path, 2), accounts_of(tmp_path)
    served.go_on(10)
    with (tmp_path / "engine-1.0.jsonl").open("ab") as file:
        for session in range(1_000):
            facts = b'{"accelerators":100000}'
            file.write(b'["open",1,"engine-1","s%d",0,1,%s]\n["close",%d]\n' % (session, facts, (1 << 53) - 1))
    _, new = await row(served, accounts, 2)
    assert max(map(abs, new[1:])) < DONE_MAX
    assert (new.busy_us, new.losses, accounts.lost) == (10 * SECOND_US, 1, {"impossible": 1})
    assert accounts.totals().capacity_us > 1 << 63, "the ledger has no room for it"


@pytest.mark.parametrize("version", ["2", '"2b"', "null"])
async def test_telemetry_of_another_version_is_said_with_what_to_do(tmp_path: Path, version: str) -> None:
    served, accounts = Served(tmp_path, 1), accounts_of(tmp_path, gpus=4)
    segment = tmp_path / "engine-0.0.jsonl"
    segment.write_text(segment.read_text().replace('["open",1,', f'["open",{version},', 1))
    served.go_on(1)
    accelerators, new = await row(served, accounts, 1)
    shown = {"2": "2", '"2b"': "'2b'", "null": "None"}[version]
    assert accounts.trouble == f"engine-0 tells in version {shown}, and this Bursar reads 1: install its plugin"
    assert (accelerators, new.capacity_us, accounts.told_accelerators()) == (4, 0, 0)
    served.start(0)
    await row(served, accounts, 1)
    assert accounts.trouble == ""
