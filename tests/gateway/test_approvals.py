"""Approvals: pending until approved, denied or expired, once, each move a row, and never by whoever asked."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.approvals import (
    DETAIL_BYTES_MAX,
    KEY_PART,
    KIND_MAX,
    LEGAL,
    Approval,
    Approvals,
    IllegalMove,
    Move,
    Person,
    SamePerson,
    State,
    TooManyPending,
    UnknownApproval,
)
from gateway.cli import approve
from ledger.journal import JournalError

NOON_S = 1_772_280_000
ALICE, BOB = Person("key-alice", "alice"), Person("key-bob", "bob")


class Rows:
    """Takes `control` rows, until its disk is full."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.details: list[Any] = []
        self.is_full = False

    def record(self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None) -> None:
        if self.is_full:
            raise JournalError("full")
        self.rows.append((action, actor, subject))
        self.details.append(detail)


class Setup:
    """Approvals on a clock that tests set."""

    def __init__(self) -> None:
        self.now_s = NOON_S
        self.controls = Rows()
        self.approvals = Approvals(self.controls, lambda: self.now_s * 1_000_000)

    def ask(self, by: Person = ALICE, ttl_s: int = 60, digest: str = "d") -> Approval:
        return self.approvals.request("reload", "a", requested_by=by, ttl_s=ttl_s, detail={"n": 1}, digest=digest)

    @property
    def actions(self) -> list[str]:
        return [action for action, _, _ in self.controls.rows]


@pytest.fixture
def of() -> Setup:
    return Setup()


def test_a_request_is_pending_and_a_row(of: Setup) -> None:
    made = of.ask()
    assert (made.state, made.requested_at, made.expires_at) == (State.PENDING, NOON_S, NOON_S + 60)
    assert of.controls.rows == [("approval_requested", "key-alice", made.id)]
    assert of.controls.details[0]["detail"] == {"n": 1}
    assert of.approvals.every() == [made]
    assert of.approvals.get(made.id).view()["requested_by"] == "key-alice"


@pytest.mark.parametrize(("approve", "state"), [(True, State.APPROVED), (False, State.DENIED)])
def test_another_person_decides_once_and_that_is_a_row(of: Setup, approve: bool, state: State) -> None:
    made = of.ask()
    decided = of.approvals.decide(made.id, BOB, approve=approve, reason="looked at it")
    assert (decided.state, decided.decided_by, decided.reason) == (state, "key-bob", "looked at it")
    assert of.controls.rows[-1] == (f"approval_{state}", "key-bob", made.id)
    assert of.approvals.every() == []
    assert of.approvals.every(pending_only=False) == [decided]
    for again in (True, False):
        with pytest.raises(IllegalMove, match="already"):
            of.approvals.decide(made.id, Person("key-carol"), approve=again)
    assert of.approvals.get(made.id) == decided
    assert len(of.controls.rows) == 2


def test_only_the_moves_of_the_table_are_made() -> None:
    assert {state for state, _ in LEGAL} == {State.PENDING}
    assert {move for _, move in LEGAL} == set(Move)
    assert set(LEGAL.values()) == set(State) - {State.PENDING}


@pytest.mark.parametrize(
    ("asks", "decides"),
    [
        (ALICE, ALICE),
        (ALICE, Person("key-other", "alice")),
        (Person("k1"), Person("k1")),
        (Person("k1"), Person("k2", line=frozenset({"k2", "k1"}))),
        (Person("k2", line=frozenset({"k2", "k1"})), Person("k1")),
        (Person("k2", line=frozenset({"k2", "k1"})), Person("k3", line=frozenset({"k3", "k1"}))),
    ],
    ids=["same key", "same user", "no user", "a key it has made", "the maker of its key", "keys of one maker"],
)
def test_whoever_asked_cannot_approve_but_may_take_it_back(of: Setup, asks: Person, decides: Person) -> None:
    made = of.ask(asks)
    with pytest.raises(SamePerson, match="another"):
        of.approvals.decide(made.id, decides, approve=True)
    assert of.approvals.get(made.id).state is State.PENDING
    assert of.actions == ["approval_requested"]
    assert of.approvals.decide(made.id, decides, approve=False).state is State.DENIED


def test_persons_without_users_are_told_apart_by_their_keys() -> None:
    assert not Person("k1").is_same(Person("k2"))
    assert not ALICE.is_same(BOB)


def test_what_nobody_decides_in_time_expires_and_is_a_row(of: Setup) -> None:
    made = of.ask(ttl_s=60)
    of.now_s += 59
    assert of.approvals.get(made.id).state is State.PENDING
    of.now_s += 1
    assert of.approvals.get(made.id).state is State.EXPIRED
    assert of.controls.rows[-1] == ("approval_expired", "bursar", made.id)
    with pytest.raises(IllegalMove, match="expired"):
        of.approvals.decide(made.id, BOB, approve=True)


def test_what_has_expired_cannot_be_approved_though_no_row_can_say_so(of: Setup) -> None:
    made = of.ask(ttl_s=60)
    of.now_s += 61
    of.controls.is_full = True
    with pytest.raises(IllegalMove, match="expired"):
        of.approvals.decide(made.id, BOB, approve=True)
    of.controls.is_full = False
    assert of.approvals.get(made.id).state is State.EXPIRED


def test_what_cannot_be_recorded_is_not_done(of: Setup) -> None:
    made = of.ask()
    of.controls.is_full = True
    with pytest.raises(JournalError):
        of.ask(digest="e")
    with pytest.raises(JournalError):
        of.approvals.decide(made.id, BOB, approve=True)
    assert of.approvals.every() == [made]
    of.controls.is_full = False
    assert of.approvals.decide(made.id, BOB, approve=True).state is State.APPROVED


def test_what_nobody_waits_for_any_more_ends_and_stays_as_it_is_where_it_has_ended(of: Setup) -> None:
    made, other = of.ask(), of.ask(digest="e")
    of.approvals.expire(made.id, "the client has left")
    assert (of.approvals.get(made.id).state, of.approvals.get(made.id).reason) == (State.EXPIRED, "the client has left")
    of.approvals.decide(other.id, BOB, approve=True)
    of.approvals.expire(other.id, "the client has left")
    assert of.approvals.get(other.id).state is State.APPROVED


def test_the_same_thing_that_waits_already_is_found_by_its_digest(of: Setup) -> None:
    made = of.ask(digest="d")
    assert of.approvals.pending_for("reload", "d") == made
    assert of.approvals.pending_for("grant", "d") is None
    assert of.approvals.pending_for("reload", "e") is None
    of.approvals.decide(made.id, BOB, approve=False)
    assert of.approvals.pending_for("reload", "d") is None


def test_an_unknown_one_says_where_to_look(of: Setup) -> None:
    for ask in (of.approvals.get, lambda each: of.approvals.decide(each, BOB, approve=True)):
        with pytest.raises(UnknownApproval, match="bursar approvals"):
            ask("nothing")


def test_what_waits_and_what_is_remembered_are_bounded(of: Setup) -> None:
    for number in range(KIND_MAX["reload"]):
        of.ask(Person(f"k{number}"))
    with pytest.raises(TooManyPending, match="100 approvals of kind reload are pending"):
        of.ask()
    for _ in range(2):
        of.now_s += 61
        of.ask()
    assert [each.state for each in of.approvals.every()] == [State.PENDING]
    ended = [each for each in of.approvals.every(pending_only=False) if each.state is State.EXPIRED]
    assert len(ended) == KIND_MAX["reload"]
    with pytest.raises(ValueError, match="bytes"):
        of.approvals.request("reload", "a", requested_by=ALICE, ttl_s=1, detail={"x": "y" * DETAIL_BYTES_MAX})


def test_one_key_and_one_kind_take_up_no_more_than_their_part(of: Setup) -> None:
    def answer(key_id: str) -> Approval:
        return of.approvals.request("answer", "r", requested_by=Person(key_id), ttl_s=60, detail={})

    for number in range(KEY_PART):
        for _ in range(KIND_MAX["answer"] // KEY_PART):
            answer(f"k{number}")
        with pytest.raises(TooManyPending):
            answer(f"k{number}")
    with pytest.raises(TooManyPending):
        answer("another")
    assert of.ask().state is State.PENDING


def test_what_there_was_no_room_to_list_is_counted(
    of: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {"path": "budgets.a.limit", "before": 5, "after": 9, "why": "more fits"}
    detail = {"loosens": [shown], "loosens_count": 1_001}
    made = of.approvals.request("reload", "a", requested_by=ALICE, ttl_s=60, detail=detail)

    class Gateway:
        def get(self, path: str, **query: str) -> dict[str, Any]:
            return {"approvals": [made.view()]}

    monkeypatch.setattr(approve, "_admins", lambda *named: [Gateway()])
    approve.approvals()
    said = capsys.readouterr().out
    assert "  budgets.a.limit: 5 -> 9: more fits\n  and 1,000 more" in said


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda of, made: of.approvals.decide(made.id, BOB, approve=True), State.APPROVED),
        (lambda of, made: of.approvals.decide(made.id, BOB, approve=False), State.DENIED),
        (lambda of, made: of.approvals.expire(made.id, "gone"), State.EXPIRED),
    ],
    ids=["approved", "denied", "expired"],
)
async def test_all_who_wait_hear_how_it_ended(end: Callable[[Setup, Approval], None], state: State) -> None:
    of = Setup()
    made = of.ask()
    waiting = [asyncio.create_task(of.approvals.decided(made.id, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    end(of, made)
    async with asyncio.timeout(20):
        assert [each.state for each in await asyncio.gather(*waiting)] == [state] * 3


async def test_who_waits_no_longer_than_a_while_is_told_that_it_is_pending() -> None:
    of = Setup()
    made = of.ask()
    assert (await of.approvals.decided(made.id, 0.01)).state is State.PENDING
    of.approvals.decide(made.id, BOB, approve=True)
    assert (await of.approvals.decided(made.id, 30)).state is State.APPROVED


async def test_who_waits_hears_when_the_time_is_over() -> None:
    of = Setup()
    made = of.ask(ttl_s=60)
    of.now_s += 60
    assert (await of.approvals.decided(made.id, 30)).state is State.EXPIRED
