"""Demands: the most that an intent can use on one offer, as the book is asked to hold it."""

from functools import lru_cache

from domain.amounts import MILLION, Amounts, ceil_div
from domain.decision import Obligations
from domain.intent import Intent
from domain.prices import US_PER_HOUR, GpuRate, Prices
from gateway.catalogue import Offer
from ledger.holds import Demand

_NO_OUTPUT = Amounts()
_RATES_MAX = 1024


def demand(intent: Intent, offer: Offer, obligations: Obligations, prices: Prices, rate: GpuRate) -> Demand:
    """What to hold: the input bound in full, and the output at a cap that policy may lower and let shrink."""
    cap_max = offer.output_cap(intent.max_output_tokens, intent.input_bound)
    if obligations.max_output_tokens is not None:
        cap_max = min(cap_max, obligations.max_output_tokens)
    cap_min = min(cap_max, obligations.min_output_tokens) if obligations.shrink_to_fit else cap_max
    bound = intent.input_bound
    gpu_us = rate.gpu_us(bound, 0)
    fixed = Amounts(
        bound,
        bound,
        0,
        -(-prices.input_bound_nusd_per_mtok() * bound // MILLION),
        rate.gpu_cost_nusd(gpu_us + 1),  # the output's microseconds are rounded up before they are priced
        gpu_us,
        0,
        0,
        1,
        1,
    )
    if not cap_max:
        return Demand(fixed, _NO_OUTPUT, 0, 0)
    # Plain integers, because hashing the values they come from would cost more than the arithmetic that is spared.
    rates = output_rates(prices.output_nusd_per_mtok, rate.output_us_per_mtok, rate.nusd_per_hour, intent.choices)
    return Demand(fixed, rates, cap_min, cap_max)


@lru_cache(_RATES_MAX)
def output_rates(output_nusd_per_mtok: int, output_us_per_mtok: int, nusd_per_hour: int, choices: int) -> Amounts:
    """What a million output tokens of each choice use."""
    output_us = output_us_per_mtok * choices
    return Amounts(
        MILLION * choices,
        0,
        MILLION * choices,
        output_nusd_per_mtok * choices,
        ceil_div(output_us * nusd_per_hour, US_PER_HOUR),
        output_us,
    )
