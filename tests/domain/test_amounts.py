"""Amounts: integer arithmetic that rounds up, for every resource in one order."""

from fractions import Fraction
from math import ceil
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import MILLION, RESOURCE_INDEX, RESOURCES, Amounts, Resource, ceil_div, per_million

whole = st.integers(0, 10**24)


def test_every_resource_has_its_place_in_the_vector() -> None:
    assert get_args(Resource) == RESOURCES == Amounts._fields
    for name, index in RESOURCE_INDEX.items():
        assert getattr(Amounts(**{name: 7}), name) == Amounts(**{name: 7})[index] == 7


@given(st.integers(-(10**24), 10**24), st.integers(1, 10**12))
def test_a_quotient_is_the_least_whole_number_not_under_it(numerator: int, denominator: int) -> None:
    assert ceil_div(numerator, denominator) == ceil(Fraction(numerator, denominator))


@given(whole, whole)
def test_a_price_per_million_never_charges_less_than_it_says_nor_a_whole_unit_more(rate: int, count: int) -> None:
    assert 0 <= per_million(rate, count) - Fraction(rate * count, MILLION) < 1
