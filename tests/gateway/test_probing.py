"""An engine that cannot decide what it would be asked is not let in, and none is asked for ever."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import probing
from gateway.config import Policy
from gateway.config_file import LoadedConfig, load
from gateway.keys import KeyStore
from gateway.probing import probe, questions
from policy.port import ADMISSION, Answer, BundleError, EngineAway, EvaluationError, Unfinished
from tests.gateway.deployment import deploy
from tests.gateway.one_worker import ENVIRON, OneWorker

DENIED = {"allow": False, "reasons": [], "obligations": {}}
INPUTS = [
    orjson.dumps(
        {
            "principal": {"org": "acme", "team": team, "app": "web"},
            "intent": {"model": "plain", "endpoint": "chat"},
            "budget": {"band": "ok"},
            "risk": {"level": "normal"},
        }
    )
    for team in ("search", "billing", "support")
]


class Engine:
    """Answers as it is told, and counts."""

    revision = "r1"
    away_since_s = None

    def __init__(self, answer: Callable[[bytes], object]) -> None:
        self.answer = answer
        self.asked = 0

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        assert entry == ADMISSION
        self.asked += 1
        return Answer(self.answer(input_json), self.revision)


def raising(error: EvaluationError) -> Callable[[bytes], object]:
    def answer(_: bytes) -> object:
        raise error

    return answer


def broken_too() -> Any:
    return Engine(raising(EvaluationError("a rule fails")))


SOUND: Any = Engine(lambda _: DENIED)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedConfig:
    return load(deploy(tmp_path, "http://127.0.0.1:9"), ENVIRON)


async def test_one_that_decides_or_cannot_be_reached_has_nothing_against_it(loaded: LoadedConfig) -> None:
    deciding: Any = Engine(lambda _: DENIED)
    await probe(deciding, SOUND, INPUTS, loaded)
    assert deciding.asked == len(INPUTS)
    await probe(SOUND, SOUND, INPUTS, loaded)
    assert SOUND.asked == 0
    remote = replace(loaded, config=loaded.config.model_copy(update={"policy": Policy(url="http://127.0.0.1:9")}))
    away: Any = Engine(raising(EngineAway("nobody answers")))
    await probe(away, SOUND, INPUTS, remote)
    assert away.asked == 1


async def test_one_evaluation_that_does_not_end_and_what_the_one_in_force_cannot_decide_are_no_reason(
    loaded: LoadedConfig,
) -> None:
    times = iter([Unfinished("it did not end")])
    once: Any = Engine(lambda _: DENIED if next(times, None) is None else raising(Unfinished("it did not end"))(b""))
    await probe(once, SOUND, INPUTS, loaded)
    broken: Any = Engine(raising(EvaluationError("a rule failed")))
    await probe(broken, broken_too(), INPUTS, loaded)
    assert (once.asked, broken.asked) == (len(INPUTS), len(INPUTS))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda given: DENIED if b"search" in given else {**DENIED, "allow": "yes"}, "allow must be a boolean"),
        (raising(Unfinished("the evaluation did not end within 250 ms")), "did not end within 250 ms"),
        (raising(EngineAway("the engine did not come to this evaluation within 5 s")), "did not come to this"),
    ],
)
async def test_one_that_decides_nothing_is_refused_at_the_rule_that_admits(
    loaded: LoadedConfig, answer: Callable[[bytes], object], why: str
) -> None:
    engine: Any = Engine(answer)
    with pytest.raises(BundleError, match=rf"admission\.rego:\d+: decides nothing for acme/\w+/web to plain .*{why}"):
        await probe(engine, SOUND, INPUTS, loaded)


async def test_one_that_takes_long_is_asked_no_more_after_a_while(
    loaded: LoadedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "PROBE_S_MAX", 0.0)
    slow: Any = Engine(lambda _: DENIED)
    await probe(slow, SOUND, INPUTS * 1000, loaded)
    assert slow.asked < len(INPUTS) * 1000


async def test_what_keys_would_ask_of_each_model_is_asked_and_no_revoked_ones(tmp_path: Path) -> None:
    one = OneWorker(tmp_path)
    of = await one.open()
    keys = KeyStore(one.home.keys)
    keys.create("acme", "search", "web")
    revoked, _ = keys.create("acme", "gone", "web")
    keys.revoke(revoked.key_id)
    asked = [orjson.loads(each) for each in questions([], keys.list(), of.catalogue)]
    assert {each["principal"]["team"] for each in asked} == {"search"}
    assert {each["intent"]["model"] for each in asked} == set(of.catalogue.offers)
    await one.close()
