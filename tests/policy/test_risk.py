"""Signals raise the level of a team, an app and a run at once, and quiet lowers it step by step."""

import json

import pytest

from policy.risk import APP, ELSEWHERE, FALLS_MAX, GRAINS, RUN, TEAM, LevelChange, Scope, Tracker
from policy.scoring import SIGNALS
from tests.policy.scorings import document, scoring

SEARCH = Scope(TEAM, ("acme", "search"))
WEB = Scope(APP, ("acme", "search", "web"))
RUN_1 = Scope(RUN, ("acme", "run-1"))
WHO = ("acme", "search", "web", "run-1")
NOBODY = ("acme", "billing", "cron", "run-2")


def steps(changes: list[LevelChange]) -> list[tuple[str, str, str, int]]:
    return [(change.scope.text, change.was, change.level, change.at_s) for change in changes]


def test_a_quiet_caller_stands_at_normal() -> None:
    tracker = Tracker(scoring())
    assert tracker.level_of(*WHO) == "normal"
    assert tracker.observe("tool_blocked", *WHO, 0, 4) == []
    assert tracker.level_of(*WHO) == "normal"


def test_a_score_at_its_threshold_raises_team_app_and_run_at_once() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 4)
    changes = tracker.observe("policy_violation", *WHO, 0)
    assert steps(changes) == [
        ("team acme/search", "normal", "elevated", 0),
        ("app acme/search/web", "normal", "elevated", 0),
        ("run acme/run-1", "normal", "elevated", 0),
    ]
    assert {change.score_milli for change in changes} == {5_000}
    assert changes[0].signals == {"tool_blocked": 4_000, "policy_violation": 1_000}
    assert tracker.level_of(*WHO) == "elevated"
    assert tracker.level_of(*NOBODY) == "normal"


def test_a_level_may_be_skipped_on_the_way_up() -> None:
    tracker = Tracker(scoring())
    assert steps(tracker.observe("rollback", "acme", "search", "web", "", 7, 25)) == [
        ("team acme/search", "normal", "critical", 7),
        ("app acme/search/web", "normal", "critical", 7),
    ]


def test_the_worst_of_team_app_and_run_counts() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", "acme", "search", "bot", "run-9", 0, 10)
    assert tracker.level_of("acme", "search", "bot", "run-9") == "high"
    assert tracker.level_of("acme", "search", "web") == "high", "the team is the same"
    assert tracker.level_of("acme", "other", "web", "run-9") == "high", "the run is the same"
    assert tracker.level_of("other", "search", "bot", "run-9") == "normal", "another organisation"
    for app in ("a", "b", "c", "d"):
        tracker.observe("tool_blocked", "acme", "many", app, "", 0, 3)
    assert tracker.level(Scope(TEAM, ("acme", "many"))) == "high"
    assert tracker.level(Scope(APP, ("acme", "many", "a"))) == "normal"
    assert tracker.level_of("acme", "many", "new") == "high"


def test_a_level_falls_by_one_when_the_score_was_too_low_for_the_dwell_time() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", "acme", "search", "web", "", 0, 20)
    # 20 fades to under 10 after 100 s, under 5 after 200 s, under 2.5 after 300 s; each fall takes 60 s more.
    seen = [step for now_s in range(1, 500) for step in steps(tracker.tick(now_s)) if step[0].startswith("team")]
    assert seen == [
        ("team acme/search", "critical", "high", 161),
        ("team acme/search", "high", "elevated", 261),
        ("team acme/search", "elevated", "normal", 361),
    ]
    assert tracker.level_of(*WHO) == "normal"


def test_where_the_score_is_long_gone_each_fall_still_takes_the_dwell_time() -> None:
    tracker = Tracker(scoring(half_life_s=1))
    tracker.observe("tool_blocked", "acme", "search", "web", "", 0, 20)
    falls = [change.at_s for change in tracker.tick(1_000) if change.scope == SEARCH]
    assert falls == [62, 122, 182]


def test_a_signal_during_the_dwell_time_begins_it_anew_where_the_score_is_no_longer_too_low() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 5)
    assert tracker.tick(160) == [], "the dwell time ends at 161"
    tracker.observe("tool_blocked", *WHO, 160)  # 1.65 + 1 is over 2.5 again
    assert tracker.tick(227) == []
    assert {change.level for change in tracker.tick(250)} == {"normal"}


def test_a_signal_too_small_to_matter_does_not_hold_a_level_up() -> None:
    tracker = Tracker(scoring(weights_milli=document()["weights_milli"] | {"upstream_error": 1}))
    tracker.observe("tool_blocked", *WHO, 0, 5)
    for now_s in range(110, 161):
        assert tracker.observe("upstream_error", *WHO, now_s) == []
    assert {change.at_s for change in tracker.tick(161)} == {161}


def test_a_signal_that_weighs_nothing_leaves_nothing() -> None:
    tracker = Tracker(scoring(weights_milli=dict.fromkeys(SIGNALS, 0)))
    assert tracker.observe("tool_blocked", *WHO, 0, 1_000) == []
    assert len(tracker) == 0


def test_an_unknown_signal_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        Tracker(scoring()).observe("tool_bloked", *WHO, 0)


def test_many_falls_at_once_are_spread_over_ticks_and_keep_the_time_that_they_were_due() -> None:
    tracker = Tracker(scoring())
    for number in range(FALLS_MAX + 1):
        tracker.observe("tool_blocked", "acme", "", "", f"run-{number}", 0, 5)
    first, second, third = (tracker.tick(now_s) for now_s in (161, 162, 163))
    assert [len(first), len(second), len(third)] == [FALLS_MAX, 1, 0]
    assert {change.at_s for change in (*first, *second)} == {161}


def test_a_score_has_a_most_and_so_has_the_time_to_come_down() -> None:
    tracker = Tracker(scoring())
    for now_s in range(10):
        tracker.observe("tool_blocked", *WHO, now_s, 10**12)
    assert tracker.score(WEB, 9) == 40_000 * GRAINS
    assert {change.level for change in tracker.tick(9 + 200 + 1 + 60)} == {"high"}


def test_a_clock_that_goes_back_fades_nothing_and_lowers_nothing() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 1_000, 5)
    assert [tracker.is_back(now_s) for now_s in (0, 994, 995, 1_001)] == [True, True, False, False]
    assert tracker.tick(0) == []
    assert tracker.score(WEB, 0) == 5_000 * GRAINS
    tracker.observe("tool_blocked", *WHO, 0, 5)
    assert tracker.score(WEB, 1_000) == 10_000 * GRAINS
    assert tracker.level_of(*WHO) == "high"


def test_scores_of_a_clock_that_was_ahead_go_on_once_the_scoring_is_applied_anew() -> None:
    """In no case may a day have to pass first."""
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 86_400, 10)
    tracker.recall(SEARCH, "critical", 20_000 * GRAINS, 86_400, 0)
    assert tracker.configure(scoring(), 0) == []
    assert not tracker.is_back(0)
    assert tracker.score(WEB, 100) == 5_000 * GRAINS
    assert steps(tracker.tick(161)) == [
        ("team acme/search", "critical", "high", 161),
        ("app acme/search/web", "high", "elevated", 161),
        ("run acme/run-1", "high", "elevated", 161),
    ]


def test_what_others_know_raises_a_score_and_never_lowers_it() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 3)
    assert tracker.raise_to(WEB, 2_000 * GRAINS, 0) == []
    assert tracker.score(WEB, 0) == 3_000 * GRAINS
    (change,) = tracker.raise_to(WEB, 10_000 * GRAINS, 0)
    assert (change.level, change.signals) == ("high", {"tool_blocked": 3_000, ELSEWHERE: 7_000})
    (new,) = tracker.raise_to(RUN_1._replace(names=("acme", "run-7")), 10**18, 0)
    assert (new.level, new.score_milli) == ("critical", 40_000)


def test_many_runs_push_out_runs_and_neither_teams_nor_apps() -> None:
    tracker = Tracker(scoring(), (2, 2, 10))
    tracker.observe("tool_blocked", *WHO, 0, 20)
    for number in range(1_000):
        tracker.observe("tool_blocked", "acme", "search", "web", f"fresh-{number}", 1)
    assert len(tracker) == 1 + 1 + 10
    assert tracker.level(SEARCH) == tracker.level(WEB) == "critical"
    assert tracker.level(RUN_1) == "critical", "a raised run is not pushed out either"
    assert tracker.score(Scope(RUN, ("acme", "fresh-999")), 1) > 0, "the last that was touched stays"
    assert tracker.dropped == 991


def test_where_all_runs_are_raised_a_further_one_counts_for_its_team_and_app_alone() -> None:
    tracker = Tracker(scoring(), (5, 5, 3))
    for number in range(4):
        tracker.observe("tool_blocked", "acme", "search", "web", f"run-{number}", 0, 5)
    assert [scope.names[1] for scope in tracker.raised() if scope.kind == RUN] == ["run-0", "run-1", "run-2"]
    assert tracker.score(WEB, 0) == 20_000 * GRAINS
    assert tracker.dropped == 1


def test_what_has_faded_is_forgotten() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 5)
    tracker.tick(361)
    assert len(tracker) == 3
    tracker.tick(100 * 13 + 1)  # 5 halved 13 times is less than a milli
    assert len(tracker) == 0


def test_another_scoring_raises_at_once_what_it_finds_too_high() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 4)
    harder = scoring(
        rises_at_milli={"elevated": 1_000, "high": 2_000, "critical": 50_000},
        falls_at_milli={"elevated": 500, "high": 1_000, "critical": 25_000},
        score_max_milli=50_000,
    )
    changes = tracker.configure(harder, 100)
    assert {(change.was, change.level, change.score_milli) for change in changes} == {("normal", "high", 2_000)}
    assert len(changes) == 3


def test_another_scoring_lowers_nothing_before_the_dwell_time_is_over() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 5)
    softer = scoring(
        rises_at_milli={"elevated": 20_000, "high": 30_000, "critical": 40_000},
        falls_at_milli={"elevated": 10_000, "high": 15_000, "critical": 20_000},
    )
    assert tracker.configure(softer, 10) == []
    assert tracker.tick(69) == []
    assert {change.level for change in tracker.tick(70)} == {"normal"}


def test_a_lower_most_lowers_scores_and_another_half_life_counts_from_now() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 40)
    tracker.configure(scoring(score_max_milli=20_000, half_life_s=10), 100)
    assert tracker.score(WEB, 100) == 20_000 * GRAINS
    assert tracker.score(WEB, 110) == 10_000 * GRAINS


def test_a_level_that_was_recorded_falls_from_when_it_was_recorded() -> None:
    for now_s, level in ((160, "critical"), (161, "high"), (261, "elevated"), (361, "normal")):
        tracker = Tracker(scoring())
        tracker.recall(WEB, "critical", 20_000 * GRAINS, 0, now_s)
        assert tracker.level(WEB) == level
        assert tracker.score(WEB, now_s) == pytest.approx(20_000 * GRAINS * 2 ** -(now_s / 100), abs=1)


def test_a_level_that_was_recorded_takes_nothing_from_what_is_known_and_adds_nothing_twice() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 12)
    before = tracker.snapshot()
    tracker.recall(WEB, "high", 12_000 * GRAINS, 0, 0)
    tracker.recall(SEARCH, "elevated", 5_000 * GRAINS, 0, 0)
    assert sorted(map(str, tracker.snapshot()["scopes"])) == sorted(map(str, before["scopes"]))


def test_a_level_that_was_recorded_is_held_though_the_score_is_too_low_to_rise_to_it() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0)
    tracker.recall(WEB, "high", 8_000 * GRAINS, 0, 10)
    assert tracker.level(WEB) == "high"
    assert tracker.level(SEARCH) == "normal"


def test_a_snapshot_goes_through_json_and_comes_back_as_it_was() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 12)
    tracker.observe("rollback", *NOBODY, 3, 2)
    again = Tracker.restored(json.loads(json.dumps(tracker.snapshot())))
    assert json.dumps(again.snapshot()) == json.dumps(tracker.snapshot())
    assert again.tick(400) == tracker.tick(400) != []


def test_a_snapshot_of_more_than_there_is_room_for_keeps_what_is_raised() -> None:
    tracker = Tracker(scoring())
    tracker.observe("tool_blocked", *WHO, 0, 12)
    for number in range(20):
        tracker.observe("tool_blocked", "acme", "search", "web", f"calm-{number}", 0)
    again = Tracker.restored(tracker.snapshot(), (1, 1, 5))
    assert len(again) == 7
    assert again.level_of("nobody", "x", "y", "") == "normal"
    assert again.level(RUN_1) == "high"
