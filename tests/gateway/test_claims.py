"""Claims: what a runtime says a request took reaches its row, its budgets and nobody else's, once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domain.ids import uuid7
from domain.prices import GpuRate
from gateway import flow
from gateway.adjustments import Adjustments
from gateway.admission import Admitted
from gateway.claims import FLUSH_US, Claim, Claims, bursar_id
from gateway.controls import Controls
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.keys import KeyStore
from gateway.metering import Observed
from gateway.token_checks import SETTLES_US
from ledger.holds import Hold
from runtime.attribution.shares import Share
from runtime.openai.usage import Report
from tests.gateway.one_worker import NOON_US, US, OneWorker, admitted, budget

RATE = GpuRate(nusd_per_hour=2_500_000_000)
BUDGETS = [
    budget("tokens", 10_000),
    budget("gpu", 10**12, "total", "gpu_us"),
    budget("gpu-cost", 10**15, "total", "gpu_cost_nusd"),
    budget("slots", 5, "total", "concurrency"),
]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS})
    yield worker
    await worker.close()


class Ledger:
    """Answers a look-up with rows of the journal, as the ledger has them: those of the last flush."""

    def __init__(self, worker: OneWorker) -> None:
        self.worker = worker
        self.asked = 0
        self.flushed: list[dict[str, Any]] = []

    def flush(self) -> None:
        self.flushed = self.worker.records("usage")

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        self.asked += 1
        wanted = {value for name, value in parameters.items() if name != "writer"}
        counts = (("gpu", "gpu_us"), ("cost", "gpu_cost_nusd"), ("input", "input_tokens"), ("cached", "cached"))
        return [
            {
                **{name: value for name, value in row.items() if name != "charges"},
                **{short: str(row.get(name, 0)) for short, name in (*counts, ("output", "output_tokens"))},
                "charges": [[*charge[:4], str(charge[4])] for charge in row["charges"]],
            }
            for row in self.flushed
            if row["request_id"] in wanted
        ]


def claims_of(worker: OneWorker, of: Governance, ledger: Ledger | None = None) -> Claims:
    controls = Controls(of.book, of.journal, KeyStore(worker.home.keys), of.now_us)

    def record(row: dict[str, Any]) -> None:
        of.sequences.append(of.journal, row["org"], row)

    adjusting = Adjustments(of.book, of.journal, record, controls, of.announce_crossings)
    return Claims(of, adjusting, lambda: ledger)  # type: ignore[arg-type,return-value]  # as far as it is asked


def share(request_id: str, gpu_us: int, **more: Any) -> Claim:
    counts = {"prompt_tokens": 40, "cached_tokens": 0, "prefill_tokens": 40, "decode_tokens": 9, "output_tokens": 10}
    usual = {"energy_uj": 0, "kv_block_us": 77, "queue_us": 5, **counts, "answers": 1, "preemptions": 0}
    rest = {"reason": "finished", "certainty": "exact", "is_replayed": False}
    return Claim("fake", Share(request_id, gpu_us, **{**usual, **rest, **more}), "estimated", RATE)


def settle(of: Governance, call: Admitted, status: str = "ok", **seen: Any) -> str:
    observed = {"is_complete": True, "report": Report(40, 0, 10, 0), **seen}
    flow.settle(of, call, Outcome(Observed(sent=True, **observed), status, 200))
    return call.ask.intent.request_id


def spent(of: Governance, name: str = "gpu") -> int:
    return sum(counter.spent for counter in of.book.counters(of.now_us() // US) if counter.budget.id == name)


def adjusted(worker: OneWorker) -> list[dict[str, Any]]:
    return [row for row in worker.records("usage") if row["status"] == "adjusted"]


async def test_a_share_replaces_the_estimate_in_the_row_and_in_every_budget(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    request_id = settle(of, await admitted(of))
    assert spent(of) == 40 * 25 + 10 * 500
    claims.take([share(request_id, 123_456, energy_uj=9)])
    await claims.post()
    (row,) = adjusted(worker)
    assert row["gpu_us"] + 6_000 == spent(of) == 123_456
    assert spent(of, "gpu-cost") == RATE.gpu_cost_nusd(123_456)
    assert (row["kv_block_us"], row["energy_uj"], row["energy_source"], row["queue_us"]) == (77, 9, "estimated", 5)
    assert (row["event_id"], row["adjusts"]) == (f"{request_id}/attributed/0", request_id)
    assert (claims.tally("fake").posted, claims.tally("fake").claimed_us, claims.waiting) == (1, 123_456, 0)


async def test_a_share_may_come_before_the_settlement_and_waits_for_it(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    call = await admitted(of)
    claims.take([share(call.ask.intent.request_id, 5)])
    for _ in range(2):
        await claims.post()
        assert (claims.waiting, adjusted(worker)) == (1, [])
    settle(of, call)
    await claims.post()
    assert (claims.waiting, spent(of)) == (0, 5)


async def test_answers_that_end_later_add_to_what_was_posted(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    request_id = settle(of, await admitted(of), report=Report(40, 0, 30, 0))
    for gpu_us, output in ((700, 10), (200, 20)):
        claims.take([share(request_id, gpu_us, output_tokens=output)])
        await claims.post()
    assert [row["event_id"][-1] for row in adjusted(worker)] == ["0", "1"]
    assert spent(of) == 900
    assert claims.drifted(of.now_us() + 2 * SETTLES_US) == {}, "together they have the tokens that were charged"


async def test_what_was_refused_by_the_runtime_or_cut_off_is_charged_the_time_it_took(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    refused = settle(of, await admitted(of), "failed", is_error=True, report=None)
    cut = settle(of, await admitted(of), "cut", is_complete=False, streamed=True)
    claims.take([share(refused, 11), share(cut, 1_000, reason="aborted")])
    await claims.post()
    assert [row["certainty"] for row in adjusted(worker)] == ["exact", "exact"]
    assert spent(of) == 1_011
    assert claims.drifted(of.now_us() + 2 * SETTLES_US) == {}


@pytest.mark.parametrize(
    ("parts", "charged"),
    [
        ([(10, "at_least")], [6_000]),
        ([(9_000, "at_least")], [9_000]),
        ([(10, "exact"), (20, "at_least")], [10, 6_000]),
        ([(10, "at_least"), (20, "exact"), (5_990, "exact")], [6_000, 6_000, 6_020]),
    ],
)
async def test_what_was_not_seen_is_never_refunded(
    worker: OneWorker, parts: list[tuple[int, str]], charged: list[int]
) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    request_id = settle(of, await admitted(of))
    found = []
    for gpu_us, certainty in parts:
        claims.take([share(request_id, gpu_us, certainty=certainty)])
        await claims.post()
        found.append(spent(of))
    assert found == charged
    assert spent(of, "gpu-cost") == RATE.gpu_cost_nusd(charged[-1])
    assert claims.tally("fake").claimed_us == sum(gpu_us for gpu_us, _ in parts), "what was attributed is what it was"


async def test_the_telemetry_of_another_runtime_charges_a_request_nothing(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    told = share(settle(of, await admitted(of)), 1_000_000)
    claims.take([told._replace(runtime="other"), told, told._replace(runtime="other")])
    await claims.post()
    assert (spent(of), claims.tally("fake").foreign_us, claims.tally("other").foreign_us) == (1_000_000, 0, 2_000_000)


async def test_a_share_costs_what_the_runtime_did_when_it_was_made_also_without_the_runtime(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    call = await admitted(of)
    claims.take([share(call.ask.intent.request_id, 10_000_000)])
    settle(of, call)
    of.catalogue = replace(of.catalogue, runtimes={})
    await claims.post()
    assert (spent(of), spent(of, "gpu-cost")) == (10_000_000, RATE.gpu_cost_nusd(10_000_000))


async def test_a_share_that_no_column_holds_is_dropped_and_the_others_are_posted(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    ids = [settle(of, await admitted(of)) for _ in range(2)]
    claims.take([share(ids[0], 2**63), share(ids[1], 5)])
    await claims.post()
    assert ([row["adjusts"] for row in adjusted(worker)], claims.tally("fake").dropped) == ([ids[1]], 1)


async def test_what_nobody_here_settled_is_foreign(worker: OneWorker) -> None:
    of = await worker.open()
    worker.now_us += US
    claims = claims_of(worker, of)
    worker.now_us += US
    claims.take([share("cmpl-of-somebody", 7), share(uuid7(worker.now_us // 1_000), 30)])
    await claims.post()
    tally = claims.tally("fake")
    assert (tally.foreign, tally.foreign_us, tally.posted, claims.waiting) == (2, 37, 0, 0)
    assert adjusted(worker) == []


async def test_after_a_restart_what_was_posted_is_not_posted_again_and_the_rest_is(worker: OneWorker) -> None:
    of = await worker.open()
    posted, unposted = settle(of, await admitted(of)), settle(of, await admitted(of))
    claims = claims_of(worker, of)
    claims.take([share(posted, 1_000)])
    await claims.post()
    await worker.close()

    worker.now_us += 366 * 86_400 * US  # identifiers are made by the machine's own clock
    of = await worker.open()
    ledger = Ledger(worker)
    claims = claims_of(worker, of, ledger)
    claims.take([share(posted, 1_000, is_replayed=True), share(unposted, 2_000), share(uuid7(5), 9)])
    await claims.post()
    assert claims.waiting == 3
    await claims.look_up()
    assert (claims.waiting, ledger.asked) == (0, 1)
    assert [row["event_id"] for row in adjusted(worker)] == [f"{each}/attributed/0" for each in (posted, unposted)]
    assert spent(of) == 3_000
    assert (claims.tally("fake").claimed_us, claims.tally("fake").foreign_us) == (2_000, 9)


async def test_without_a_ledger_shares_of_before_wait(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    claims.take([share(uuid7(5), 9)])
    for _ in range(3):
        await claims.post()
        await claims.look_up()
    assert claims.waiting == 1


async def test_what_is_no_longer_at_hand_is_looked_up(worker: OneWorker) -> None:
    of = await worker.open()
    of.recent.rows_max = 1
    worker.now_us += US
    claims = claims_of(worker, of, Ledger(worker))
    worker.now_us += US
    first = settle(of, await admitted(of))
    settle(of, await admitted(of))
    claims.take([share(first, 321)])
    await claims.post()
    assert (of.recent.forgotten, claims.waiting) == (first, 1)
    await claims.look_up()
    assert [row["adjusts"] for row in adjusted(worker)] == [first]


async def test_what_was_settled_after_a_look_up_is_looked_up_again_and_not_disowned(worker: OneWorker) -> None:
    of = await worker.open()
    of.recent.rows_max = 0
    ledger = Ledger(worker)
    claims = claims_of(worker, of, ledger)
    shares = [share(settle(of, await admitted(of)), 5)]
    for _ in range(3):
        claims.take(shares)
        for _ in range(3):
            await claims.post()
            await claims.look_up()
        shares = [share(settle(of, await admitted(of)), 5)]
        worker.now_us += FLUSH_US
    assert (len(adjusted(worker)), claims.tally("fake").foreign, ledger.asked) == (3, 0, 3)


async def test_what_was_made_after_the_one_that_was_forgotten_last_is_looked_up_too(worker: OneWorker) -> None:
    of = await worker.open()
    of.recent.rows_max = 1
    worker.now_us = 0  # so that nothing is older than this process
    claims = claims_of(worker, of, Ledger(worker))
    worker.now_us = NOON_US
    long = await admitted(of)
    await asyncio.sleep(0.002)  # identifiers are in order by the millisecond
    short = settle(of, await admitted(of))
    settle(of, long)
    settle(of, await admitted(of))
    claims.take([share(short, 5)])
    await claims.post()
    await claims.look_up()
    assert [row["adjusts"] for row in adjusted(worker)] == [short]


async def test_in_a_full_journal_shares_wait(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    request_id = settle(of, await admitted(of))
    before, held = spent(of), Hold("h", (), 0, 0, 0, {"request_id": "another"})
    of.book.holds.update({f"h{index}": held for index in range(100_000)})
    claims.take([share(request_id, 5)])
    await claims.post()
    assert (claims.waiting, spent(of)) == (1, before)
    of.book.holds.clear()
    await claims.post()
    assert (claims.waiting, spent(of)) == (0, 5)


async def test_many_rows_are_explained_by_one_control_row(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    ids = [settle(of, await admitted(of)) for _ in range(40)]
    claims.take([share(request_id, 9) for request_id in ids])
    await claims.post()
    for _ in range(2):
        claims.explain()
    (control,) = [row for row in worker.records("control") if row["action"] == "adjusted"]
    detail = {"reason": "attribution", "rows": 40, "last_event_id": f"{ids[-1]}/attributed/0"}
    assert (control["subject"], control["detail"]) == (f"{ids[0]}/attributed/0", detail)


async def test_tokens_that_do_not_agree_are_counted_once_nothing_more_can_come(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    ids = [settle(of, await admitted(of)) for _ in range(3)]
    claims.take([share(ids[0], 9), share(ids[1], 9, cached_tokens=16), share(ids[2], 9, output_tokens=13)])
    await claims.post()
    assert claims.drifted(of.now_us()) == {}
    expected = {("fake", "cached_input_tokens"): 16, ("fake", "output_tokens"): 3}
    assert claims.drifted(of.now_us() + SETTLES_US) == expected
    assert [row.get("output_tokens") for row in adjusted(worker)] == [None] * 3, "nothing is adjusted for it"


async def test_shares_are_bounded_and_what_is_given_up_is_counted(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.claims.WAITING_MAX", 5)
    of = await worker.open()
    claims = claims_of(worker, of)
    claims.take([share(f"r{number}", 1) for number in range(8)])
    assert (claims.waiting, claims.tally("fake").dropped) == (5, 3)


async def test_posting_lets_others_have_the_event_loop(worker: OneWorker) -> None:
    of = await worker.open()
    claims = claims_of(worker, of)
    claims.take([share(settle(of, await admitted(of)), 9) for _ in range(64)])
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turn())
    await claims.post()
    other.cancel()
    assert turns >= 8


@pytest.mark.parametrize(
    "name",
    ["{}", "chatcmpl-{}", "chatcmpl-{}-1a2b3c4d", "0_chatcmpl-{}", "cmpl-{}-0-00ff00ff", "chatcmpl-{}/3#17"],
)
def test_the_id_that_was_sent_is_found_in_what_engines_make_of_it(name: str) -> None:
    request_id = uuid7()
    assert bursar_id(name.format(request_id)) == request_id
    assert bursar_id("cmpl-123") == "cmpl-123"
