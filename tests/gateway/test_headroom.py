"""Headroom: the least of what budgets, risk and error budgets leave, whose it is, and nothing where it is not known."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import Amounts
from domain.ids import uuid7
from domain.intent import Principal
from gateway.headroom import (
    FULL,
    MEASURED_AT_ONCE_MAX,
    RISK_PERMILLE,
    Headroom,
    Headrooms,
    Part,
    Risk,
    Scope,
    UnknownScope,
    budget_part,
    covers,
    error_budget_part,
    resolved,
    risk_of,
    risk_part,
)
from gateway.objectives import Slo
from ledger.book import Book, Route
from ledger.budgets import Budget, Subject
from ledger.client import LedgerUnavailable, QueryFailed
from ledger.counters import Grant
from ledger.holds import Demand, Hold
from ledger.slo import Counts, Measured, Objective, Status, assess
from ledger.windows import parse_window
from policy.risk import Tracker
from policy.scoring import LEVELS
from tests.policy.scorings import scoring

NOW_S = 1_773_146_000
US = 1_000_000
APP = Scope("acme", "search", "chat")
ALONE = AsyncMock(return_value=True)
NO_ROOM = ("budget", "risk", "error_budget")


def budget(name: str, limit: int = 1_000, window: str = "day", mode: Any = "hard", **scope: str) -> Budget:
    return Budget(name, "finance", tuple(scope.items()), "tokens", limit, parse_window(window), mode)


def spend(book: Book, tokens: int, now_s: int = NOW_S, **more: str) -> None:
    """One request of the app, settled."""
    values = {"org": "acme", "team": "search", "app": "chat", "user": "u", "key": "k", "run": "", "model": "small"}
    subject = Subject(**{**values, "runtime": "sim", **more})
    wanted = Demand(Amounts(tokens=tokens), Amounts(), 0, 0)
    held = book.hold(book.route(subject, now_s), wanted, uuid7(), {}, now_s * US, 60)
    assert isinstance(held, Hold)
    book.settle(held.hold_id, Amounts(tokens=tokens), now_s * US)


def route(book: Book, scope: Scope, now_s: int = NOW_S) -> Route:
    return book.route(Subject(scope.org, scope.team, scope.app, "", "", "", scope.model, ""), now_s)


def of_budgets(book: Book, scope: Scope = APP, now_s: int = NOW_S) -> Part:
    return budget_part(route(book, scope, now_s), scope, now_s)


def test_the_tightest_hard_budget_binds() -> None:
    book = Book([budget("org", 10_000, org="acme"), budget("team", org="acme", team="*"), budget("all", 600)], NOW_S)
    spend(book, 250)
    assert of_budgets(book) == Part(583, "all (*)", "budget all (*) has 350 of 600 tokens left, window day")
    spend(book, 300, team="ads")
    assert of_budgets(book, Scope("acme", "ads")).permille == 83
    book.configure([each for each in book.budgets.values() if each.id != "all"], NOW_S)
    assert of_budgets(book).permille == 750
    assert of_budgets(book).limited_by == "team (org=acme,team=search)"
    assert of_budgets(book, Scope("acme")).limited_by == "org (org=acme)"
    assert of_budgets(book, Scope("umbra")) == Part(FULL, "", "no hard budget is over all of org=umbra")


def test_what_is_held_is_not_left_and_what_is_granted_is() -> None:
    book = Book([budget("team", team="search")], NOW_S)
    subject = Subject("acme", "search", "chat", "", "k", "", "small", "sim")
    wanted = Demand(Amounts(tokens=400), Amounts(), 0, 0)
    assert isinstance(book.hold(book.route(subject, NOW_S), wanted, uuid7(), {}, NOW_S * US, 60), Hold)
    assert of_budgets(book).permille == 600
    book.grant(Grant("g", "team", "*", 1_000, NOW_S + 60, "someone", ""), NOW_S)
    assert of_budgets(book).permille == 800
    assert of_budgets(book, now_s=NOW_S + 60).permille == 600


def test_a_window_that_turned_is_whole_again() -> None:
    book = Book([budget("minute", window="minute", team="search")], NOW_S)
    spend(book, 999)
    assert of_budgets(book).permille == 1
    assert of_budgets(book, now_s=NOW_S + 60).permille == FULL


def test_soft_budgets_and_those_of_a_part_of_the_scope_do_not_bind() -> None:
    narrower = [
        budget("soft", 10, mode="soft", team="search"),
        *[budget(name, 10, team="search", **{name: "*"}) for name in ("user", "key", "runtime")],
        budget("run", 10, run="*"),
        budget("app", 10, team="search", app="chat"),
        budget("model", 10, team="search", model="small"),
        budget("other", 10, team="ads"),
    ]
    book = Book(narrower, NOW_S)
    spend(book, 10)
    assert of_budgets(book, Scope("acme", "search")).permille == FULL
    assert of_budgets(book).limited_by == "app (team=search,app=chat)"
    assert of_budgets(book, Scope("acme", "search", model="small")).limited_by == "model (team=search,model=small)"
    assert of_budgets(book, Scope("acme", "search", model="large")).permille == FULL


def test_an_overspent_budget_leaves_nothing_and_no_less() -> None:
    book = Book([budget("team", 100, team="search")], NOW_S)
    spend(book, 100)
    book.configure([budget("team", 50, team="search")], NOW_S)
    assert of_budgets(book).permille == 0
    assert "has 0 of 50 tokens left" in of_budgets(book).why


def test_what_others_have_of_a_shared_budget_must_be_known() -> None:
    book = Book([budget("team", team="search")], NOW_S)
    part = budget_part(route(book, APP), APP, NOW_S, is_fresh=False)
    assert (part.permille, part.known, part.limited_by) == (0, False, "team (team=search)")
    assert "could not be found out" in part.why
    assert budget_part(route(Book([], NOW_S), APP), APP, NOW_S, is_fresh=False).permille == FULL


@given(st.integers(1, 1 << 62), st.data())
def test_the_share_left_is_whole_thousandths_rounded_down(limit: int, data: st.DataObject) -> None:
    spent = data.draw(st.integers(0, limit))
    book = Book([budget("team", limit, team="search")], NOW_S)
    spend(book, spent)
    assert of_budgets(book).permille == (limit - spent) * 1_000 // limit


def test_each_level_of_risk_has_its_room() -> None:
    assert tuple(RISK_PERMILLE) == LEVELS
    rooms = [risk_part(Risk(level, "team acme/search")).permille for level in LEVELS]
    assert rooms == [1_000, 500, 200, 0]
    where = "team acme/search"
    assert risk_part(Risk("high", where)) == Part(200, where, f"the risk of {where} is high")
    for level in (None, "wild"):
        part = risk_part(Risk(level, "the scores are away"))
        assert (part.permille, part.known, part.why) == (0, False, "the risk level cannot be told: the scores are away")


def test_the_worse_of_team_and_app_is_the_risk_of_a_scope() -> None:
    tracker = Tracker(scoring())
    assert risk_of(tracker, APP) == Risk("normal", "team acme/search")
    while tracker.level_of("acme", "search", "web") != "high":
        tracker.observe("policy_violation", "acme", "search", "web", "", NOW_S)
    assert risk_of(tracker, Scope("acme", "search", "web")).level == "high"
    assert risk_of(tracker, APP) == Risk("high", "team acme/search")
    assert risk_of(tracker, Scope("acme", "ads", "web")).level == "normal"
    assert risk_part(risk_of(tracker, Scope("acme"))).permille == FULL
    assert risk_part(risk_of(None, APP)).known is False


def slo(name: str, **scope: str) -> Objective:
    whole = {"id": name, "owner": "o", "scope": scope, "kind": "availability", "objective": 0.9}
    return Slo.model_validate({**whole, "fast": {"burn": 10}, "slow": {"burn": 5}}).target


def status(name: str, bad: int, total: int = 100) -> Status:
    return assess(slo(name), Measured(window=Counts(total, total - bad)))


@pytest.mark.parametrize(
    ("named", "scope", "binds"),
    [
        ({}, Scope(), True),
        ({}, APP, True),
        ({"org": "acme"}, APP, True),
        ({"team": "search", "app": "chat"}, APP, True),
        ({"team": "search", "app": "chat", "model": "small"}, APP, True),
        ({"app": "chat", "model": "small"}, APP._replace(model="small"), True),
        ({"app": "chat", "model": "small"}, APP._replace(model="large"), False),
        ({"app": "chat"}, APP._replace(model="large"), True),
        ({"app": "other"}, APP, False),
        ({"org": "umbra"}, APP, False),
        ({"app": "chat"}, Scope("acme", "search"), False),
        ({"model": "small"}, APP, False),
        ({"model": "small"}, APP._replace(model="small"), True),
        ({"model": "small"}, Scope(), True),
        ({"team": "search", "model": "small"}, APP, False),
        ({"team": "search", "model": "small"}, Scope("acme", "search"), True),
        ({"org": "acme"}, Scope(), False),
    ],
)
def test_an_slo_binds_the_scopes_that_lie_in_it(named: dict[str, str], scope: Scope, binds: bool) -> None:
    assert covers(slo("s", **named), scope) is binds


def test_the_slo_with_the_least_left_binds() -> None:
    part = error_budget_part([status("calm", 1), status("worse", 4)], APP)
    assert part == Part(600, "worse", "SLO worse has 60.0% of its error budget left")
    assert error_budget_part([status("spent", 20), status("calm", 1)], APP).permille == 0
    nothing = error_budget_part([], APP)
    assert (nothing.permille, nothing.known, nothing.limited_by) == (FULL, True, "")


def test_an_slo_without_data_is_no_room_and_not_known() -> None:
    part = error_budget_part([status("calm", 0), status("silent", 0, total=0)], APP)
    assert (part.permille, part.known, part.limited_by) == (0, False, "silent")
    assert part.why.startswith("SLO silent cannot be judged: 0 events")
    both = error_budget_part([status("silent", 0, total=0), status("spent", 50)], APP)
    assert (both.permille, both.known, both.limited_by) == (0, False, "spent")


@given(st.tuples(*(st.integers(0, FULL) for _ in NO_ROOM)), st.tuples(*(st.booleans() for _ in NO_ROOM)))
def test_the_least_part_is_the_headroom(rooms: tuple[int, ...], known: tuple[bool, ...]) -> None:
    parts = [Part(room, name, name, known=is_known) for room, is_known, name in zip(rooms, known, NO_ROOM, strict=True)]
    found = Headroom(APP, *parts, ())
    assert found.overall == min(rooms)
    assert found.parts[found.binding].permille == found.overall
    assert found.known == all(known)
    assert found.policy_input()["headroom"] == dict(zip((*NO_ROOM, "overall"), (*rooms, min(rooms)), strict=True))


PRINCIPALS = [
    Principal("acme", "search", "chat", "", "k1"),
    Principal("acme", "search", "web", "", "k2"),
    Principal("acme", "ads", "web", "", "k3"),
    Principal("umbra", "risk", "web", "", "k4"),
]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (Scope(), Scope()),
        (Scope("acme"), Scope("acme")),
        (Scope(team="ads"), Scope("acme", "ads")),
        (Scope(app="chat"), APP),
        (Scope(org="umbra", app="web"), Scope("umbra", "risk", "web")),
        (Scope(team="search", app="web", model="small"), Scope("acme", "search", "web", "small")),
        (Scope(model="small"), Scope(model="small")),
    ],
)
def test_a_scope_is_found_by_who_has_a_key(asked: Scope, found: Scope) -> None:
    assert resolved(asked, PRINCIPALS, {"small"}) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Scope(team="serch"), r"no application has a key for team=serch: .*; did you mean team=search\?"),
        (Scope("acme", "risk"), r"no application has a key for org=acme, team=risk"),
        (Scope(app="web"), r"app=web is not one scope but 3, as \(org=acme, team=ads, app=web\) and "),
        (Scope(team="search", model="smal"), r"there is no model smal; did you mean small\?"),
    ],
)
def test_a_scope_that_nobody_calls_from_is_refused(asked: Scope, said: str) -> None:
    with pytest.raises(UnknownScope, match=said):
        resolved(asked, PRINCIPALS, {"small"})


@dataclass
class Ledger:
    """A ledger in which every SLO has the same counts, unless it fails."""

    counts: Counts
    failure: Exception | None = None
    asked: list[dict[str, str]] = field(default_factory=list)

    def flush(self, timeout_s: float) -> None:
        if self.failure is not None:
            raise self.failure

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        self.asked.append(parameters)
        windows = ("window", "fast_long", "fast_short", "slow_long", "slow_short")
        pairs = [(f"{name}_total", self.counts.total) for name in windows]
        return [{**dict(pairs), **{f"{name}_good": self.counts.good for name in windows}}]


def gatherer(
    ledger: Any,
    objectives: Sequence[Objective],
    level: str | None = "normal",
    look: AsyncMock = ALONE,
) -> Headrooms:
    return Headrooms(
        Book([budget("team", team="search")], NOW_S),
        lambda: NOW_S * US,
        look,
        lambda: PRINCIPALS,
        lambda: {"small"},
        lambda: objectives,
        lambda: ledger,
        lambda scope: Risk(level, f"team {scope.org}/{scope.team}"),
    )


def gather(ledger: Any, objectives: Sequence[Objective], level: str | None = "normal", **asked: str) -> dict[str, Any]:
    return asyncio.run(gatherer(ledger, objectives, level).answer(**asked))


def test_the_answer_says_what_policies_see_and_what_binds() -> None:
    ledger = Ledger(Counts(100, 97))
    found = gather(ledger, [slo("chat-up", app="chat"), slo("web-up", app="web")], level="elevated", app="chat")
    assert ledger.asked == [{"app": "chat"}]
    assert found == {
        "scope": {"org": "acme", "team": "search", "app": "chat", "model": ""},
        "headroom": {"budget": 1_000, "risk": 500, "error_budget": 700, "overall": 500},
        "slos": [
            {
                "id": "chat-up",
                "remaining_permille": 700,
                "fast_burn_milli": 300,
                "slow_burn_milli": 300,
                "state": "ok",
            }
        ],
        "known": True,
        "limited_by": {
            "part": "risk",
            "name": "team acme/search",
            "why": "the risk of team acme/search is elevated",
        },
        "parts": {
            "budget": {
                "permille": 1_000,
                "known": True,
                "limited_by": "team (team=search)",
                "why": "budget team (team=search) has 1,000 of 1,000 tokens left, window day",
            },
            "risk": {
                "permille": 500,
                "known": True,
                "limited_by": "team acme/search",
                "why": "the risk of team acme/search is elevated",
            },
            "error_budget": {
                "permille": 700,
                "known": True,
                "limited_by": "chat-up",
                "why": "SLO chat-up has 70.0% of its error budget left",
            },
        },
    }


@pytest.mark.parametrize(
    ("ledger", "why"),
    [
        (None, "no ledger process runs on this home"),
        (Ledger(NONE := Counts(), LedgerUnavailable("nobody answers")), "the ledger cannot be asked: nobody answers"),
        (Ledger(NONE, QueryFailed("behind")), "the ledger cannot be asked: behind"),
    ],
)
def test_without_the_ledger_nothing_is_known_of_slos_and_that_is_no_room(ledger: Any, why: str) -> None:
    found = gather(ledger, [slo("chat-up", app="chat")], app="chat")
    assert found["headroom"] == {"budget": 1_000, "risk": 1_000, "error_budget": 0, "overall": 0}
    assert (found["known"], found["limited_by"]["part"], found["limited_by"]["why"]) == (False, "error_budget", why)
    assert [each["state"] for each in found["slos"]] == ["no_data"]
    assert gather(ledger, [slo("web-up", app="web")], app="chat")["headroom"]["overall"] == 1_000


def test_risk_that_cannot_be_told_is_no_room() -> None:
    found = gather(Ledger(Counts(1, 1)), [], level=None, app="chat")
    assert (found["headroom"]["risk"], found["headroom"]["overall"], found["known"]) == (0, 0, False)


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_shared_book_is_asked_what_others_have(is_known: bool) -> None:
    look = AsyncMock(return_value=is_known)
    found = await gatherer(Ledger(Counts(1, 1)), [], look=look).answer(team="search")
    assert [counter.name for counter in look.await_args_list[0].args[0]] == ["team=search"]
    assert (found["headroom"]["budget"], found["known"]) == (FULL * is_known, is_known)


async def test_few_wait_for_the_ledger_at_once() -> None:
    """A ledger that answers slowly must not take every thread of the gateway."""
    waiting, most = 0, 0

    class Slow(Ledger):
        def flush(self, timeout_s: float) -> None:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            time.sleep(0.01)
            waiting -= 1

    headrooms = gatherer(Slow(Counts(1, 1)), [slo("chat-up", app="chat")])
    found = await asyncio.gather(*(headrooms.answer(app="chat") for _ in range(8)))
    assert [each["headroom"]["overall"] for each in found] == [1_000] * 8
    assert 1 <= most <= MEASURED_AT_ONCE_MAX
