"""A thousand streams held at once, against five nested budgets that can hold a third of them: nothing leaks."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ledger.client import LedgerClient, running
from tests.e2e import nest, records
from tests.e2e.crowd import Fate, OpenCrowd, opened
from tests.load.instance import Instance

BUDGETS = {"org-day-cost", "team-month-tokens", "app-slots", "app-total-output", "key-total-requests"}
TIME_SCALE = 0.06
HOLD_TTL_S = 5
SWEEP_S = 1.0
NOISE_S = 2.0
WAIT_S = 60.0
POLL_S = 0.1
ENDED_BEFORE_THE_KILL = 10


@dataclass(frozen=True)
class Sample:
    """The book at one moment: how many holds are open, and every counter."""

    open_holds: int
    counters: list[dict[str, Any]]

    @classmethod
    async def of(cls, instance: Instance) -> "Sample":
        counters = await asyncio.to_thread(instance.counters)
        holds = await asyncio.to_thread(instance.ask, "/admin/holds")
        return cls(holds["open"], counters)

    @property
    def overspent(self) -> list[str]:
        """The counters whose limit is passed."""
        return [str(each) for each in self.counters if each["spent"] + each["held"] > each["limit"]]

    def held(self, budget: str) -> int:
        """What all counters of a budget hold."""
        return sum(each["held"] for each in self.counters if each["budget"] == budget)


def crowd(instance: Instance, *, ignore_eos: bool) -> AbstractAsyncContextManager[OpenCrowd]:
    """A process that opens the thousand streams of the nest at the same moment."""
    secrets = [_secret(instance, caller) for caller in nest.CALLERS]
    bodies = nest.bodies(ignore_eos=ignore_eos)
    return opened(instance.url, [{"secret": secrets[index], "body": body} for index, body in bodies])


def _secret(instance: Instance, caller: nest.Caller) -> str:
    asked = {"org": "acme", "team": caller.team, "app": caller.app}
    secret: str = instance.ask("/admin/keys", json.dumps(asked).encode())["secret"]
    return secret


async def sample_until(instance: Instance, is_over: Callable[[Sample], bool]) -> list[Sample]:
    """Samples of the book, the last being the first of which `is_over`."""
    samples: list[Sample] = []
    deadline_s = time.monotonic() + WAIT_S
    while not samples or not is_over(samples[-1]):
        assert time.monotonic() < deadline_s, f"still {samples[-1].open_holds} holds open after {WAIT_S} s"
        samples.append(await Sample.of(instance))
        await asyncio.sleep(POLL_S)
    return samples


def flushed(home: Path) -> LedgerClient:
    """The ledger of an instance, with all that is in the journal now."""
    ledger = running(home)
    assert ledger is not None
    ledger.flush()
    return ledger


def refusal_fault(fate: Fate) -> str | None:
    """What is wrong with a refusal by a budget, or None."""
    error = (fate.error or {}).get("error", {})
    code = error.get("code")
    hints = (error.get("type"), fate.retry_after is not None, fate.should_retry)
    right = {
        "insufficient_quota": ("insufficient_quota", False, "false"),
        "rate_limit_exceeded": ("requests", True, None),
    }
    if fate.status != 429 or not fate.request_id or not error.get("message") or "param" not in error:
        return f"not a refusal in OpenAI's shape: {fate}"
    return None if right.get(code) == hints else f"code and headers do not go together: {fate}"


@pytest.mark.usefixtures("away_from_midnight")
async def test_no_budget_is_overspent_no_hold_leaks_and_each_request_has_one_row(tmp_path: Path) -> None:
    """All that are admitted are held at the same time, and they are as many as the budgets have places."""
    config = tmp_path / "bursar.yaml"
    nest.write_config(config, hold_ttl_s=60, time_scale=TIME_SCALE)
    with Instance(tmp_path / "home", config) as instance:
        async with crowd(instance, ignore_eos=True) as run:
            samples = await sample_until(instance, lambda sample: run.fates.done() and not sample.open_holds)
            fates = await run.fates

        admitted = [fate for fate in fates if fate.status == 200]
        refused = [fate for fate in fates if fate.status != 200]
        assert (len(admitted), len(refused)) == (nest.places(), 1000 - nest.places())
        assert all(fate.ended for fate in admitted)
        assert max(fate.answered_s for fate in fates) < min(fate.over_s for fate in admitted)
        assert [fault for fate in refused if (fault := refusal_fault(fate))] == []
        assert {fate.error["error"]["bursar"]["budget"] for fate in refused} <= BUDGETS

        assert [sample.overspent for sample in samples if sample.overspent] == []
        # A sample's counters are read before its holds, which may have been opened in between.
        fullest = max(samples, key=lambda sample: (sample.open_holds, sample.held("org-day-cost")))
        assert (fullest.open_holds, fullest.held("org-day-cost")) == (nest.places(), nest.places() * nest.COST_NUSD)
        assert {counter["budget"] for counter in fullest.counters if counter["held"] == counter["limit"]} == BUDGETS

        ledger = flushed(tmp_path / "home")
        rows = {row["request_id"]: row for row in records.usage(ledger)}
        assert sorted(rows) == sorted(fate.request_id for fate in fates)
        assert {rows[fate.request_id]["status"] for fate in admitted} == {"ok"}
        assert {rows[fate.request_id]["certainty"] for fate in admitted} == {"exact"}
        assert {rows[fate.request_id]["status"] for fate in refused} == {"refused"}
        assert records.ledger_faults(ledger) == []
        assert records.counter_faults(ledger, instance.counters, int(time.time())) == []


@pytest.mark.usefixtures("away_from_midnight")
async def test_a_kill_in_the_middle_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Holds that the dead worker left are charged in full once their time is up, and counters equal the rows' sums."""
    config = tmp_path / "bursar.yaml"
    nest.write_config(config, hold_ttl_s=HOLD_TTL_S, time_scale=TIME_SCALE)
    with Instance(tmp_path / "home", config) as instance:
        async with crowd(instance, ignore_eos=False) as run:
            await asyncio.wait_for(run.answered, WAIT_S)
            first = await Sample.of(instance)
            few = first.open_holds - ENDED_BEFORE_THE_KILL
            before = await sample_until(instance, lambda sample: sample.open_holds <= few)
            os.kill(instance.gateway_pid, signal.SIGKILL)
            killed_s = time.monotonic()
            await asyncio.to_thread(instance.await_gateway)
            ready_s = time.monotonic()
            after = await sample_until(instance, lambda sample: not sample.open_holds)
            cleared_s = time.monotonic()
            fates = await asyncio.wait_for(run.fates, WAIT_S)

        assert cleared_s <= max(killed_s + HOLD_TTL_S, ready_s) + SWEEP_S + NOISE_S
        assert [sample.overspent for sample in [first, *before, *after] if sample.overspent] == []

        ledger = flushed(tmp_path / "home")
        rows = {row["request_id"]: row for row in records.usage(ledger)}
        assert sorted(rows) == sorted(fate.request_id for fate in fates)
        whole = [rows[fate.request_id]["status"] for fate in fates if fate.ended]
        broken = [rows[fate.request_id]["status"] for fate in fates if fate.status == 200 and not fate.ended]
        refused = [rows[fate.request_id]["status"] for fate in fates if fate.status == 429]
        assert len(whole) >= ENDED_BEFORE_THE_KILL
        assert len(whole) + len(broken) + len(refused) == 1000
        assert (set(whole), set(broken), set(refused)) == ({"ok"}, {"expired"}, {"refused"})

        holds = records.opened(ledger)
        settled = {row["hold_id"]: row for row in rows.values() if row["hold_id"]}
        assert sorted(settled) == sorted(holds)
        expired = [row for row in settled.values() if row["status"] == "expired"]
        assert {row["certainty"] for row in expired} == {"at_most"}
        charged = {row["hold_id"]: records.amounts(row) for row in expired}
        assert charged == {hold_id: records.expired_amounts(holds[hold_id]) for hold_id in charged}
        assert records.ledger_faults(ledger) == []
        assert records.counter_faults(ledger, instance.counters, int(time.time())) == []
