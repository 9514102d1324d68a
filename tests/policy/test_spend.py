"""An app that suddenly spends far more than it is used to is noticed, once a minute, and growth is not."""

import json

from hypothesis import given
from hypothesis import strategies as st

from policy.spend import SpendRule, SpendWatch

WEB = ("acme", "search", "web")
USD = 1_000_000_000


def used_to(nusd: int, minutes: int = 60, rule: SpendRule | None = None) -> SpendWatch:
    """A watch that has seen an app spend the same each minute; minute `minutes` is the next."""
    watch = SpendWatch(rule or SpendRule())
    for minute in range(minutes):
        assert not watch.spend(*WEB, nusd, minute * 60)
    return watch


def test_a_minute_of_more_than_five_times_the_usual_is_told_once_and_at_once() -> None:
    watch = used_to(USD)
    at_s = 60 * 60
    assert [watch.spend(*WEB, USD, at_s + second) for second in range(10)] == [False] * 5 + [True] + [False] * 4
    assert not watch.spend(*WEB, USD, at_s + 60), "the next minute begins at nothing"
    assert watch.spend(*WEB, 9 * USD, at_s + 61)


def test_other_apps_are_judged_by_what_they_spend_themselves() -> None:
    watch = used_to(USD)
    assert not watch.spend("acme", "search", "bot", 100 * USD, 3_600)


def test_a_clock_that_was_ahead_makes_no_one_minute_of_all_until_then() -> None:
    watch = used_to(USD)
    assert not watch.spend(*WEB, USD, 86_400)
    assert not any(watch.spend(*WEB, USD, minute * 60) for minute in range(61, 71))


def test_nothing_is_told_before_enough_was_seen() -> None:
    assert not used_to(USD, 30).spend(*WEB, 100 * USD, 1_799), "the thirtieth minute has not ended"
    assert used_to(USD, 30).spend(*WEB, 100 * USD, 1_800)


def test_little_money_is_no_anomaly_however_little_it_was_before() -> None:
    watch = used_to(1_000)
    assert not watch.spend(*WEB, SpendRule().floor_nusd, 3_600)
    assert watch.spend(*WEB, 1, 3_601)


def test_minutes_without_spend_do_not_lower_what_an_app_is_used_to() -> None:
    watch = SpendWatch()
    for day in range(40):
        assert not watch.spend(*WEB, USD, day * 86_400)
    assert not watch.spend(*WEB, 5 * USD, 41 * 86_400)
    assert watch.spend(*WEB, 6 * USD, 42 * 86_400)


def test_one_outburst_is_not_the_excuse_of_the_next() -> None:
    watch = used_to(USD)
    for minute in range(60, 70):
        assert watch.spend(*WEB, 1_000 * USD, minute * 60)


def test_what_lasts_becomes_usual_in_the_end() -> None:
    watch = used_to(USD)
    told = [watch.spend(*WEB, 10 * USD, minute * 60) for minute in range(60, 360)]
    assert told[0]
    assert not told[-1]
    assert sum(told) > 30, "but not soon"


def test_an_app_whose_models_were_free_comes_to_have_a_usual_spend() -> None:
    watch = used_to(0)
    told = [watch.spend(*WEB, USD, minute * 60) for minute in range(60, 400)]
    assert not told[-1]


def test_the_apps_that_spent_longest_ago_are_forgotten_first() -> None:
    watch = SpendWatch(apps_max=3)
    for number in range(10):
        watch.spend("acme", "search", f"app-{number}", USD, number * 60)
    assert [row[2] for row in watch.snapshot()] == ["app-7", "app-8", "app-9"]


def test_baselines_outlive_a_restart() -> None:
    again = SpendWatch()
    again.restore(json.loads(json.dumps(used_to(USD).snapshot())))
    assert not again.spend(*WEB, 5 * USD, 7_200)
    assert again.spend(*WEB, 1, 7_201)


@given(st.lists(st.integers(0, 5 * USD), min_size=61, max_size=200), st.integers(0, 59))
def test_a_spend_within_five_times_of_every_minute_before_is_never_told(spends: list[int], second: int) -> None:
    watch, least = SpendWatch(), min(filter(None, spends), default=0)
    for minute, nusd in enumerate(spends):
        is_told = watch.spend(*WEB, nusd, minute * 60 + second)
        if nusd <= max(5 * (least - 1), SpendRule().floor_nusd):
            assert not is_told
