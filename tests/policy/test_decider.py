"""The decider: one evaluation per distinct input and revision, and no decision is ever made up."""

import hashlib
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.decision import Decision
from policy.bundle import load
from policy.decider import Decider, load_engine
from policy.embedded import EmbeddedEngine
from policy.port import BundleError, EvaluationError, PolicyInput, PolicyUnavailable, Undefined, canonical

from .conftest import SHIPPED

ALLOW = {"allow": True, "reasons": [], "obligations": {}}
FILE = "bursar/admission/admission.rego"


def test_a_repeated_input_is_not_evaluated_again(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine)
    first = decider.decide(request_facts)
    assert decider.decide(request_facts._replace()) is first
    assert len(engine.asked) == 1
    assert (decider.hits, decider.misses, decider.cached) == (1, 1, 1)


def test_each_fact_is_part_of_the_key(fake_engine, request_facts: PolicyInput) -> None:
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
        decider.decide(request_facts._replace(**{field: getattr(changed, field)}))
    assert len(engine.asked) == len(PolicyInput._fields)
    digests = {hashlib.sha256(canonical(document)).hexdigest() for document in engine.asked}
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


def test_a_decision_carries_its_input_digest_and_revision(shipped: EmbeddedEngine, request_facts: PolicyInput) -> None:
    decision = Decider(shipped).decide(request_facts)
    assert json.loads(decision.input_json) == request_facts.document()
    assert decision.input_digest == hashlib.sha256(decision.input_json).hexdigest()
    assert decision.revision == shipped.revision
    assert len(decision.decision_id) == 36


def test_the_oldest_decision_leaves_a_full_cache(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine, cache_max=2)
    one, two, three = (request_facts._replace(app=app) for app in ("one", "two", "three"))
    for facts in (one, two, three, two, three):
        decider.decide(facts)
    assert (len(engine.asked), decider.cached) == (3, 2)
    decider.decide(one)
    assert (len(engine.asked), decider.cached) == (4, 2)


def test_a_cache_without_room_is_refused(fake_engine) -> None:
    with pytest.raises(ValueError, match="cache_max"):
        Decider(fake_engine(ALLOW), cache_max=0)


@pytest.mark.parametrize(
    "answer", [Undefined("no value"), EvaluationError("failed"), {}, {"allow": True}, ALLOW | {"allow": 1}, None]
)
def test_no_answer_is_unavailable_and_never_cached(fake_engine, request_facts: PolicyInput, answer: object) -> None:
    engine = fake_engine(answer)
    told: list[Decision] = []
    decider = Decider(engine, on_new_decision=told.append)
    for _ in range(2):
        with pytest.raises(PolicyUnavailable):
            decider.decide(request_facts)
    assert (len(engine.asked), decider.cached, told) == (2, 0, [])
    engine.answer = ALLOW
    assert decider.decide(request_facts).allow


def test_the_hook_is_told_once_per_evaluation(fake_engine, request_facts: PolicyInput) -> None:
    told: list[Decision] = []
    decider = Decider(fake_engine(ALLOW), on_new_decision=told.append)
    decisions = [decider.decide(request_facts) for _ in range(3)]
    assert told == [decisions[0]]


def test_a_decision_that_could_not_be_recorded_is_not_served(fake_engine, request_facts: PolicyInput) -> None:
    def fail(_: Decision) -> None:
        raise OSError("disk full")

    decider = Decider(fake_engine(ALLOW), on_new_decision=fail)
    with pytest.raises(OSError, match="disk full"):
        decider.decide(request_facts)
    assert decider.cached == 0


def test_a_swap_forgets_what_the_old_engine_decided(fake_engine, request_facts: PolicyInput) -> None:
    decider = Decider(fake_engine(ALLOW, "sha256:old"))
    old = decider.decide(request_facts)
    decider.swap(fake_engine(ALLOW | {"allow": False}, "sha256:new"))
    assert (decider.revision, decider.cached) == ("sha256:new", 0)
    new = decider.decide(request_facts)
    assert (old.allow, new.allow) == (True, False)
    assert (old.revision, new.revision) == ("sha256:old", "sha256:new")


def test_a_decision_under_way_during_a_swap_is_not_served_after_it(fake_engine, request_facts: PolicyInput) -> None:
    entered, go_on = threading.Event(), threading.Event()
    slow = fake_engine(ALLOW, "sha256:old")
    evaluate = slow.evaluate

    def wait(document):
        entered.set()
        assert go_on.wait(5)
        return evaluate(document)

    slow.evaluate = wait
    decider = Decider(slow)
    thread = threading.Thread(target=decider.decide, args=(request_facts,))
    thread.start()
    assert entered.wait(5)
    decider.swap(fake_engine(ALLOW | {"allow": False}, "sha256:new"))
    go_on.set()
    thread.join()
    assert decider.decide(request_facts).revision == "sha256:new"


def test_threads_asking_the_same_evaluate_it_once(fake_engine, request_facts: PolicyInput) -> None:
    engine = fake_engine(ALLOW)
    decider = Decider(engine)
    threads = [threading.Thread(target=decider.decide, args=(request_facts,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engine.asked) == 1


def test_a_reload_serves_the_new_bundle(write_bundle, request_facts: PolicyInput) -> None:
    root = write_bundle()
    decider = Decider(load_engine(root))
    assert decider.decide(request_facts).obligations.priority == 3
    write_bundle({"bursar/admission/data.json": '{"priority": 7}'})
    assert decider.reload(root) == decider.revision == load(root).revision
    assert decider.decide(request_facts).obligations.priority == 7


def test_a_reload_without_a_change_keeps_the_cache(write_bundle, request_facts: PolicyInput) -> None:
    root = write_bundle()
    decider = Decider(load_engine(root))
    first = decider.decide(request_facts)
    decider.reload(root)
    assert decider.decide(request_facts) is first


@pytest.mark.parametrize(
    "text",
    [
        "package bursar.admission\nimport rego.v1\ndecision := {\n",
        "package bursar.admission\nimport rego.v1\ndecision := http.send({})\n",
        "package bursar.admission\nimport rego.v1\na := input.x\nb := a\ndecision := b with input as {}\n",
        "package bursar.elsewhere\nimport rego.v1\ndecision := {}\n",
    ],
)
def test_the_last_good_bundle_serves_on_when_the_new_one_cannot(
    write_bundle, request_facts: PolicyInput, text: str
) -> None:
    root = write_bundle()
    decider = Decider(load_engine(root))
    before = decider.decide(request_facts)
    write_bundle({FILE: text})
    with pytest.raises(BundleError):
        decider.reload(root)
    assert decider.decide(request_facts) is before
    assert decider.decide(request_facts._replace(app="another")).allow


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
SHIPPED_ENGINE = EmbeddedEngine(load(SHIPPED))


@settings(max_examples=300, deadline=None)
@given(INPUTS)
def test_any_input_has_a_decision_or_is_unavailable(facts: PolicyInput) -> None:
    try:
        decision = Decider(SHIPPED_ENGINE).decide(facts)
    except PolicyUnavailable:
        return
    assert decision.allow is (decision.reasons == ())
    assert json.loads(decision.input_json) == facts.document()
