"""Attribution: whatever an engine does, its busy time is shared by work, and no microsecond is lost or made."""

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.attribution.engine import AMOUNT_MAX, AWAY_US_MAX, REST_LAG_US, Attribution
from runtime.attribution.shares import Share, Totals
from runtime.attribution.weights import NoWeights, Weights
from runtime.step_time import StepTime, StepWork
from runtime.telemetry.records import Close, Join, Leave, Lost, Open, Record, State, Step

BEGAN_US = 1_700_000_000_000_000
MODEL = StepTime()
WEIGHTS = Weights.of(MODEL)


def opened(
    session: str = "s1", *, unix_us: int = BEGAN_US, segment: int = 0, accelerators: int = 1, lost: int = 0
) -> Open:
    return Open("engine-0", session, segment, unix_us, "sim", "m", accelerators, 16, 1_000, lost)


def fed(attribution: Attribution, *records: Record) -> list[Share]:
    return [share for record in records for share in attribution.take(record)]


def step(begin_us: int, duration_us: int, *takes: tuple[int, int], blocks: int = 0) -> Step:
    """A step that begins so long after the engine did."""
    return Step(BEGAN_US + begin_us, BEGAN_US + begin_us + duration_us, blocks, 0, 1, takes)


def balanced(totals: Totals) -> bool:
    parts = totals.attributed_us + totals.in_flight_us + totals.unattributed_us + totals.idle_us + totals.lost_us
    return parts == totals.capacity_us and totals.idle_us >= 0 and totals.unattributed_us >= 0


def test_two_that_decode_alike_pay_alike_and_the_gap_between_steps_is_idle() -> None:
    attribution = Attribution(WEIGHTS)
    shares = fed(
        attribution,
        opened(),
        Join(1, "a", 10, 0, 5),
        Join(2, "b", 10, 0, 7),
        step(100, 1_000, (1, 10), (2, 10)),
        step(1_200, 500),
        Leave(1, "finished", 2),
        Leave(2, "finished", 2),
    )
    assert [(share.request_id, share.gpu_us, share.queue_us) for share in shares] == [("a", 750, 5), ("b", 750, 7)]
    assert [(share.prefill_tokens, share.decode_tokens, share.output_tokens) for share in shares] == [(10, 1, 2)] * 2
    totals = attribution.totals
    assert (totals.busy_us, totals.idle_us, totals.wall_us, totals.in_flight_us) == (1_500, 200, 1_700, 0)


def test_prefill_and_decode_pay_by_the_model_that_was_given() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "old", 100, 0, 0), step(0, 1_000, (1, 100)))
    shares = fed(
        attribution,
        Join(2, "new", 400, 0, 0),
        step(1_000, 7_777, (2, 400)),
        Leave(1, "aborted", 1),
        Leave(2, "aborted", 1),
    )
    decoding = MODEL.duration_us(StepWork(decode_requests=1, decode_context=100)) - MODEL.base_us
    filling = MODEL.duration_us(StepWork(prefill_requests=1, prefill_tokens=400)) - MODEL.base_us
    expected = Fraction(7_777 * decoding, decoding + filling)
    assert abs(shares[0].gpu_us - 1_000 - expected) < 5
    assert shares[0].gpu_us + shares[1].gpu_us == 8_777


def test_a_preempted_request_goes_on_where_it_was_and_pays_for_computing_anew() -> None:
    attribution = Attribution(WEIGHTS)
    shares = fed(
        attribution,
        opened(),
        Join(1, "a", 50, 16, 10),
        step(0, 100, (1, 34)),
        Leave(1, "preempted", 1),
        Join(2, "b", 10, 0, 0),
        step(100, 50, (2, 10)),
        Leave(2, "finished", 1),
        Join(7, "a", 50, 32, 40),
        step(150, 100, (7, 19)),
        Leave(7, "finished", 2),
    )
    assert [(share.request_id, share.gpu_us) for share in shares] == [("b", 50), ("a", 200)]
    again = shares[1]
    assert (again.preemptions, again.answers, again.queue_us, again.cached_tokens) == (1, 1, 50, 16)
    assert (again.prefill_tokens, again.prompt_tokens, again.certainty) == (53, 50, "exact")


def test_the_answers_of_one_request_add_up_and_are_done_together() -> None:
    attribution = Attribution(WEIGHTS, key=lambda name: name.partition("_")[2])
    joins = [Join(handle, f"{handle}_r", 8, 0, handle) for handle in (1, 2, 3)]
    first = fed(attribution, opened(), *joins, step(0, 300, (1, 8), (2, 8), (3, 8)), Leave(1, "finished", 1))
    assert first == []
    fed(attribution, Leave(2, "preempted", 1), Leave(3, "finished", 4))
    (share,) = fed(attribution, Join(1, "2_r", 8, 0, 100), step(300, 100, (1, 9)), Leave(1, "aborted", 2))
    assert (share.gpu_us, share.answers, share.output_tokens, share.prompt_tokens) == (400, 3, 7, 24)
    assert (share.reason, share.queue_us, share.preemptions) == ("aborted", 103, 1)


@pytest.mark.parametrize(("after_us", "waiting", "is_gone"), [(9, 0, True), (9, 1, False), (AWAY_US_MAX, 1, True)])
def test_one_that_was_preempted_is_gone_once_nobody_waits_or_after_a_minute(
    after_us: int, waiting: int, is_gone: bool
) -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)), Leave(1, "preempted", 1))
    shares = fed(attribution, step(100 + after_us, 101)._replace(waiting=waiting))
    assert [(share.gpu_us, share.reason, share.certainty) for share in shares] == [(100, "aborted", "exact")] * is_gone
    assert attribution.totals.unattributed_us == 101, "nobody was in the batch of that step"
    assert attribution.totals.in_flight_us == 100 * (not is_gone)


def test_energy_follows_busy_time_and_blocks_follow_context() -> None:
    attribution = Attribution(WEIGHTS, power_mw=300_000)
    shares = fed(
        attribution,
        opened(),
        Join(1, "a", 100, 0, 0),
        step(1_000_000, 100, (1, 100), blocks=10),
        Join(2, "b", 300, 0, 0),
        step(1_000_150, 50, (2, 300), blocks=30),
        Leave(1, "finished", 2),
        Leave(2, "finished", 1),
    )
    assert all(abs(share.energy_uj - share.gpu_us * 300) < 300 for share in shares)
    assert sum(share.energy_uj for share in shares) == 150 * 300
    # Alone it held ten blocks while they were computed; both then held thirty from one end to the next, by context.
    assert [share.kv_block_us for share in shares] == [1_756, 2_244]
    assert attribution.totals.kv_block_us == 4_000
    assert attribution.totals.energy_uj == 150 * 300


def test_several_accelerators_pass_the_same_wall_time_and_pay_for_each() -> None:
    attribution = Attribution(WEIGHTS)
    (share,) = fed(
        attribution, opened(accelerators=4), Join(1, "a", 8, 0, 0), step(50, 100, (1, 8)), Leave(1, "finished", 1)
    )
    totals = attribution.totals
    assert (share.gpu_us, totals.wall_us, totals.capacity_us, totals.idle_us) == (400, 150, 600, 200)


def test_lost_lines_make_those_in_the_batch_uncertain_and_their_time_an_account_of_its_own() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "stays", 8, 0, 0), Join(2, "left", 8, 0, 0), step(0, 100, (1, 8), (2, 8)))
    shares = fed(
        attribution,
        Lost("segments", 2),
        opened(segment=3),
        State(((1, "stays", 40), (3, "came", 64))),
        step(5_000, 100),
        Leave(1, "finished", 40),
        Leave(3, "finished", 9),
    )
    assert [(share.request_id, share.reason, share.certainty) for share in shares] == [
        ("left", "lost", "at_least"),
        ("stays", "finished", "at_least"),
        ("came", "finished", "at_least"),
    ]
    totals = attribution.totals
    assert (totals.lost_us, totals.busy_us, totals.idle_us, totals.uncertain) == (4_900, 200, 0, 3)
    assert balanced(totals)


def test_a_segment_that_follows_without_loss_changes_nothing() -> None:
    attribution = Attribution(WEIGHTS)
    (share,) = fed(
        attribution,
        opened(),
        Join(1, "a", 8, 0, 0),
        step(0, 100, (1, 8)),
        step(100, 10),
        opened(segment=1),
        State(((1, "a", 9),)),
        step(110, 10),
        Leave(1, "finished", 3),
    )
    assert (share.gpu_us, share.certainty, share.decode_tokens) == (120, "exact", 2)


def test_lines_that_the_writer_could_not_write_are_missing_too() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)))
    (share,) = fed(
        attribution, opened(segment=1, lost=3), State(((1, "a", 20),)), step(900, 100), Leave(1, "finished", 9)
    )
    assert (share.certainty, attribution.totals.losses, attribution.totals.lost_us) == ("at_least", 3, 800)


def test_an_engine_that_is_killed_leaves_everyone_and_the_time_it_is_away_is_nobodys() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)))
    (share,) = attribution.take(opened("s2", unix_us=BEGAN_US + 60_000_000))
    assert (share.request_id, share.gpu_us, share.reason, share.certainty) == ("a", 100, "lost", "at_least")
    fed(attribution, step(60_000_500, 500), Close(BEGAN_US + 60_002_000))
    assert (attribution.totals.wall_us, attribution.totals.idle_us) == (2_100, 1_500)


def test_an_idle_engine_is_idle_until_it_is_last_seen_and_a_step_that_had_begun_counts_whole() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened())
    attribution.rest(BEGAN_US + REST_LAG_US + 1_000)
    assert attribution.totals.idle_us == 1_000
    fed(attribution, Join(1, "a", 8, 0, 0), step(900, 300, (1, 8)))
    attribution.rest(BEGAN_US + REST_LAG_US + 90_000)
    assert (attribution.totals.idle_us, attribution.totals.busy_us, attribution.totals.wall_us) == (900, 300, 1_200)


def test_after_an_engine_has_told_that_it_ends_no_time_is_in_its_account_until_it_is_started_again() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), State(()), Close(BEGAN_US + 1_000))
    attribution.rest(BEGAN_US + REST_LAG_US + 9_000)
    refused = opened("s2", unix_us=BEGAN_US + 9_000)._replace(off="it streams its prompts")
    fed(attribution, refused, State(()), Close(BEGAN_US + 9_100))
    attribution.rest(BEGAN_US + REST_LAG_US + 50_000)
    assert (attribution.totals.wall_us, attribution.totals.idle_us, attribution.off) == (1_100, 1_100, refused.off)
    fed(attribution, opened("s3", unix_us=BEGAN_US + 60_000))
    attribution.rest(BEGAN_US + REST_LAG_US + 60_500)
    assert (attribution.totals.idle_us, attribution.off) == (1_600, "")


@pytest.mark.parametrize("end", [Close(BEGAN_US + 200), opened("s2", unix_us=BEGAN_US + 200)])
def test_one_that_waits_to_come_back_when_its_engine_ends_is_lost(end: Record) -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)), Leave(1, "preempted", 1))
    (share,) = fed(attribution, end)
    assert (share.gpu_us, share.reason, share.certainty) == (100, "lost", "at_least")


def test_a_share_that_no_request_could_have_taken_is_not_given_and_its_time_is_unattributed() -> None:
    attribution = Attribution(WEIGHTS)
    attribution.power_mw = AMOUNT_MAX
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 3_600, (1, 8)))
    assert fed(attribution, Leave(1, "finished", 1)) == []
    totals = attribution.totals
    assert (totals.unattributed_us, totals.attributed_us, totals.losses, balanced(totals)) == (3_600, 0, 1, True)


def test_a_clock_that_is_put_back_stops_no_account() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(3_600_000_000, 100, (1, 8)))
    (share,) = fed(attribution, step(1_000, 50), Leave(1, "finished", 2))
    assert share.gpu_us == 150
    assert balanced(attribution.totals)


def test_steps_that_overlap_are_counted_once() -> None:
    attribution = Attribution(WEIGHTS)
    fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)), step(60, 100), step(120, 30))
    assert (attribution.totals.busy_us, attribution.totals.wall_us) == (160, 160)


def test_what_another_account_has_is_shared_again_and_counted_no_more() -> None:
    records: list[Record] = [
        opened(),
        Join(1, "before", 8, 0, 0),
        step(0, 100, (1, 8)),
        Leave(1, "finished", 1),
        Join(1, "over", 8, 0, 0),
        step(200, 100, (1, 8)),
    ]
    later: list[Record] = [step(400, 100), Leave(1, "finished", 2), Join(1, "after", 8, 0, 0), step(500, 50, (1, 8))]
    whole, first = Attribution(WEIGHTS), Attribution(WEIGHTS)
    fed(whole, *records, *later)
    fed(first, *records)
    first.rest(BEGAN_US + REST_LAG_US + 900)  # nothing rests while somebody is in the batch
    again = Attribution(WEIGHTS, account_from_us=first.totals.until_us)
    shares = fed(again, *records, *later)
    assert [(share.request_id, share.is_replayed) for share in shares] == [("before", True), ("over", False)]
    assert again.totals == whole.totals.since(first.totals)


def test_what_cannot_be_understood_of_a_batch_is_unattributed_and_harms_nobody() -> None:
    attribution = Attribution(WEIGHTS)
    (share,) = fed(
        attribution,
        opened(),
        Join(1, "a", 8, 0, 0),
        step(0, 100, (1, 8), (9, 8)),
        Leave(5, "finished", 1),
        step(100, 100, (1, 0)),
        Leave(1, "finished", 1),
    )
    assert (share.gpu_us, share.certainty) == (50, "exact")
    assert (attribution.totals.unattributed_us, attribution.totals.losses) == (150, 2)
    assert balanced(attribution.totals)


def test_a_handle_that_joins_twice_has_lost_its_leave() -> None:
    attribution = Attribution(WEIGHTS)
    (share,) = fed(attribution, opened(), Join(1, "a", 8, 0, 0), step(0, 9, (1, 8)), Join(1, "b", 8, 0, 0))
    assert (share.request_id, share.reason, share.certainty) == ("a", "lost", "at_least")


def test_weights_that_are_all_nothing_are_refused() -> None:
    with pytest.raises(NoWeights, match="at least one"):
        Weights.of(StepTime(6_400, 0, 0, 0, 0, 0))
    only_decode = Attribution(Weights.of(StepTime(1, decode_request_ns=5, prefill_token_ns=0, decode_context_ps=0)))
    fed(only_decode, opened(), Join(1, "a", 8, 0, 0), step(0, 100, (1, 8)))
    assert only_decode.totals.unattributed_us == 100, "prefill weighs nothing here"


@dataclass
class Naive:
    """Shares each step one request at a time, in fractions."""

    paid: defaultdict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    held: defaultdict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    batch: dict[int, tuple[str, int]] = field(default_factory=dict)

    def step(self, busy_us: int, block_us: int, takes: dict[int, int], model: StepTime) -> None:
        work = {}
        for handle, (name, context) in self.batch.items():
            tokens = takes.get(handle)
            price = model.variable_ps()
            if tokens is None:
                work[handle] = Fraction(price[3] + price[4] * context)
                self.batch[handle] = (name, context + 1)
            else:
                pairs = Fraction(tokens * (2 * context + tokens), 2)
                work[handle] = price[0] + price[1] * tokens + price[2] * pairs if tokens else Fraction(0)
                self.batch[handle] = (name, context + tokens)
        total, contexts = sum(work.values()), sum(context for _, context in self.batch.values())
        for handle, (name, context) in self.batch.items():
            self.paid[name] += busy_us * work[handle] / total if total else 0
            self.held[name] += Fraction(block_us * context, contexts) if contexts else 0


def drawn_weights(random: Random) -> StepTime:
    prices = [random.choice((0, random.randrange(10**6))) for _ in range(5)]
    return StepTime(1, *(prices if any(prices) else [1] * 5))


@given(st.integers(0, 2**32))
def test_any_history_is_shared_as_one_by_one_and_adds_up_to_the_microsecond(seed: int) -> None:
    random = Random(seed)
    model, accelerators = drawn_weights(random), random.randint(1, 8)
    attribution, naive = Attribution(Weights.of(model), power_mw=1_000), Naive()
    shares = attribution.take(opened(accelerators=accelerators))
    end_us, was_empty = BEGAN_US, True
    waiting = [f"r{number}" for number in range(random.randint(1, 6))]
    while waiting or naive.batch:
        for name in [name for name in waiting if random.random() < 0.5]:
            waiting.remove(name)
            handle = min(set(range(20)) - naive.batch.keys())
            cached = random.randint(0, 50)
            naive.batch[handle] = (name, cached)
            shares += attribution.take(Join(handle, name, 60, cached, 0))
        takes = {handle: random.randint(0, 9) for handle in naive.batch if random.random() < 0.5}
        begin_us, duration_us, blocks = (
            end_us + random.randint(0, 3_000),
            random.randint(0, 5_000),
            random.randint(0, 99),
        )
        shares += attribution.take(Step(begin_us, begin_us + duration_us, blocks, 0, 1, tuple(takes.items())))
        since_us = begin_us if was_empty else end_us
        end_us = begin_us + duration_us
        naive.step(duration_us * accelerators, (end_us - since_us) * blocks, takes, model)
        was_empty = False
        for handle, (name, _) in list(naive.batch.items()):
            left = random.choice(("stays", "stays", "finished", "aborted", "preempted"))
            if left != "stays":
                del naive.batch[handle]
                shares += attribution.take(Leave(handle, left, 1))
                waiting += [name] if left == "preempted" else []
                was_empty = not naive.batch
        assert balanced(attribution.totals)
    totals = attribution.totals
    for share in shares:
        for given_out, exact in (
            (share.gpu_us, naive.paid[share.request_id]),
            (share.energy_uj, naive.paid[share.request_id]),
            (share.kv_block_us, naive.held[share.request_id]),
        ):
            assert abs(given_out - exact) <= 1
    assert sum(share.gpu_us for share in shares) == totals.attributed_us
    assert totals.in_flight_us == 0
    assert abs(totals.attributed_us - sum(naive.paid.values())) <= 1
