"""The decider: one evaluation per distinct input and revision, and no decision is ever made up."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.bundle import load
from policy.decider import Decider, Recorded
from policy.decision import parse
from policy.embedded import EmbeddedEngine
from policy.port import (
    ADMISSION,
    TOOLS,
    EngineAway,
    EvaluationError,
    PolicyInput,
    PolicyUnavailable,
    Undefined,
    canonical,
)
from policy.session import BundleSession

from .conftest import SHIPPED

ALLOW = {"allow": True, "reasons": [], "obligations": {}}
DENY = ALLOW | {"allow": False}


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedEngine]:
    engine = await EmbeddedEngine.open(SHIPPED)
    yield engine
    await engine.close()


async def test_a_repeated_input_is_not_evaluated_again(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine)
    first = await decider.decide(request_facts)
    assert await decider.decide(request_facts._replace()) is first
    assert len(engine.asked) == 1
    assert (decider.hits, decider.misses, decider.cached_decisions) == (1, 1, 1)


async def test_each_fact_is_part_of_the_key(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine)
    changed = PolicyInput("o", "t", "a", ("r",), "c", "e", "m", ("x",))._replace(
        stream=True,
        run_depth=1,
        run_steps="low",
        band="warn",
        worst="tokens",
        per_resource=(("tokens", "ok"),),
        risk_level="high",
        env_name="p",
        freeze=True,
    )
    for field in PolicyInput._fields:
        await decider.decide(request_facts._replace(**{field: getattr(changed, field)}))
    assert len(engine.asked) == len(PolicyInput._fields)
    digests = {hashlib.sha256(text).hexdigest() for text in engine.asked}
    assert len(digests) == len(PolicyInput._fields)


def test_the_input_document_has_exactly_the_contracts_shape(request_facts: PolicyInput) -> None:
    facts = request_facts._replace(worst="tokens", per_resource=(("tokens", "ok"),), tools=("t",))
    assert facts.document() == {
        "principal": {"org": "acme", "team": "search", "app": "web", "roles": ["dev"], "clearance": "internal"},
        "intent": {
            "endpoint": "chat",
            "model": "sim-large",
            "tools": ["t"],
            "stream": False,
            "run": {"depth": 0, "steps": "none"},
        },
        "budget": {"band": "ok", "worst": "tokens", "per_resource": {"tokens": "ok"}},
        "risk": {"level": "normal"},
        "env": {"name": "dev", "freeze": False},
    }


async def test_a_decision_carries_its_input_digest_and_revision(
    embedded: EmbeddedEngine, request_facts: PolicyInput
) -> None:
    decision = await Decider(embedded).decide(request_facts)
    assert json.loads(decision.input_json) == request_facts.document()
    assert decision.input_digest == hashlib.sha256(decision.input_json).hexdigest()
    assert decision.revision == embedded.revision
    assert len(decision.decision_id) == 36


async def test_the_oldest_decision_leaves_a_full_cache(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine, cache_max=2)
    one, two, three = (request_facts._replace(app=app) for app in ("one", "two", "three"))
    for facts in (one, two, three, two, three):
        await decider.decide(facts)
    assert (len(engine.asked), decider.cached_decisions) == (3, 2)
    await decider.decide(one)
    assert (len(engine.asked), decider.cached_decisions) == (4, 2)


async def test_long_inputs_leave_a_cache_that_holds_too_many_bytes(fake_engine, request_facts: PolicyInput) -> None:
    decider = Decider(fake_engine(ALLOW), cache_bytes_max=30_000)
    for number in range(10):
        await decider.decide(request_facts._replace(tools=(f"{number}" * 10_000,)))
    assert [json.loads(each.input_json)["intent"]["tools"][0][0] for each in decider.decisions()] == ["8", "9"]
    for number in range(10):
        await decider.decide(request_facts._replace(app=f"app{number}"))
    assert decider.cached_decisions > 10
    await decider.decide(request_facts._replace(tools=("x" * 40_000,)))
    assert decider.cached_decisions == 1


async def test_what_a_revision_decided_is_known_though_it_is_decided_anew(fake_engine, request_facts) -> None:
    """A replay goes by it, so nobody can have it forgotten by changing a shadow twice, or a timeout."""
    decider = Decider(fake_engine(DENY, "sha256:a"), cache_max=2)
    facts = [request_facts._replace(app=f"app{number}") for number in range(4)]
    one, two, *more = facts
    for each in (one, two):
        await decider.decide(each)
    decider.forget()
    decider.forget()
    decider.swap(fake_engine(ALLOW, "sha256:a"))
    again = await decider.decide(two)
    assert [(known.input_json, known.allow) for known in decider.decisions()] == [
        (canonical(one.document()), False),
        (again.input_json, True),
    ]
    for each in more:
        await decider.decide(each)
        decider.forget()
    assert len(decider.decisions()) == 2
    decider.swap(fake_engine(ALLOW, "sha256:b"))
    assert decider.decisions() == []


def test_a_cache_without_room_is_refused(fake_engine) -> None:
    with pytest.raises(ValueError, match="cache_max"):
        Decider(fake_engine(ALLOW), cache_max=0)


@pytest.mark.parametrize(
    "answer", [Undefined("no value"), EvaluationError("failed"), {}, {"allow": True}, ALLOW | {"allow": 1}, None]
)
async def test_no_answer_is_unavailable_and_never_cached(
    fake_engine, request_facts: PolicyInput, answer: object
) -> None:
    engine = fake_engine(answer)
    told: list[Recorded] = []
    decider = Decider(engine, record=told.append)
    for _ in range(2):
        with pytest.raises(PolicyUnavailable):
            await decider.decide(request_facts)
    assert (len(engine.asked), decider.cached_decisions, told) == (2, 0, [])
    engine.answer = ALLOW
    assert (await decider.decide(request_facts)).allow


async def test_the_hook_is_told_once_per_evaluation(fake_engine, request_facts: PolicyInput) -> None:
    told: list[Recorded] = []
    decider = Decider(fake_engine(ALLOW), record=told.append)
    decisions = [await decider.decide(request_facts) for _ in range(3)]
    assert told == [Recorded(decisions[0], ADMISSION, is_shadow=False)]


async def test_a_decision_that_could_not_be_recorded_is_not_served(fake_engine, request_facts: PolicyInput) -> None:
    def fail(_: Recorded) -> None:
        raise OSError("disk full")

    decider = Decider(fake_engine(ALLOW), record=fail)
    with pytest.raises(OSError, match="disk full"):
        await decider.decide(request_facts)
    assert decider.cached_decisions == 0


async def test_a_swap_forgets_what_the_old_engine_decided(fake_engine, request_facts: PolicyInput) -> None:
    decider = Decider(fake_engine(ALLOW, "sha256:old"))
    old = await decider.decide(request_facts)
    decider.swap(fake_engine(ALLOW | {"allow": False}, "sha256:new"))
    assert (decider.revision, decider.cached_decisions) == ("sha256:new", 0)
    new = await decider.decide(request_facts)
    assert (old.allow, new.allow) == (True, False)
    assert (old.revision, new.revision) == ("sha256:old", "sha256:new")


async def test_a_decision_under_way_during_a_swap_is_not_served_after_it(
    fake_engine, request_facts: PolicyInput
) -> None:
    slow = fake_engine(ALLOW, "sha256:old")
    slow.go_on = asyncio.Event()
    decider = Decider(slow)
    under_way = asyncio.create_task(decider.decide(request_facts))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(slow.asked) == 1
    decider.swap(fake_engine(DENY, "sha256:new"))
    slow.go_on.set()
    assert (await under_way).revision == "sha256:old"
    assert (await decider.decide(request_facts)).revision == "sha256:new"


async def test_those_who_ask_the_same_at_once_share_one_evaluation(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    engine.go_on = asyncio.Event()
    decider = Decider(engine)
    asking = [asyncio.create_task(decider.decide(request_facts)) for _ in range(8)]
    await asyncio.sleep(0)
    asking[3].cancel()  # a client that leaves takes nothing from the others
    engine.go_on.set()
    decisions = await asyncio.gather(*asking[:3], *asking[4:])
    assert len({decision.decision_id for decision in decisions}) == 1
    assert len(engine.asked) == 1
    assert asking[3].cancelled()


async def test_another_asks_where_whoever_asked_first_has_left(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    engine.go_on = asyncio.Event()
    decider = Decider(engine)
    asking = [asyncio.create_task(decider.decide(request_facts)) for _ in range(4)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    engine.go_on.set()
    decisions = await asyncio.gather(*asking[1:])
    assert len({decision.decision_id for decision in decisions}) == 1
    assert len(engine.asked) == 2


async def test_another_revision_begins_with_nothing_decided(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW, "sha256:old")
    decider = Decider(engine)
    await decider.decide(request_facts)
    engine.revision, engine.answer = "sha256:new", DENY
    assert decider.cached(request_facts) is None
    decision = await decider.decide(request_facts)
    assert (decision.allow, decision.revision) == (False, "sha256:new")
    assert decider.cached(request_facts) is decision


async def test_an_answer_of_an_unheard_of_revision_is_served_once_and_not_kept(
    fake_engine, request_facts: PolicyInput
) -> None:
    engine = fake_engine(ALLOW, "sha256:old")
    engine.go_on = asyncio.Event()
    decider = Decider(engine)
    asking = asyncio.create_task(decider.decide(request_facts))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine.revision = "sha256:new"
    engine.go_on.set()
    assert (await asking).revision == "sha256:old"
    assert decider.cached(request_facts) is None


@pytest.mark.parametrize("last_known_good_s", [0, 30])
async def test_while_the_engine_is_away_nothing_is_decided_or_only_what_was_and_so_marked(
    fake_engine, request_facts: PolicyInput, last_known_good_s: int
) -> None:
    now_s = 100.0
    engine = fake_engine(ALLOW)
    decider = Decider(engine, last_known_good_s=last_known_good_s, now_s=lambda: now_s)
    before = await decider.decide(request_facts)
    engine.answer, engine.away_since_s = EngineAway("gone"), 100.0
    assert decider.cached(request_facts) is None
    for now_s, may_serve in ((100.0, True), (129.9, True), (130.0, False)):  # noqa: B007 the clock reads it
        if last_known_good_s and may_serve:
            bridged = await decider.decide(request_facts)
            assert bridged.is_last_known_good
            assert bridged.decision_id == before.decision_id
        else:
            with pytest.raises(PolicyUnavailable, match="gone"):
                await decider.decide(request_facts)
    with pytest.raises(PolicyUnavailable):
        await decider.decide(request_facts._replace(app="never asked"))
    engine.answer, engine.away_since_s = DENY, None
    assert await decider.decide(request_facts) is before


async def test_what_was_decided_before_the_bundle_changed_may_bridge_too(
    fake_engine, request_facts: PolicyInput
) -> None:
    engine = fake_engine(ALLOW, "sha256:old")
    decider = Decider(engine, last_known_good_s=30, now_s=lambda: 1.0)
    await decider.decide(request_facts)
    engine.revision = "sha256:new"
    await decider.decide(request_facts._replace(app="other"))
    engine.answer, engine.away_since_s = EngineAway("gone"), 1.0
    bridged = await decider.decide(request_facts)
    assert (bridged.revision, bridged.is_last_known_good) == ("sha256:old", True)
    assert decider.bridged == 1


async def test_what_another_bundle_took_back_long_ago_does_not_bridge(fake_engine, request_facts: PolicyInput) -> None:
    now_s = 0.0
    engine = fake_engine(ALLOW, "sha256:old")
    decider = Decider(engine, last_known_good_s=30, now_s=lambda: now_s)
    await decider.decide(request_facts)
    engine.revision, engine.answer = "sha256:new", DENY
    other = request_facts._replace(app="other")
    await decider.decide(other)
    now_s = 30.0
    engine.answer, engine.away_since_s = EngineAway("gone"), 30.0
    with pytest.raises(PolicyUnavailable, match="gone"):
        await decider.decide(request_facts)
    assert (await decider.decide(other)).is_last_known_good


async def test_a_failed_evaluation_is_never_bridged(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW, "sha256:old")
    decider = Decider(engine, last_known_good_s=30, now_s=lambda: 1.0)
    await decider.decide(request_facts)
    engine.answer, engine.away_since_s = EvaluationError("conflict"), 1.0
    with pytest.raises(PolicyUnavailable, match="conflict"):
        await decider.decide(request_facts)


async def test_a_shadow_is_recorded_beside_the_decision_in_force(fake_engine, request_facts: PolicyInput) -> None:
    told: list[Recorded] = []
    decider = Decider(fake_engine(ALLOW, "sha256:now"), record=told.append)
    decider.shadow = fake_engine(DENY, "sha256:next")
    decision = await decider.decide(request_facts)
    assert decision.allow
    while len(told) < 2:  # noqa: ASYNC110 nobody tells
        await asyncio.sleep(0)
    shadow = told[1]
    assert shadow.is_shadow
    assert (shadow.decision.allow, shadow.decision.revision) == (False, "sha256:next")
    assert shadow.decision.decision_id == decision.decision_id
    assert decider.cached(request_facts) is decision


async def test_another_entry_point_is_asked_each_time_and_recorded(fake_engine) -> None:
    told: list[Recorded] = []
    engine = fake_engine(DENY)
    decider = Decider(engine, record=told.append)
    for _ in range(2):
        assert not (await decider.ask(TOOLS, {"tool": {"name": "shell"}})).allow
    assert len(engine.asked) == 2
    assert [recorded.entry for recorded in told] == [TOOLS, TOOLS]
    engine.answer = Undefined("none")
    with pytest.raises(PolicyUnavailable):
        await decider.ask(TOOLS, {})


TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(["acme", "search", "chat", "sim-large", "ok", "normal"])
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
INPUTS = st.builds(
    PolicyInput,
    org=TEXT,
    team=TEXT,
    app=TEXT,
    roles=TEXTS,
    clearance=TEXT,
    endpoint=TEXT,
    model=TEXT,
    tools=TEXTS,
    stream=st.booleans(),
    run_depth=st.integers(),
    run_steps=TEXT,
    band=TEXT,
    worst=TEXT,
    per_resource=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    risk_level=TEXT,
    env_name=TEXT,
    freeze=st.booleans(),
)
SHIPPED_SESSION = BundleSession(load(SHIPPED))


@settings(max_examples=300, deadline=None)
@given(INPUTS)
def test_any_input_has_a_decision_or_fails(facts: PolicyInput) -> None:
    try:
        allow, reasons, _ = parse(SHIPPED_SESSION.evaluate(ADMISSION, facts.document()))
    except EvaluationError:
        return
    assert allow is (reasons == ())
