"""What the decider tells where nothing can be decided: the caller a plain sentence, the operator all of it."""

import asyncio

import pytest

from policy.decider import AWAY, Decider, Failure
from policy.port import ADMISSION, TOOLS, EngineAway, EvaluationError, PolicyInput, PolicyUnavailable, canonical

ALLOW = {"allow": True, "reasons": [], "obligations": {}}


async def test_a_shadow_that_fails_is_counted_and_told_and_reaches_no_request(
    fake_engine, request_facts: PolicyInput
) -> None:
    told: list[Failure] = []
    decider = Decider(fake_engine(ALLOW))
    decider.on_failure, decider.shadow = told.append, fake_engine(EvaluationError("no"))
    decision = await decider.decide(request_facts)
    assert decision.allow
    while not told:  # noqa: ASYNC110 nobody tells
        await asyncio.sleep(0)
    assert decider.shadow_failures == 1
    assert told == [Failure("EvaluationError: no", ADMISSION, decision.input_json, is_shadow=True)]


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (EngineAway("OPA cannot be asked: ClientConnectorError: host 127.0.0.1:18181"), AWAY),
        (EvaluationError("the rules conflict"), "the rules conflict"),
    ],
)
async def test_a_caller_reads_no_class_or_address_and_the_operator_is_told_all(
    fake_engine, request_facts: PolicyInput, failed: EvaluationError, said: str
) -> None:
    told: list[Failure] = []
    decider = Decider(fake_engine(failed))
    decider.on_failure = told.append
    whole = f"{type(failed).__name__}: {failed}"
    document = {"tool": {"name": "shell"}}
    for asked in (decider.decide(request_facts), decider.ask(TOOLS, document)):
        with pytest.raises(PolicyUnavailable) as caught:
            await asked
        assert (str(caught.value), caught.value.said) == (whole, said)
    assert told == [
        Failure(whole, ADMISSION, canonical(request_facts.document())),
        Failure(whole, TOOLS, canonical(document)),
    ]


async def test_an_input_without_a_json_form_is_refused_as_any_other(fake_engine, request_facts: PolicyInput) -> None:
    told: list[Failure] = []
    decider = Decider(fake_engine(ALLOW))
    decider.on_failure = told.append
    with pytest.raises(PolicyUnavailable, match="no JSON form"):
        await decider.decide(request_facts._replace(app="\ud800"))
    assert [failure.input_json for failure in told] == [b""]
