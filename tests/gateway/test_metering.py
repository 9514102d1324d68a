"""Metering: what was not seen is never refunded, and a charge says how surely it is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import Amounts
from domain.prices import GpuRate, Prices
from domain.usage import NOTHING
from gateway.metering import STEPS_IN_FLIGHT, Observed, charged, usage_of
from runtime.openai.usage import Report

BOUND, CAP = 100, 50
RATE = GpuRate(2_500_000_000, 25_000_000, 500_000_000)
PRICES = Prices("v1", 3_000_000_000, 300_000_000, 15_000_000_000)
REPORT = Report(80, 64, 20, 5)


def seen(**values: object) -> Observed:
    return Observed(sent=True, **values)  # type: ignore[arg-type]  # each test names fields of Observed


def metered(what: Observed, choices: int = 1) -> tuple[int, int, str]:
    usage = usage_of(what, BOUND, CAP * choices, choices, RATE)
    return usage.input_tokens, usage.output_tokens, usage.certainty


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        # A complete answer is charged what it reported, to the token.
        (seen(is_complete=True, report=REPORT), (80, 20, "exact")),
        (seen(is_complete=True, streamed=True, report=REPORT), (80, 20, "exact")),
        (seen(is_complete=True, report=Report(80, 0, 0, 0)), (80, 0, "exact")),
        # A runtime that reports more than was held is charged it all the same.
        (seen(is_complete=True, report=Report(101, 0, 51, 0)), (101, 51, "exact")),
        # A complete error response costs nothing unless it reports usage.
        (seen(is_complete=True, is_error=True), (0, 0, "exact")),
        (seen(is_complete=True, is_error=True, report=REPORT), (80, 20, "exact")),
        # An error response that broke off tells nothing of what was computed.
        (seen(is_error=True), (BOUND, CAP, "at_most")),
        # A complete answer without usage: its input bound and a token for each byte, within the cap.
        (seen(is_complete=True, produced=30), (BOUND, 30, "at_most")),
        (seen(is_complete=True, produced=5_000), (BOUND, CAP, "at_most")),
        # Lost before the first report: the input bound and what was produced.
        (seen(streamed=True), (BOUND, 0, "at_most")),
        (seen(streamed=True, produced=12), (BOUND, 12, "at_most")),
        # Lost without a stream: everything may have been produced.
        (seen(), (BOUND, CAP, "at_most")),
        # Lost after a report: the report and the steps in flight, within the cap.
        (seen(streamed=True, report=REPORT), (80, 20 + STEPS_IN_FLIGHT, "at_least")),
        (seen(streamed=True, report=Report(80, 0, CAP, 0)), (80, CAP, "at_least")),
        (seen(streamed=True, report=Report(80, 0, CAP + 9, 0)), (80, CAP + 9, "at_least")),
        # Nothing was sent: nothing is charged, whatever else is claimed.
        (Observed(sent=False, report=REPORT, produced=9), (0, 0, "exact")),
    ],
)
def test_what_was_seen_decides_what_is_charged_and_how_surely(what: Observed, expected: tuple[int, int, str]) -> None:
    assert metered(what) == expected


def test_choices_that_have_not_reported_yet_are_charged_their_input_too() -> None:
    cut = seen(streamed=True, report=Report(30, 16, 20, 0))
    assert metered(cut, choices=4) == (BOUND, 20 + 4 * STEPS_IN_FLIGHT, "at_least")
    assert usage_of(cut, BOUND, 4 * CAP, 4, RATE).cached_input_tokens == 0


ALWAYS = st.sampled_from((True,))
reports = st.builds(
    lambda inputs, cached, outputs: Report(inputs, min(inputs, cached), outputs, 0),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(0, 200),
)
observations = st.builds(
    Observed,
    sent=ALWAYS,
    is_complete=st.booleans(),
    is_error=st.booleans(),
    streamed=st.booleans(),
    report=st.none() | reports,
    produced=st.integers(0, 200),
)


@given(observations, st.integers(1, 4))
def test_a_report_is_never_refunded_whatever_ended_the_answer(what: Observed, choices: int) -> None:
    usage = usage_of(what, BOUND, CAP * choices, choices, RATE)
    if what.report is not None:
        assert usage.input_tokens >= what.report.input_tokens
        assert usage.output_tokens >= what.report.output_tokens
    assert (usage.certainty == "exact") == (what.is_complete and (what.report is not None or what.is_error))


@given(observations, st.integers(1, 4))
def test_an_answer_that_broke_off_is_never_charged_less_than_one_that_ended(what: Observed, choices: int) -> None:
    ended, broken = (
        charged(
            usage_of(what._replace(is_error=False, is_complete=end), BOUND, CAP * choices, choices, RATE), PRICES, RATE
        )
        for end in (True, False)
    )
    assert all(less <= more for less, more in zip(ended, broken, strict=True))


def test_a_request_that_used_nothing_does_not_count_as_one() -> None:
    assert charged(NOTHING, PRICES, RATE) == Amounts()
    answered = usage_of(seen(is_complete=True, report=Report(0, 0, 0, 0)), BOUND, CAP, 1, RATE)
    assert charged(answered, PRICES, RATE) == Amounts(requests=1)


def test_a_settled_request_gives_its_slot_back_and_is_priced_once() -> None:
    usage = usage_of(seen(is_complete=True, report=REPORT), BOUND, CAP, 1, RATE)
    amounts = charged(usage, PRICES, RATE)
    assert amounts.concurrency == 0
    assert amounts.requests == 1
    assert (amounts.tokens, amounts.input_tokens, amounts.output_tokens) == (100, 80, 20)
    assert amounts.list_cost_nusd == 16 * 3_000 + 64 * 300 + 20 * 15_000
    assert amounts.gpu_us == 16 * 25 + 20 * 500
