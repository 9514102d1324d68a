"""Demands: what is held covers whatever a request within its bounds can be charged, for all prices and rates."""

from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import RESOURCES
from domain.decision import Obligations
from domain.ids import uuid7
from domain.intent import Intent, Principal
from domain.prices import GpuRate, Prices
from gateway.bounds import Measure, count_bytes
from gateway.catalogue import Offer
from gateway.demands import demand
from gateway.metering import Observed, charged, usage_of
from ledger.holds import Demand
from runtime.openai.usage import Report

CONTEXT_TOKENS = 8_192
# Exact and tiny rates too: where one rounds up far, another that rounds nothing gives it no slack.
rates = st.sampled_from((0, 1, 1_000_000, 10**15)) | st.integers(0, 1_000) | st.integers(0, 10**15)
prices = st.builds(Prices, st.just("v1"), rates, rates, rates)
gpu_rates = st.builds(GpuRate, rates, rates, rates)
obligations = st.builds(
    Obligations,
    max_output_tokens=st.none() | st.integers(0, 5_000),
    min_output_tokens=st.integers(0, 200),
    shrink_to_fit=st.booleans(),
)
FREE, IDLE = Prices("free"), GpuRate()


def offer(max_output_tokens: int = 1_024) -> Offer:
    measure = Measure(count_bytes, CONTEXT_TOKENS, 8, 16)
    return Offer("plain", "plain", frozenset({"chat"}), (), measure, max_output_tokens, lambda _: FREE)


def intent(input_bound: int, asked: int | None, choices: int = 1) -> Intent:
    principal = Principal("acme", "search", "web", "", "k1")
    return Intent(
        request_id=uuid7(),
        principal=principal,
        endpoint="chat",
        model="plain",
        stream=False,
        input_bound=input_bound,
        max_output_tokens=asked,
        choices=choices,
    )


def demanded(asked: int | None, terms: Obligations, input_bound: int = 40) -> Demand:
    return demand(intent(input_bound, asked), offer(), terms, FREE, IDLE)


@st.composite
def observations(draw: st.DrawFn, input_bound: int, output_bound: int) -> Observed:
    """Anything that can be seen of a call whose runtime kept to its bounds."""
    input_tokens, output_tokens = draw(st.integers(0, input_bound)), draw(st.integers(0, output_bound))
    cached = draw(st.integers(0, input_tokens))
    report = Report(input_tokens, cached, output_tokens, draw(st.integers(0, output_tokens)))
    return Observed(
        sent=draw(st.booleans()),
        is_complete=draw(st.booleans()),
        is_error=draw(st.booleans()),
        streamed=draw(st.booleans()),
        report=draw(st.none() | st.just(report)),
        produced=draw(st.integers(0, 100_000)),
    )


@given(
    prices,
    gpu_rates,
    obligations,
    st.integers(0, CONTEXT_TOKENS),
    st.none() | st.integers(1, CONTEXT_TOKENS),
    st.integers(1, 128),
    st.integers(0, 1 << 30),
    st.data(),
)
def test_no_charge_within_the_bounds_exceeds_what_was_held(
    price: Prices,
    rate: GpuRate,
    terms: Obligations,
    input_bound: int,
    asked: int | None,
    choices: int,
    shrunk: int,
    data: st.DataObject,
) -> None:
    wanted = demand(intent(input_bound, asked, choices), offer(), terms, price, rate)
    cap = wanted.cap_min + shrunk % (wanted.cap_max - wanted.cap_min + 1)
    seen = data.draw(observations(input_bound, cap * choices))
    usage = usage_of(seen, input_bound, cap * choices, choices, rate)
    for resource, held, spent in zip(RESOURCES, wanted.at(cap), charged(usage, price, rate), strict=True):
        assert 0 <= spent <= held, resource


@given(st.sampled_from((0, 1_000_000)), st.integers(0, 1_000), st.integers(0, 10**15), st.integers(1, CONTEXT_TOKENS))
def test_a_microsecond_that_only_rounding_makes_is_paid_for(
    input_us: int, output_us: int, nusd_per_hour: int, cap: int
) -> None:
    """An exact input leaves the output's own rounding no slack, and a dear hour makes it show."""
    rate = GpuRate(nusd_per_hour, input_us, output_us)
    held = demand(intent(40, cap), offer(), Obligations(), FREE, rate).at(cap)
    full = Observed(sent=True, is_complete=True, report=Report(40, 0, cap, 0))
    spent = charged(usage_of(full, 40, cap, 1, rate), FREE, rate)
    assert spent.gpu_us <= held.gpu_us
    assert spent.gpu_cost_nusd <= held.gpu_cost_nusd


@given(st.integers(1, CONTEXT_TOKENS), st.integers(1, CONTEXT_TOKENS), st.integers(1, 128))
def test_tokens_are_held_to_the_unit(input_bound: int, asked: int, choices: int) -> None:
    held = demand(intent(input_bound, asked, choices), offer(), Obligations(), FREE, IDLE).at(asked)
    assert (held.tokens, held.input_tokens, held.output_tokens) == (
        input_bound + asked * choices,
        input_bound,
        asked * choices,
    )
    assert (held.requests, held.concurrency, held.list_cost_nusd, held.gpu_us) == (1, 1, 0, 0)


@given(obligations, st.none() | st.integers(1, CONTEXT_TOKENS))
def test_a_cap_shrinks_only_where_policy_lets_it(terms: Obligations, asked: int | None) -> None:
    wanted = demanded(asked, terms)
    assert 0 <= wanted.cap_min <= wanted.cap_max
    if not terms.shrink_to_fit:
        assert wanted.cap_min == wanted.cap_max
    elif wanted.cap_max:
        assert wanted.cap_min == min(wanted.cap_max, terms.min_output_tokens)


def test_policy_lowers_a_cap_and_never_raises_it() -> None:
    assert demanded(100, Obligations(max_output_tokens=30))[2:] == (30, 30)
    assert demanded(100, Obligations(max_output_tokens=300))[2:] == (100, 100)
    assert demanded(None, Obligations())[2:] == (1_024, 1_024)
    assert demanded(None, Obligations(max_output_tokens=30, shrink_to_fit=True, min_output_tokens=5))[2:] == (5, 30)


def test_without_a_cap_of_its_own_a_request_is_held_for_what_the_context_leaves() -> None:
    assert demanded(None, Obligations(), input_bound=8_000).cap_max == 1_024
    assert demand(intent(8_000, None), offer(8_192), Obligations(), FREE, IDLE).cap_max == CONTEXT_TOKENS // 4
    assert demand(intent(192, None), offer(8_192), Obligations(), FREE, IDLE).cap_max == 8_000


def test_an_embedding_holds_its_input_alone() -> None:
    held = demanded(0, Obligations()).at(0)
    assert (held.tokens, held.output_tokens) == (40, 0)
