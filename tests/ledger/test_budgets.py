"""Budgets: which counter a request falls on, and which counters stay a budget's own when it is edited."""

from hypothesis import given
from hypothesis import strategies as st

from ledger.budgets import DIMENSIONS, EVERY, Budget, Subject
from ledger.windows import parse_window

# Values with everything that names are made of.
values = st.text(st.sampled_from("ab,=%*2C"), max_size=4)
subjects = st.builds(Subject, *[values] * 8)


@st.composite
def scopes(draw: st.DrawFn) -> tuple[tuple[str, str], ...]:
    named = draw(st.sets(st.sampled_from(DIMENSIONS), max_size=4))
    return tuple((dimension, draw(st.just(EVERY) | values)) for dimension in DIMENSIONS if dimension in named)


def budget(scope: tuple[tuple[str, str], ...], resource: str = "tokens") -> Budget:
    return Budget("b", "finance", scope, resource, 100, parse_window("day"))


SEARCH = Subject("acme", "search", "web", "u1", "k1", "", "small", "sim")


def test_unnamed_dimensions_do_not_matter_and_named_ones_must_agree() -> None:
    assert budget(()).counter_of(SEARCH) == "*"
    assert budget((("org", "acme"), ("team", "search"))).counter_of(SEARCH) == "org=acme,team=search"
    assert budget((("org", "acme"), ("team", "ads"))).counter_of(SEARCH) is None


def test_a_star_keeps_one_counter_per_value_and_leaves_out_who_has_none() -> None:
    per_app = budget((("org", "acme"), ("app", EVERY)))
    assert per_app.counter_of(SEARCH) == "org=acme,app=web"
    assert per_app.counter_of(SEARCH._replace(app="batch")) == "org=acme,app=batch"
    assert budget((("run", EVERY),)).counter_of(SEARCH) is None


@given(scopes(), subjects, subjects)
def test_two_subjects_share_a_counter_only_if_they_agree_in_every_named_dimension(
    scope: tuple[tuple[str, str], ...], one: Subject, other: Subject
) -> None:
    names = budget(scope).counter_of(one), budget(scope).counter_of(other)
    if None not in names:
        agree = all(getattr(one, dimension) == getattr(other, dimension) for dimension, _ in scope)
        assert (names[0] == names[1]) is agree


@given(scopes(), subjects)
def test_a_budget_counts_every_counter_that_it_names(scope: tuple[tuple[str, str], ...], subject: Subject) -> None:
    name = budget(scope).counter_of(subject)
    if name is not None:
        assert budget(scope).counts("tokens", name)
        assert not budget(scope, "requests").counts("tokens", name)


def test_an_edited_budget_goes_on_counting_what_its_new_scope_contains() -> None:
    name = budget((("team", "search"),)).counter_of(SEARCH)
    assert name is not None
    assert budget((("team", EVERY),)).counts("tokens", name)
    assert not budget((("team", "ads"),)).counts("tokens", name)
    assert not budget((("team", "sear"),)).counts("tokens", name)
    assert not budget((("app", EVERY),)).counts("tokens", name)
    assert not budget((("team", EVERY), ("app", EVERY))).counts("tokens", name)
    assert not budget(()).counts("tokens", name)
