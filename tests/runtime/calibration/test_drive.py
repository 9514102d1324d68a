"""The driver sends a workload as it is, records when tokens came, and ends with a clear error when all is not well."""

from __future__ import annotations

import time

import pytest

from runtime.calibration.drive import Bounds, Target, drive, request_index
from runtime.calibration.errors import CalibrationError, ClientLate, EngineLost, EngineRefused
from runtime.calibration.loads import Load
from runtime.workload.port import Arrival
from tests.runtime.calibration.fake_engine import FakeEngine

KEY = "cal-0a1b2c3d"


def load(*arrivals: Arrival, block_tokens: int = 16) -> Load:
    return Load("a load", block_tokens, arrivals)


async def test_every_request_is_sent_as_the_workload_says() -> None:
    """Lengths, `ignore_eos`, and a priority only where there is one: vLLM refuses it without priority scheduling."""
    engine = FakeEngine(cached=3)
    done: list[int] = []
    async with engine.serving() as url:
        arrivals = load(Arrival(0, 20, 3), Arrival(1_000, 7, 5, priority=2))
        run = await drive(Target(url, "m", "Bearer x"), arrivals, KEY, progress=done.append)
    first, second = engine.asked[f"{KEY}-0"], engine.asked[f"{KEY}-1"]
    assert (len(first["prompt"]), first["max_tokens"], first["ignore_eos"]) == (20, 3, True)
    assert (len(second["prompt"]), second["max_tokens"], second["priority"]) == (7, 5, 2)
    assert "priority" not in first
    assert [(each.output_tokens, each.prompt_tokens, each.cached_tokens) for each in run.samples] == [
        (3, 20, 3),
        (5, 7, 3),
    ]
    assert sorted(done) == [0, 1]


async def test_each_token_has_the_time_at_which_it_came() -> None:
    """Tokens that came together have one time; the times never go back, and the last is the end."""
    engine = FakeEngine(token_s=0.002, together=2)
    async with engine.serving() as url:
        run = await drive(Target(url, "m"), load(Arrival(0, 4, 5)), KEY)
    (sample,) = run.samples
    assert [count for _, count in sample.tokens] == [2, 4, 5]
    times = [at for at, _ in sample.tokens]
    assert sample.sent_us < times[0] < times[1] < times[2] == sample.last_us
    assert sample.first_us == times[0]


async def test_who_follows_is_sent_after_the_one_before_has_ended() -> None:
    """Three users of two requests each: never more than three at once."""
    engine = FakeEngine(token_s=0.001)
    arrivals = [
        Arrival(0, 4, 4),
        Arrival(0, 4, 4),
        Arrival(0, 4, 4),
        *(Arrival(500, 4, 4, after=at) for at in range(3)),
    ]
    async with engine.serving() as url:
        run = await drive(Target(url, "m"), load(*arrivals), KEY)
    assert engine.most_at_once == 3
    for at in range(3):
        assert run.samples[at + 3].due_us == run.samples[at].last_us + 500
        assert run.samples[at + 3].sent_us >= run.samples[at + 3].due_us


async def test_exactly_those_prefixes_are_equal_that_the_workload_says_are() -> None:
    """Equal block ids give equal tokens, other ids others; after the blocks, and in another run, nothing is shared."""
    engine = FakeEngine()
    arrivals = load(Arrival(0, 40, 1, (1, 2)), Arrival(0, 40, 1, (1, 3)), Arrival(0, 20, 1, (1, 2)))
    async with engine.serving() as url:
        await drive(Target(url, "m"), arrivals, KEY)
        await drive(Target(url, "m"), arrivals, "cal-another")
    first, second, third = (engine.asked[f"{KEY}-{at}"]["prompt"] for at in range(3))
    assert first[:16] == second[:16] == third[:16]
    assert first[16:20] == third[16:20]
    assert first[16:32] != second[16:32]
    assert first[32:] != second[32:]
    assert engine.asked["cal-another-0"]["prompt"][:16] != first[:16]
    assert all(32 <= token < 256 for token in first)


async def test_a_conversation_says_again_what_the_engine_answered() -> None:
    """The second turn's blocks go over the first's answer, so its prompt holds the tokens that were produced."""
    engine = FakeEngine()
    turns = load(Arrival(0, 20, 6, (1, 2)), Arrival(0, 40, 2, (1, 2, 3), after=0))
    async with engine.serving() as url:
        await drive(Target(url, "m"), turns, KEY)
    first, second = engine.asked[f"{KEY}-0"], engine.asked[f"{KEY}-1"]
    assert first["return_token_ids"] is True
    assert second["prompt"][:26] == [*first["prompt"], 7, 8, 9, 10, 11, 12]


async def test_an_engine_that_says_no_token_ids_cannot_hold_a_conversation() -> None:
    engine = FakeEngine(says_ids=False)
    turns = load(Arrival(0, 20, 6, (1, 2)), Arrival(0, 40, 2, (1, 2, 3), after=0))
    async with engine.serving() as url:
        with pytest.raises(EngineRefused, match="does not return token ids"):
            await drive(Target(url, "m"), turns, KEY)


async def test_an_engine_that_dies_in_the_middle_ends_the_load() -> None:
    engine = FakeEngine(dies_after=2, token_s=0.001)
    async with engine.serving() as url:
        with pytest.raises(EngineLost, match="a load: the engine stopped answering in the middle"):
            await drive(Target(url, "m"), load(Arrival(0, 4, 5), Arrival(0, 4, 5)), KEY)


async def test_an_engine_that_is_not_there_is_said_to_be_away() -> None:
    engine = FakeEngine()
    async with engine.serving() as url:
        pass
    with pytest.raises(EngineLost, match="see its log"):
        await drive(Target(url, "m"), load(Arrival(0, 4, 5)), KEY)


async def test_a_refusal_is_told_in_the_engines_words() -> None:
    engine = FakeEngine(status=400)
    async with engine.serving() as url:
        with pytest.raises(EngineRefused, match=r"request 0 was answered with 400: .*no such luck"):
            await drive(Target(url, "m"), load(Arrival(0, 4, 5)), KEY)


async def test_an_answer_of_another_length_is_refused() -> None:
    engine = FakeEngine(short_by=2)
    async with engine.serving() as url:
        with pytest.raises(EngineRefused, match="answered with 3 tokens of 5"):
            await drive(Target(url, "m"), load(Arrival(0, 4, 5)), KEY)


async def test_a_load_that_does_not_end_is_given_up() -> None:
    engine = FakeEngine(token_s=0.5)
    async with engine.serving() as url:
        with pytest.raises(EngineLost, match=r"0 of 1 requests had ended after 0\.1 s"):
            await drive(Target(url, "m"), load(Arrival(0, 4, 5)), KEY, Bounds(seconds_max=0.1))


async def test_a_client_that_was_late_refuses_its_own_result() -> None:
    """A tenth of a second of other work on the event loop, just when requests are due."""
    engine = FakeEngine()

    def dawdle(_: int) -> None:
        time.sleep(0.1)  # what holds up the loop is the point

    arrivals = load(*(Arrival(5_000 * at, 4, 1) for at in range(10)))
    async with engine.serving() as url:
        with pytest.raises(ClientLate, match="ms late"):
            await drive(Target(url, "m"), arrivals, KEY, progress=dawdle)


@pytest.mark.parametrize(
    ("arrivals", "said"),
    [
        ((), "1 to 20000 requests"),
        ((Arrival(0, 0, 1),), "no prompt or no output"),
        ((Arrival(0, 1, 0),), "no prompt or no output"),
        ((Arrival(0, 1, 1, after=0),), "waits for one that comes later"),
        ((Arrival(0, 20_000_001, 1),), "at most 20000000 tokens"),
    ],
)
async def test_a_load_that_cannot_be_sent_is_refused_before_anything_is(
    arrivals: tuple[Arrival, ...], said: str
) -> None:
    with pytest.raises(CalibrationError, match=said):
        await drive(Target("http://127.0.0.1:9", "m"), load(*arrivals), KEY)


def test_an_engines_id_leads_back_to_the_request() -> None:
    """vLLM adds to ids at both ends; another run's id leads nowhere."""
    assert request_index(KEY, f"cmpl-{KEY}-17-0-deadbeef") == 17
    assert request_index(KEY, f"{KEY}-3") == 3
    assert request_index(KEY, "cmpl-cal-ffffffff-17-0") is None
