"""Prices: the list cost and the accelerator cost of a usage, each rounded once and never down."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import MILLION
from domain.prices import US_PER_HOUR, GpuRate, Prices
from domain.usage import Usage

rates = st.integers(0, 10**15)
tokens = st.integers(0, 10**8)
prices = st.builds(Prices, st.just("v1"), rates, rates, rates)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    input_tokens = draw(tokens)
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=draw(st.integers(0, input_tokens)),
        output_tokens=draw(tokens),
    )


@given(prices, usages())
def test_a_list_cost_is_rounded_up_once_over_the_whole(price: Prices, usage: Usage) -> None:
    fresh = usage.input_tokens - usage.cached_input_tokens
    exact = Fraction(
        fresh * price.input_nusd_per_mtok
        + usage.cached_input_tokens * price.cached_input_nusd_per_mtok
        + usage.output_tokens * price.output_nusd_per_mtok,
        MILLION,
    )
    assert 0 <= price.list_cost_nusd(usage) - exact < 1


@given(prices, usages())
def test_no_input_token_costs_more_than_the_bound_that_a_hold_assumes(price: Prices, usage: Usage) -> None:
    dearest = Prices("bound", price.input_bound_nusd_per_mtok(), price.input_bound_nusd_per_mtok())
    only_input = Usage(input_tokens=usage.input_tokens, cached_input_tokens=usage.cached_input_tokens)
    assert price.list_cost_nusd(only_input) <= dearest.list_cost_nusd(only_input)


@given(prices, usages())
def test_cost_and_savings_together_never_exceed_the_undiscounted_cost(price: Prices, usage: Usage) -> None:
    uncached = Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    saved = price.saved_cost_nusd(usage)
    assert saved >= 0
    if price.cached_input_nusd_per_mtok <= price.input_nusd_per_mtok:
        assert price.list_cost_nusd(usage) + saved <= price.list_cost_nusd(uncached)
    else:
        assert saved == 0


@pytest.mark.parametrize(
    ("usage", "cost_nusd"),
    [
        (Usage(), 0),
        (Usage(input_tokens=1), 250),
        (Usage(input_tokens=1_000_000), 250_000_000),
        (Usage(input_tokens=1_000, output_tokens=200), 650_000),
        (Usage(input_tokens=1_000, cached_input_tokens=1_000, output_tokens=200), 425_000),
    ],
)
def test_a_known_price_list_gives_known_costs(usage: Usage, cost_nusd: int) -> None:
    price = Prices("2026-01", 250_000_000, 25_000_000, 2_000_000_000)
    assert price.list_cost_nusd(usage) == cost_nusd


@given(st.builds(GpuRate, rates, rates, rates), tokens, tokens)
def test_accelerator_time_and_its_cost_are_rounded_up(rate: GpuRate, input_tokens: int, output_tokens: int) -> None:
    gpu_us = rate.gpu_us(input_tokens, output_tokens)
    exact_us = Fraction(input_tokens * rate.input_us_per_mtok + output_tokens * rate.output_us_per_mtok, MILLION)
    assert 0 <= gpu_us - exact_us < 1
    assert 0 <= rate.gpu_cost_nusd(gpu_us) - Fraction(gpu_us * rate.nusd_per_hour, US_PER_HOUR) < 1


def test_an_hour_of_an_accelerator_costs_its_hourly_rate() -> None:
    assert GpuRate(nusd_per_hour=2_500_000_000).gpu_cost_nusd(US_PER_HOUR) == 2_500_000_000
