"""Demands: the most that an intent can use on one offer, as the book is asked to hold it."""

from domain.amounts import MILLION, Amounts, ceil_div, per_million
from domain.decision import Obligations
from domain.intent import Intent
from domain.prices import US_PER_HOUR, GpuRate, Prices
from gateway.catalogue import Offer
from ledger.holds import Demand


def demand(intent: Intent, offer: Offer, obligations: Obligations, prices: Prices, rate: GpuRate) -> Demand:
    """What to hold: the input bound in full, and the output at a cap that policy may lower and let shrink."""
    cap_max = offer.output_cap(intent.max_output_tokens, intent.input_bound)
    if obligations.max_output_tokens is not None:
        cap_max = min(cap_max, obligations.max_output_tokens)
    cap_min = min(cap_max, obligations.min_output_tokens) if obligations.shrink_to_fit else cap_max
    bound, choices = intent.input_bound, intent.choices
    gpu_us = rate.gpu_us(bound, 0)
    fixed = Amounts(
        bound,
        bound,
        0,
        per_million(prices.input_bound_nusd_per_mtok(), bound),
        rate.gpu_cost_nusd(gpu_us + 1),  # the output's microseconds are rounded up before they are priced
        gpu_us,
        0,
        0,
        1,
        1,
    )
    if not cap_max:
        return Demand(fixed, _NO_OUTPUT, 0, 0)
    output_us = rate.output_us_per_mtok * choices
    rates = Amounts(
        MILLION * choices,
        0,
        MILLION * choices,
        prices.output_nusd_per_mtok * choices,
        ceil_div(output_us * rate.nusd_per_hour, US_PER_HOUR),
        output_us,
    )
    return Demand(fixed, rates, cap_min, cap_max)


_NO_OUTPUT = Amounts()
