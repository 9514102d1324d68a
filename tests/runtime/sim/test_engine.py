"""The engine core: conservation, caching, order and preemption."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.sim.config import EngineConfig
from runtime.sim.engine import Engine
from runtime.sim.hashing import chain_hashes, root_hash
from runtime.sim.request import Emission, FinishReason, SimRequest, Submission
from runtime.sim.step import Step
from runtime.step_time import StepTime, StepWork

STEPS_MAX = 5_000


def small_engine(**knobs: object) -> Engine:
    defaults: dict[str, object] = {
        "block_size": 4,
        "num_blocks": 12,
        "max_model_len": 48,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
    }
    return Engine(EngineConfig(**{**defaults, **knobs}))  # type: ignore[arg-type]


def ask(request_id: str, prompt: int | list[int], output: int, **fields: object) -> SimRequest:
    """A request with `prompt` tokens of its own (or those given) and `output` tokens that are told from all others."""
    own = int(request_id) * 1_000
    tokens = [own + at for at in range(prompt)] if isinstance(prompt, int) else prompt
    return hashed(request_id, tokens, [own + 500 + at for at in range(output)], **fields)


def hashed(
    request_id: str, prompt: list[int], output: list[int], salt: str = "", block_size: int = 4, **fields: object
) -> SimRequest:
    """A request for these tokens, hashed as the server hashes them."""
    hashes = chain_hashes(root_hash(salt), prompt + output, block_size)
    return SimRequest(request_id, len(prompt), len(output), hashes, **fields)  # type: ignore[arg-type]


def run(engine: Engine) -> tuple[dict[str, list[Emission]], list[Step]]:
    """Step until nothing is left; emissions by request id, and all steps."""
    emissions: dict[str, list[Emission]] = defaultdict(list)
    steps: list[Step] = []
    now_us = engine.busy_until_us
    while engine.has_work:
        step = engine.step(now_us)
        now_us += step.duration_us
        steps.append(step)
        assert len(steps) < STEPS_MAX
        for emission in step.emissions():
            emissions[str(emission.request_id)].append(emission)
    return emissions, steps


requests = st.lists(
    st.tuples(
        st.integers(1, 30),  # prompt tokens
        st.integers(0, 18),  # output tokens
        st.integers(0, 3),  # which prompts share their beginning
        st.integers(-1, 1),  # priority
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    asked=requests,
    aborts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 13)), max_size=5),
    ahead=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
    reason=st.sampled_from(FinishReason),
)
def test_tokens_produced_are_tokens_asked_and_all_blocks_come_back(
    asked: list[tuple[int, int, int, int]],
    aborts: list[tuple[int, int]],
    ahead: bool,
    policy: str,
    reason: FinishReason,
) -> None:
    engine = small_engine(async_scheduling=ahead, scheduling_policy=policy)
    by_id = {
        str(at): ask(
            str(at), [family * 100 + token for token in range(prompt)], output, priority=priority, finish_reason=reason
        )
        for at, (prompt, output, family, priority) in enumerate(asked)
    }
    for request in by_id.values():
        assert engine.submit(request) is Submission.ACCEPTED
    produced: dict[str, int] = defaultdict(int)
    ended: set[str] = set()
    aborted: set[str] = set()
    now_us = at_step = 0
    while engine.has_work:
        step = engine.step(now_us)
        now_us += step.duration_us
        assert step.prefill_tokens + step.decoding <= engine.config.max_num_batched_tokens
        assert engine.num_running <= engine.config.max_num_seqs
        for emission in step.emissions():
            request_id = str(emission.request_id)
            assert request_id not in ended | aborted
            produced[request_id] += emission.tokens
            if emission.finish_reason is not None:
                ended.add(request_id)
        for when, index in aborts:
            if when == at_step and engine.abort(str(index)):
                aborted.add(str(index))
        at_step += 1
        assert at_step < STEPS_MAX
    assert ended | aborted == set(by_id)
    for request_id in ended:
        assert produced[request_id] == by_id[request_id].output_tokens
    assert engine.totals.generation_tokens == sum(produced.values())
    assert engine.pool.free_blocks == engine.pool.num_blocks
    assert (engine.num_running, engine.num_waiting) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=14), st.integers(0, 6), st.sampled_from("ab")),
        max_size=8,
    )
)
def test_cached_tokens_are_those_that_a_search_of_all_earlier_tokens_finds(
    prompts: list[tuple[list[int], int, str]],
) -> None:
    engine = small_engine(num_blocks=200, block_size=2)
    earlier: list[tuple[str, list[int]]] = []
    hit_tokens = 0
    for at, (prompt, outputs, salt) in enumerate(prompts):
        output = [0, 1, 0, 0, 1, 1][:outputs]
        engine.submit(hashed(str(at), prompt, output, salt, block_size=2))
        emissions, _ = run(engine)
        found = max((shared_blocks(prompt, tokens) for other, tokens in earlier if other == salt), default=0)
        expected = min(found, (len(prompt) - 1) // 2) * 2
        assert emissions[str(at)][0].cached_tokens == expected
        hit_tokens += expected
        # The last token is put out, but never computed, so it cannot be in the cache.
        earlier.append((salt, (prompt + output)[: len(prompt) + max(0, outputs - 1)]))
    assert engine.totals.prefix_hit_tokens == hit_tokens
    assert engine.totals.prefix_query_tokens == sum(len(prompt) for prompt, _, _ in prompts)


def shared_blocks(left: list[int], right: list[int]) -> int:
    """How many whole blocks of two tokens both begin with."""
    count = 0
    while (end := 2 * (count + 1)) <= min(len(left), len(right)) and left[:end] == right[:end]:
        count += 1
    return count


def test_a_wholly_cached_prompt_still_computes_its_last_token() -> None:
    engine = small_engine()
    engine.submit(ask("1", list(range(8)), 1))
    run(engine)
    engine.submit(ask("2", list(range(8)), 1))
    emissions, steps = run(engine)
    assert emissions["2"][0].cached_tokens == 4
    assert steps[0].prefill_tokens == 4


def test_requests_of_one_step_share_what_the_first_of_them_computes() -> None:
    engine = small_engine(max_num_batched_tokens=32)
    engine.submit(ask("1", list(range(9)), 1))
    engine.submit(ask("2", list(range(9)), 1))
    emissions, steps = run(engine)
    assert len(steps) == 1
    assert [emissions[one][0].cached_tokens for one in "12"] == [0, 8]
    assert steps[0].prefill_tokens == 10


def test_another_salt_shares_nothing() -> None:
    engine = small_engine()
    for request_id, salt in (("1", "a"), ("2", "b"), ("3", "a")):
        engine.submit(ask(request_id, list(range(9)), 1, salt=salt))
        emissions, _ = run(engine)
        assert emissions[request_id][0].cached_tokens == (8 if request_id == "3" else 0)


def test_an_answer_given_back_as_prompt_is_cached_too() -> None:
    engine = small_engine()
    prompt, output = list(range(6)), list(range(100, 107))
    engine.submit(hashed("1", prompt, output))
    run(engine)
    engine.submit(hashed("2", [*prompt, *output, 7, 7], [9]))
    emissions, _ = run(engine)
    assert emissions["2"][0].cached_tokens == 12


def test_a_long_prompt_is_computed_in_chunks_while_others_go_on() -> None:
    engine = small_engine(max_num_batched_tokens=8)
    engine.submit(ask("1", 2, 10))
    engine.step(0)
    engine.submit(ask("2", 20, 1))
    emissions, steps = run(engine)
    assert [step.prefill_tokens for step in steps[:3]] == [7, 7, 6]
    assert all(step.decoding == 1 for step in steps[:3])
    assert len(emissions["2"]) == 1


def test_without_room_the_last_to_come_gives_way_and_loses_nothing() -> None:
    engine = small_engine(num_blocks=12, max_num_batched_tokens=48)
    engine.submit(ask("1", 12, 20))
    engine.submit(ask("2", 20, 20))
    emissions, steps = run(engine)
    assert sum(step.preemptions for step in steps) == engine.totals.preemptions > 0
    assert [emission.tokens for emission in emissions["2"]] == [1] * 20
    order = [emission.request_id for step in steps for emission in step.emissions() if emission.finish_reason]
    assert order == ["1", "2"]
    assert engine.totals.prompt_tokens == 32
    assert engine.totals.prefix_query_tokens == 32


def test_lower_priority_values_run_first_then_first_come() -> None:
    engine = small_engine(max_num_seqs=1)
    for request_id, priority in (("1", 5), ("2", 0), ("3", 5), ("4", -1)):
        engine.submit(ask(request_id, 4, 2, priority=priority))
    emissions, _ = run(engine)
    assert list(emissions) == ["4", "2", "1", "3"]


def test_a_more_urgent_request_is_the_one_that_stays() -> None:
    engine = small_engine(num_blocks=12, max_num_batched_tokens=48)
    engine.submit(ask("1", 20, 20, priority=1))
    engine.step(0)
    engine.submit(ask("2", 16, 28, priority=0))
    _, steps = run(engine)
    order = [emission.request_id for step in steps for emission in step.emissions() if emission.finish_reason]
    assert engine.totals.preemptions > 0
    assert order == ["2", "1"]


def test_a_request_without_output_ends_when_its_prompt_is_computed() -> None:
    engine = small_engine(max_num_batched_tokens=8)
    engine.submit(ask("1", 20, 0))
    emissions, steps = run(engine)
    assert len(steps) == 3
    assert emissions["1"] == [Emission("1", 0, FinishReason.LENGTH, 0)]
    assert (engine.totals.prompt_tokens, engine.totals.generation_tokens) == (20, 0)


def test_a_request_that_reads_no_cache_is_not_counted_as_a_query() -> None:
    engine = small_engine()
    for request_id in "12":
        engine.submit(ask(request_id, list(range(9)), 0, read_prefix_cache=False))
        emissions, _ = run(engine)
        assert emissions[request_id][0].cached_tokens == 0
    assert engine.totals.prefix_query_tokens == 0


def test_refusals_are_named_and_leave_no_trace() -> None:
    engine = small_engine(max_waiting=1)
    assert engine.submit(ask("1", 40, 9)) is Submission.CONTEXT_EXCEEDED
    assert not engine.has_work
    assert engine.submit(ask("2", 40, 8)) is Submission.ACCEPTED
    assert engine.submit(ask("3", 1, 1)) is Submission.QUEUE_FULL
    assert engine.num_waiting == 1
    with pytest.raises(ValueError, match="in flight"):
        engine.submit(ask("2", 1, 1))


def test_an_unknown_request_cannot_be_aborted() -> None:
    assert small_engine().abort("nobody") is None


def test_steps_cannot_overlap() -> None:
    engine = small_engine()
    engine.submit(ask("1", 4, 3))
    duration_us = engine.step(1_000).duration_us
    with pytest.raises(ValueError, match="overlaps"):
        engine.step(1_000 + duration_us - 1)
    assert engine.step(1_000 + duration_us).emissions()


def test_an_idle_step_takes_no_time() -> None:
    step = small_engine().step(0)
    assert step.is_empty
    assert (step.duration_us, step.emissions()) == (0, [])


def test_step_time_is_the_linear_model_rounded_up() -> None:
    model = StepTime(100, 500_000, 1_500, 7_000, 2_000, 3_000_000)
    assert model.duration_us(StepWork(1, 3, 4, 2, 7)) == 100 + 500 + 5 + 4 + 21
    engine = Engine(EngineConfig(), model)
    engine.submit(ask("1", 3, 2))
    _, steps = run(engine)
    expected = [StepWork(1, 3, 3 * 3 // 2, 0, 0), StepWork(0, 0, 0, 1, 3)]
    assert [step.duration_us for step in steps] == [model.duration_us(work) for work in expected]
    assert engine.totals.busy_us == sum(step.duration_us for step in steps)


@pytest.mark.parametrize(
    "knobs",
    [{"num_blocks": 0}, {"max_model_len": 49}, {"max_num_batched_tokens": 3}, {"max_waiting": 0}],
)
def test_knobs_that_could_never_work_are_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        small_engine(**knobs)


def test_a_step_must_take_time() -> None:
    with pytest.raises(ValueError, match="base_us"):
        StepTime(base_us=0)
    with pytest.raises(ValueError, match="negative"):
        StepTime(decode_context_ps=-1)
