"""Requests that wait for the shared book: not beyond one moment, however often others are quicker."""

import asyncio
from pathlib import Path

from gateway import flow
from gateway.errors import GOVERNANCE_UNAVAILABLE, Refusal
from ledger.book import Route
from ledger.holds import Demand
from ledger.lease_keeper import FETCH_S, Fetched, LeaseKeeper
from ledger.leases import Leases
from ledger.shared_store import ServerClock, connect
from tests.gateway.one_worker import OneWorker, admitted, ask, budget

EACH_S = 0.15


class Beaten(LeaseKeeper):
    """A keeper whose every fetch brings what others take first."""

    asked: list[float]

    async def fetch(self, route: Route, demand: Demand, timeout_s: float = FETCH_S) -> Fetched:
        self.asked.append(timeout_s)
        await asyncio.sleep(EACH_S)
        return Fetched.READY


async def test_a_request_that_is_always_beaten_to_it_waits_no_longer_than_one_that_asks_once(tmp_path: Path) -> None:
    worker = OneWorker(tmp_path, sections={"budgets": [budget("tokens", 130)]})
    of = await worker.open()
    client, listener = connect("redis://127.0.0.1:1/0", 100, None)
    keeper = Beaten(of.book, Leases(of.book, "r0", 1, "n"), ServerClock(), client, listener)
    keeper.asked = []
    await admitted(of, max_output_tokens=80)
    of.keeper = keeper
    refused = await flow.admit(of, ask(of, max_output_tokens=80))
    assert isinstance(refused, Refusal)
    assert refused.kind is GOVERNANCE_UNAVAILABLE
    assert keeper.asked == sorted(keeper.asked, reverse=True)
    assert FETCH_S >= keeper.asked[0] > 0.9 * FETCH_S
    assert len(keeper.asked) <= FETCH_S / EACH_S + 1
    await worker.close()
