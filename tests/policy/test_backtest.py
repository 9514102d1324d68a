"""What another bundle would have decided is added up right, in bounded memory, and a crash costs one input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domain.decision import Obligations
from policy import backtest, judges
from policy.backtest import (
    BadRecord,
    Case,
    Flip,
    Ruling,
    Tally,
    changed_obligations,
    flip_of,
    flips,
    recorded_ruling,
    ruling_of,
)
from policy.child import Outcome
from policy.judges import Judge, Judges
from policy.port import BundleError

ALLOWED = Ruling(allow=True)
DENIED = Ruling(allow=False, codes=("frozen",))
CAPPED = Ruling(allow=True, obligations=Obligations(max_output_tokens=10))
WriteBundle = Callable[..., Path]
# Each input names a shape of Rego's answer, or what harms the process that evaluates.
RULES = """package bursar.admission

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {"max_output_tokens": data.bursar.admission.cap}} if {
	input.principal.org == "acme"
} else := {"allow": false, "reasons": [{"code": "unknown_org", "message": "No."}], "obligations": {}} if {
	input.principal.org == "other"
} else := {"allow": "yes"} if {
	input.principal.org == "malformed"
}
"""


def an_input(org: str = "acme", team: str = "search", app: str = "web", **more: Any) -> bytes:
    return json.dumps({"principal": {"org": org, "team": team, "app": app}, **more}).encode()


def case(ruling: Ruling = ALLOWED, requests: int = 1, list_cost_nusd: int = 10, **whose: Any) -> Case:
    return Case("d" * 64, an_input(**whose), ruling, requests, list_cost_nusd)


def answer(**changes: Any) -> Outcome:
    return Outcome({"allow": True, "reasons": [], "obligations": {}, **changes})


def test_rulings_are_read_from_what_engines_answer() -> None:
    assert ruling_of(answer()) == ALLOWED
    assert ruling_of(answer(obligations={"max_output_tokens": 10})) == CAPPED
    twice = [{"code": "frozen", "message": "a"}, {"code": "frozen", "message": "b"}]
    assert ruling_of(answer(allow=False, reasons=twice)) == DENIED


@pytest.mark.parametrize("outcome", [Outcome(None, "undefined"), answer(allow="yes"), Outcome(None)])
def test_what_fails_or_is_no_decision_denies_and_says_why(outcome: Outcome) -> None:
    ruling = ruling_of(outcome)
    assert not ruling.allow
    assert ruling.codes == ("policy_unavailable",)
    assert ruling.failure


def test_a_recorded_decision_is_the_ruling_that_was_recorded() -> None:
    obligations = json.dumps({"verify": ["secrets"], "max_output_tokens": 10, "of_a_later_version": 1})
    reasons = '[{"code": "frozen", "message": "m"}]'
    assert recorded_ruling("d", reasons, obligations, allow=False) == Ruling(
        allow=False, codes=("frozen",), obligations=Obligations(verify=("secrets",), max_output_tokens=10)
    )


@pytest.mark.parametrize(("reasons", "obligations"), [("{", "{}"), ("[1]", "{}"), ("[{}]", "{}"), ("[]", "[]")])
def test_a_record_that_cannot_be_read_is_named(reasons: str, obligations: str) -> None:
    with pytest.raises(BadRecord, match="on the input abc cannot be read"):
        recorded_ruling("abc", reasons, obligations, allow=True)


def test_flips_are_between_allowed_and_denied_and_of_obligations_while_allowed() -> None:
    one = case()
    assert flip_of(one, ALLOWED, DENIED) == Flip("allowed_to_denied", ("frozen",), one, ALLOWED, DENIED)
    assert flip_of(one, DENIED, CAPPED) == Flip("denied_to_allowed", ("frozen",), one, DENIED, CAPPED)
    assert flip_of(one, ALLOWED, CAPPED) == Flip("obligations_changed", ("max_output_tokens",), one, ALLOWED, CAPPED)
    assert flip_of(one, ALLOWED, ALLOWED) is None
    assert flip_of(one, DENIED, Ruling(allow=False, codes=("other",))) is None
    assert [each.kind for each in flips([(one, ALLOWED, ALLOWED), (one, ALLOWED, DENIED)])] == ["allowed_to_denied"]


def test_every_obligation_that_changes_is_named() -> None:
    both = Ruling(allow=True, obligations=Obligations(verify=("secrets",), cache_domain="app"))
    assert changed_obligations(ALLOWED, both) == ("verify", "cache_domain")


def test_requests_and_spend_add_up_by_kind_team_app_and_cause() -> None:
    tally = Tally()
    two_codes = Ruling(allow=False, codes=("frozen", "run_too_deep"))
    tally.add(case(requests=5, list_cost_nusd=50), ALLOWED, two_codes)
    tally.add(case(requests=3, list_cost_nusd=30, app="batch"), ALLOWED, CAPPED)
    tally.add(case(requests=2, list_cost_nusd=0, team="ads"), DENIED, ALLOWED)
    tally.add(case(requests=7, list_cost_nusd=70, team="ads"), ALLOWED, ALLOWED)
    view = tally.view()
    assert (view["inputs"], view["requests"], view["list_cost_nusd"], view["failed"]) == (4, 17, 150, 0)
    assert view["allowed_to_denied"] == {"inputs": 1, "requests": 5, "list_cost_nusd": 50}
    assert view["denied_to_allowed"] == {"inputs": 1, "requests": 2, "list_cost_nusd": 0}
    assert view["obligations_changed"] == {"inputs": 1, "requests": 3, "list_cost_nusd": 30}
    assert tally.flipped == 2
    teams = [(each["team"], each["requests"], each["of_requests"], each["of_inputs"]) for each in view["by_team"]]
    assert teams == [("search", 8, 8, 2), ("ads", 2, 9, 2)]
    assert [(each["team"], each["app"]) for each in view["by_app"]] == [
        ("search", "web"),
        ("search", "batch"),
        ("ads", "web"),
    ]
    causes = {(each["kind"], each["cause"]): each["requests"] for each in view["by_cause"]}
    assert causes == {
        ("allowed_to_denied", "frozen"): 5,
        ("allowed_to_denied", "run_too_deep"): 5,
        ("obligations_changed", "max_output_tokens"): 3,
        ("denied_to_allowed", "frozen"): 2,
    }


def test_what_fails_is_counted_and_denies() -> None:
    tally = Tally()
    failed = ruling_of(Outcome(None, "it broke"))
    flip = tally.add(case(), ALLOWED, failed)
    tally.add(case(), DENIED, failed)
    assert flip is not None
    assert flip.kind == "allowed_to_denied"
    assert tally.view()["failed"] == 2
    assert tally.view()["failures"] == [{"message": "it broke", "inputs": 2}]


def test_a_tally_is_bounded_and_still_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCOPES_MAX", "CODES_MAX", "FAILURES_MAX", "EXAMPLES_MAX"):
        monkeypatch.setattr(backtest, name, 3)
    tally = Tally()
    for number in range(10):
        after = Ruling(allow=False, codes=(f"code{number}",), failure=f"failure {number}")
        tally.add(case(requests=number, app=f"app{number}", team=f"team{number}"), ALLOWED, after)
    view = tally.view()
    for name in ("by_team", "by_app", "by_cause"):
        assert len(view[name]) == 4
        assert sum(each["requests"] for each in view[name]) == view["requests"] == 45
    assert sum(each["inputs"] for each in view["failures"]) == view["failed"] == 10
    assert [each["requests"] for each in view["examples"]] == [9, 8, 7]


def test_examples_admit_or_refuse_anew_before_obligations_change() -> None:
    tally = Tally()
    tally.add(case(requests=100), ALLOWED, CAPPED)
    tally.add(case(requests=1), ALLOWED, DENIED)
    assert [each["kind"] for each in tally.view()["examples"]] == ["allowed_to_denied", "obligations_changed"]
    assert tally.view()["examples"][0]["before"] == {"allow": True, "codes": (), "obligations": {}}


def test_an_input_without_a_principal_belongs_to_nobody() -> None:
    for text in (b"{}", b"no json", b"[]", b'{"principal": 5}'):
        assert backtest.whose_of(text) == ("", "", "")


@pytest.fixture
def bundle(write_bundle: WriteBundle) -> Path:
    return write_bundle({"bursar/admission/admission.rego": RULES, "bursar/admission/data.json": '{"cap": 10}'})


def test_judges_decide_all_cases_in_their_order(bundle: Path) -> None:
    cases = [case(org=("acme", "other")[number % 2], app=f"app{number}") for number in range(1_000)]
    with Judges(bundle, processes=2) as of:
        judged = [each for part in of.judged(cases, slice_max=64) for each in part]
        assert of.revision.startswith("sha256:")
        assert of.old_revision == ""
    assert [each.case for each in judged] == cases
    assert {each.before for each in judged} == {ALLOWED}
    assert [each.after.allow for each in judged] == [number % 2 == 0 for number in range(1_000)]
    assert judged[0].after == CAPPED


def test_two_bundles_are_compared_by_what_each_decides(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "bursar" / "admission"
    other.mkdir(parents=True)
    (other / "admission.rego").write_text(RULES)
    (other / "data.json").write_text('{"cap": 5}')
    with Judges(bundle, tmp_path / "other", processes=1) as of:
        [[judged]] = of.judged([case(DENIED)])
        assert of.revision != of.old_revision != ""
    assert (judged.before.obligations.max_output_tokens, judged.after.obligations.max_output_tokens) == (5, 10)


def test_inputs_that_differ_in_nothing_the_bundle_reads_are_decided_once(bundle: Path) -> None:
    with Judges(bundle, processes=1) as of:
        judge = of._pairs.get()[0]
        asked: list[list[bytes]] = []
        anew = judge._anew
        judge._anew = lambda inputs: anew(asked.append(list(inputs)) or inputs)  # type: ignore[func-returns-value,method-assign]
        inputs = [an_input(app=f"app{number}") for number in range(10)] + [an_input(org="other"), b"no json"]
        first = judge.rulings(inputs)
        assert judge.rulings(inputs) == first
    assert first[:10] == [CAPPED] * 10
    assert not first[10].allow
    assert first[11].failure
    assert asked == [[b'{"principal":{"org":"acme"}}', b'{"principal":{"org":"other"}}', b"no json"], []]


def test_what_is_malformed_or_undefined_fails_alone(bundle: Path) -> None:
    with Judges(bundle, processes=1) as of:
        [judged] = of.judged([case(org=org) for org in ("acme", "malformed", "nobody", "other")])
    assert [bool(each.after.failure) for each in judged] == [False, True, True, False]


class Mortal:
    """A child that ends on some inputs."""

    started = 0

    def __init__(self, deadly: frozenset[bytes]) -> None:
        self._deadly = deadly
        self.process = self
        self.returncode: int | None = None
        self.revision = "sha256:mortal"

    def outcomes(self, entry: str, inputs: Any, timeout_s: float) -> Any:
        # As the real one: what was answered before the end may be lost with it.
        answered = []
        for each in inputs:
            if each in self._deadly:
                self.returncode = -6
                raise judges.EngineAway("the engine ended with -6")
            answered.append(Outcome({"allow": True, "reasons": [], "obligations": {}}))
            if len(answered) == 3:
                yield from answered
                answered = []
        yield from answered

    def evaluate(self, entry: str, input_json: bytes, timeout_s: float) -> Any:
        return next(iter(list(self.outcomes(entry, [input_json], timeout_s)))).value

    def close(self) -> None:
        """Nothing to end."""


def mortal_judge(monkeypatch: pytest.MonkeyPatch, bundle: Path, deadly: set[bytes]) -> Judge:
    class Start:
        @staticmethod
        def start(files: Any, root: Any) -> Mortal:
            Mortal.started += 1
            return Mortal(frozenset(deadly))

    monkeypatch.setattr(Mortal, "started", 0)
    monkeypatch.setattr(judges, "Child", Start)
    return Judge(judges.files_of(bundle), bundle)


def test_an_input_that_ends_the_engine_fails_and_the_others_are_decided(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    inputs = [an_input(org=f"org{number}") for number in range(200)]
    read = [b'{"principal":{"org":"org%d"}}' % number for number in range(200)]
    judge = mortal_judge(monkeypatch, bundle, {read[5], read[6], read[150]})
    found = judge.rulings(inputs)
    assert [number for number, ruling in enumerate(found) if ruling.failure] == [5, 6, 150]
    assert "ended with -6" in found[5].failure
    assert Mortal.started == 1 + 1 + 2 + 1 + 1


def test_a_bundle_that_ends_the_engine_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    inputs = [an_input(org=f"org{number}") for number in range(100)]
    judge = mortal_judge(monkeypatch, bundle, {b'{"principal":{"org":"org%d"}}' % number for number in range(100)})
    with pytest.raises(BundleError, match="ends the engine on more than 20 inputs"):
        judge.rulings(inputs)


def test_an_evaluation_that_does_not_end_fails_alone(write_bundle: WriteBundle) -> None:
    numbers = "".join(f"\n\tsome {name} in numbers.range(1, 1000)" for name in "abc")
    endless = RULES.replace(
        'input.principal.org == "other"', f'input.principal.org == "endless"{numbers}\n\ta + b + c == 0'
    )
    bundle = write_bundle({"bursar/admission/admission.rego": endless, "bursar/admission/data.json": '{"cap": 10}'})
    judge = Judge(judges.files_of(bundle), bundle, answer_s=2.0)
    try:
        found = judge.rulings([an_input("acme"), an_input("endless"), an_input("acme", app="after")])
    finally:
        judge.close()
    assert [bool(each.failure) for each in found] == [False, True, False]
    assert "did not end within 2 s" in found[1].failure


def test_rulings_that_are_known_are_forgotten_where_their_inputs_hold_too_many_bytes(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    monkeypatch.setattr(judges, "KNOWN_BYTES_MAX", 250)
    judge = Judge(judges.files_of(bundle), bundle)
    try:
        assert [each.allow for each in judge.rulings([an_input("acme"), an_input("b" * 100)])] == [True, False]
        assert len(judge._known) == 2
        assert [each.allow for each in judge.rulings([an_input("c" * 100), an_input("acme")])] == [False, True]
        assert judge._known == {}
    finally:
        judge.close()


def test_a_bundle_that_cannot_serve_leaves_no_process(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Judges(bundle, tmp_path / "missing", processes=2)
