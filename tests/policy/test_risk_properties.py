"""Whatever the signals and their times: levels follow scores, fall slowly, and come to the same after a restart."""

import json
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from policy.risk import BACK_S_MAX, GRAINS, LevelChange, Scope, Tracker, scopes_of
from policy.scoring import LEVELS, SIGNALS, Scoring, parse_scoring
from tests.policy.scorings import scoring

END_S = 4_000


class Noted(NamedTuple):
    at_s: int
    signal: str
    app: str
    run_id: str
    count: int


NOTED = st.builds(
    Noted,
    st.integers(0, 1_000),
    st.sampled_from(SIGNALS),
    st.sampled_from(["web", "bot"]),
    st.sampled_from(["", "r1", "r2"]),
    st.integers(1, 12),
)
HISTORY = st.lists(NOTED, max_size=30).map(lambda noted: sorted(noted, key=lambda each: each.at_s))


@st.composite
def scorings(draw: st.DrawFn) -> Scoring:
    """Any scoring in which a few signals may matter."""
    rises = sorted(draw(st.sets(st.integers(2_000, 60_000), min_size=3, max_size=3)))
    falls = [draw(st.integers(1, rise - 1)) for rise in rises]
    falls = [max(falls[: at + 1]) if max(falls[: at + 1]) < rises[at] else rises[at] - 1 for at in range(3)]
    return parse_scoring(
        {
            "half_life_s": draw(st.integers(1, 600)),
            "weights_milli": {signal: draw(st.sampled_from([0, 1, 500, 1_000, 7_000])) for signal in SIGNALS},
            "rises_at_milli": dict(zip(LEVELS[1:], rises, strict=True)),
            "falls_at_milli": dict(zip(LEVELS[1:], falls, strict=True)),
            "dwell_s": draw(st.integers(0, 200)),
            "score_max_milli": draw(st.integers(60_000, 100_000)),
        }
    )


def tell(tracker: Tracker, noted: Noted) -> list[LevelChange]:
    who = ("acme", "search", noted.app, noted.run_id)
    return tracker.observe(noted.signal, *who, noted.at_s, noted.count)


def played(by: Scoring, history: list[Noted], until_s: int = END_S) -> tuple[Tracker, list[LevelChange]]:
    tracker = Tracker(by)
    changes = [change for noted in history for change in tell(tracker, noted)]
    return tracker, changes + tracker.tick(until_s)


def in_order(changes: list[LevelChange]) -> list[LevelChange]:
    """By scope, each scope's in the order in which they were made."""
    return sorted(changes, key=lambda change: change.scope)


@given(scorings(), HISTORY)
def test_each_change_follows_from_the_one_before_and_no_level_falls_within_the_dwell_time(
    by: Scoring, history: list[Noted]
) -> None:
    _, changes = played(by, history)
    last: dict[Scope, LevelChange] = {}
    for change in changes:
        before = last.get(change.scope)
        was, level = LEVELS.index(change.was), LEVELS.index(change.level)
        assert change.was == (before.level if before else "normal")
        assert before is None or change.at_s >= before.at_s
        if level > was:
            assert change.score_milli >= by.rises_at_milli[level - 1]
        else:
            assert level == was - 1, "falls are of one level"
            assert change.score_milli < by.falls_at_milli[level] <= by.rises_at_milli[level]
            assert before is not None
            assert change.at_s - before.at_s >= by.dwell_s
        last[change.scope] = change


@given(scorings(), HISTORY, st.lists(st.integers(0, END_S), max_size=20))
def test_when_anyone_looks_changes_nothing(by: Scoring, history: list[Noted], looks: list[int]) -> None:
    tracker, seen = Tracker(by), list[LevelChange]()
    for at_s, noted in sorted(
        [(each, None) for each in looks] + [(each.at_s, each) for each in history], key=lambda e: e[0]
    ):
        seen += tracker.tick(at_s) if noted is None else tell(tracker, noted)
    seen += tracker.tick(END_S)
    assert in_order(seen) == in_order(played(by, history)[1])


@given(scorings(), HISTORY, NOTED)
def test_one_signal_more_never_makes_a_score_or_a_level_lower(by: Scoring, history: list[Noted], more: Noted) -> None:
    other = sorted([*history, more], key=lambda each: each.at_s)
    for until_s in (more.at_s, more.at_s + 100, 1_000, END_S):
        less, greater = (
            played(by, [each for each in noted if each.at_s <= until_s], until_s)[0] for noted in (history, other)
        )
        for scope in less.scopes():
            # Each signal rounds what is left down to a whole grain, and under a milli to nothing.
            assert greater.score(scope, until_s) >= less.score(scope, until_s) - len(other) - GRAINS
            assert LEVELS.index(greater.level(scope)) >= LEVELS.index(less.level(scope))


@given(scorings(), HISTORY, st.lists(NOTED, max_size=6), st.integers(0, 1_000), st.randoms())
def test_signals_of_one_second_come_to_the_same_in_any_order(
    by: Scoring, history: list[Noted], noted: list[Noted], at_s: int, random: object
) -> None:
    history = [each for each in history if each.at_s <= at_s]
    at_once = [each._replace(at_s=at_s) for each in noted]
    shuffled = list(at_once)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' own Random
    one, other = (played(by, history + each, at_s)[0] for each in (at_once, shuffled))
    assert states(one) == states(other)
    assert in_order(one.tick(END_S)) == in_order(other.tick(END_S))


@given(scorings(), HISTORY, st.integers(0, 1_000), st.integers(1, 2_000))
def test_without_signals_scores_halve_and_levels_only_fall(
    by: Scoring, history: list[Noted], until_s: int, later_s: int
) -> None:
    history = [each for each in history if each.at_s <= until_s]
    tracker, _ = played(by, history, until_s)
    before = {scope: (tracker.score(scope, until_s), tracker.level(scope)) for scope in tracker.scopes()}
    for scope, (score, _) in before.items():
        half = tracker.score(scope, until_s + by.half_life_s)
        assert abs(half - score // 2) <= 1 or (half == 0 and score < 2 * GRAINS)
    tracker.tick(until_s + later_s)
    for scope, (score, level) in before.items():
        assert tracker.score(scope, until_s + later_s) <= score
        assert LEVELS.index(tracker.level(scope)) <= LEVELS.index(level)
    tracker.tick(until_s + 3 * by.dwell_s + 100 * by.half_life_s)
    assert len(tracker) == 0


@given(scorings(), HISTORY, st.integers(0, 30))
def test_a_tracker_that_is_restored_in_between_goes_on_as_if_nothing_had_been(
    by: Scoring, history: list[Noted], cut: int
) -> None:
    first = Tracker(by)
    changes = [change for noted in history[:cut] for change in tell(first, noted)]
    again = Tracker.restored(json.loads(json.dumps(first.snapshot())))
    changes += [change for noted in history[cut:] for change in tell(again, noted)] + again.tick(END_S)
    assert in_order(changes) == in_order(played(by, history)[1])


@given(scorings(), st.lists(st.tuples(st.integers(-100_000, 100_000), NOTED), max_size=20), st.integers(0, 20))
def test_wherever_the_clock_was_quiet_lowers_everything_by_where_it_is_now(
    by: Scoring, jumps: list[tuple[int, Noted]], cut: int
) -> None:
    """Nothing fades or falls by being set back; what fell while the clock was ahead may rise again."""
    tracker, now_s = Tracker(by), 1_000_000
    for number, (jump_s, noted) in enumerate(jumps):
        if number == cut:
            tracker = Tracker.restored(json.loads(json.dumps(tracker.snapshot())))
        now_s += jump_s
        if tracker.is_back(now_s):
            before = {scope: tracker.score(scope, now_s) for scope in tracker.scopes()}
            changes = tracker.configure(by, now_s)
            assert before == {scope: tracker.score(scope, now_s) for scope in tracker.scopes()}
            assert all(LEVELS.index(change.level) > LEVELS.index(change.was) for change in changes)
        tracker.tick(now_s)
        tell(tracker, noted._replace(at_s=now_s))
    tracker.tick(now_s + BACK_S_MAX + 3 * by.dwell_s + 100 * by.half_life_s)
    assert len(tracker) == 0


@given(scorings(), HISTORY, HISTORY)
def test_two_replicas_that_tell_each_other_all_come_to_what_one_would_have(
    by: Scoring, here: list[Noted], there: list[Noted]
) -> None:
    """A score fades by the same factor whoever keeps it, so the sum of parts is the score of all."""
    one = played(by, sorted([*here, *there], key=lambda each: each.at_s), END_S)[0]
    first, second = played(by, here, END_S)[0], played(by, there, END_S)[0]
    for scope in {*first.scopes(), *second.scopes()}:
        both = first.score(scope, END_S) + second.score(scope, END_S)
        assert both >= one.score(scope, END_S) - 2 * GRAINS, "but for what each forgets, which is under a milli"
        first.raise_to(scope, both, END_S)
        assert first.score(scope, END_S) == min(both, by.score_max_milli * GRAINS)


@given(HISTORY)
def test_every_scope_of_a_request_has_its_score(history: list[Noted]) -> None:
    tracker = played(scoring(half_life_s=1_000), history, 1_000)[0]
    for noted in history:
        for scope in scopes_of("acme", "search", noted.app, noted.run_id):
            assert tracker.score(scope, 1_000) > 0


def states(tracker: Tracker) -> dict[Scope, tuple[int, str]]:
    return {scope: (tracker.score(scope, END_S), tracker.level(scope)) for scope in tracker.scopes()}
