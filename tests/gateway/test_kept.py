"""Withheld answers are kept within bounds, for the key that asked, until a person has said what becomes of them."""

from typing import Any

import pytest

from domain.intent import Principal
from gateway.approvals import KIND_MAX, Approval, Approvals, Person, State, UnknownApproval
from gateway.errors import APPROVAL_DENIED, APPROVAL_NOT_FOUND, Refusal
from gateway.kept import US, KeptAnswer, KeptAnswers, fetching, nothing_withheld, reading

ADA, BOB = Principal("acme", "search", "web", "", "k1"), Principal("acme", "search", "web", "", "k2")
HEADERS = [(b"content-type", b"application/json")]


class Rows:
    def record(self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None) -> None:
        """Nothing is recorded here."""


def asked(approvals: Approvals) -> Approval:
    return approvals.request("answer", "r1", requested_by=Person("k1"), ttl_s=60, detail={})


def waiting(name: str) -> Approval:
    return Approval(name, "answer", "r1", "", {}, Person("k1"), 1, 61)


def test_an_approved_answer_is_for_the_key_that_asked() -> None:
    kept, approvals = KeptAnswers(10, 1000, 60), Approvals(Rows(), lambda: US)
    fetch = fetching(kept, approvals, lambda: US)
    name = (approval := asked(approvals)).id
    kept.put(approval, ADA, HEADERS, b"answer", US)
    assert reading(kept, lambda: US)(name) == b"answer"
    assert reading(kept, lambda: US)("none") is None
    pending = fetch(name, ADA)
    assert isinstance(pending, Approval)
    assert pending.state is State.PENDING
    approvals.decide(name, Person("admin"), approve=True)
    for _ in range(2):
        answer = fetch(name, ADA)
        assert isinstance(answer, KeptAnswer)
        assert (answer.headers, answer.body) == (HEADERS, b"answer")
    for principal, other in ((BOB, name), (ADA, "none")):
        refusal = fetch(other, principal)
        assert isinstance(refusal, Refusal)
        assert refusal.kind is APPROVAL_NOT_FOUND


def test_a_denied_answer_is_forgotten() -> None:
    kept, approvals = KeptAnswers(10, 1000, 60), Approvals(Rows(), lambda: US)
    name = (approval := asked(approvals)).id
    kept.put(approval, ADA, HEADERS, b"answer", US)
    approvals.decide(name, Person("admin"), approve=False, reason="not this")
    refusal = fetching(kept, approvals, lambda: US)(name, ADA)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is APPROVAL_DENIED
    assert "denied: not this" in refusal.message
    assert len(kept) == 0


def test_an_approved_answer_is_fetched_however_much_else_has_ended_since() -> None:
    kept, approvals = KeptAnswers(10, 1000, 60), Approvals(Rows(), lambda: US)
    approval = asked(approvals)
    kept.put(approval, ADA, HEADERS, b"answer", US)
    approvals.decide(approval.id, Person("admin"), approve=True)
    for _ in range(KIND_MAX["answer"]):
        approvals.expire(asked(approvals).id, "whoever asked has left")
    with pytest.raises(UnknownApproval):
        approvals.get(approval.id)
    answer = fetching(kept, approvals, lambda: US)(approval.id, ADA)
    assert isinstance(answer, KeptAnswer)
    assert answer.body == b"answer"


def test_the_oldest_is_forgotten_over_a_bound() -> None:
    kept = KeptAnswers(3, 100, 60)
    for number in range(4):
        kept.put(waiting(str(number)), ADA, HEADERS, b"x" * 10, US)
    assert [kept.get(str(number), US) is not None for number in range(4)] == [False, True, True, True]
    kept = KeptAnswers(10, 100, 60)
    for number in range(5):
        assert kept.can_keep(25)
        kept.put(waiting(str(number)), ADA, HEADERS, b"x" * 25, US)
    assert [kept.get(str(number), US) is not None for number in range(5)] == [False, True, True, True, True]
    assert not kept.can_keep(26)


def test_an_answer_is_forgotten_after_a_time() -> None:
    kept = KeptAnswers(10, 100, 60)
    kept.put(waiting("a"), ADA, HEADERS, b"x", US)
    assert kept.get("a", 60 * US) is not None
    assert kept.get("a", 61 * US) is None
    kept.forget("a")
    assert len(kept) == 0


def test_where_nothing_is_ever_withheld_nothing_is_found() -> None:
    refusal = nothing_withheld("a", ADA)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is APPROVAL_NOT_FOUND


def test_one_key_crowds_out_only_its_own() -> None:
    for kept, body in ((KeptAnswers(3, 1000, 60), b"x"), (KeptAnswers(99, 100, 60), b"x" * 25)):
        kept.put(waiting("b0"), BOB, HEADERS, b"answer", US)
        for number in range(9):
            kept.put(waiting(f"a{number}"), ADA, HEADERS, body, US)
        assert kept.get("b0", US) is not None
        assert kept.get("a0", US) is None
        assert kept.get("a8", US) is not None
