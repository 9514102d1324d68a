"""Traces follow the sampling rate, the policy and the caller, and end within a bound."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from observability import names
from observability.tracing import Tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00".encode()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def never(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    """Traces nothing by itself."""
    tracing = Tracing(0.0, exporter=exporter)
    yield tracing
    tracing.close()


@pytest.fixture
def always(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    """Traces every request."""
    tracing = Tracing(1.0, exporter=exporter)
    yield tracing
    tracing.close()


def test_without_an_exporter_nothing_is_traced() -> None:
    tracing = Tracing(1.0)
    assert tracing.start(SAMPLED, 1.0) is None
    assert tracing.close()


def test_the_rate_decides_by_one_draw(exporter: InMemorySpanExporter) -> None:
    draws = iter([0.009, 0.010, 0.5])
    tracing = Tracing(0.01, exporter=exporter, draw=lambda: next(draws))
    started = [tracing.start() for _ in range(3)]
    assert [span is not None for span in started] == [True, False, False]
    assert tracing.close()


def test_the_policy_replaces_the_rate(never: Tracing, always: Tracing) -> None:
    assert never.start(None, 1.0) is not None
    assert always.start(None, 0.0) is None


def test_a_sampled_caller_is_followed_whatever_the_rate(never: Tracing, exporter: InMemorySpanExporter) -> None:
    span = never.start(SAMPLED)
    assert span is not None
    span.end()
    assert never.close()
    (exported,) = exporter.get_finished_spans()
    assert exported.context is not None
    assert exported.parent is not None
    assert f"{exported.context.trace_id:032x}" == TRACE_ID
    assert f"{exported.parent.span_id:016x}" == SPAN_ID
    assert exported.kind is SpanKind.SERVER
    assert exported.name == names.SPAN_REQUEST


def test_an_unsampled_caller_is_not_traced_by_itself_but_joined_when_drawn(never: Tracing, always: Tracing) -> None:
    assert never.start(UNSAMPLED) is None
    span = always.start(UNSAMPLED)
    assert span is not None
    assert span.header.split(b"-")[1].decode() == TRACE_ID


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00",
        b"garbage" * 100,
        SAMPLED.upper(),
        b"ff" + SAMPLED[2:],
        SAMPLED + b"-more",
        SAMPLED + b"1",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01",
        SAMPLED[:-2] + b"\xff\xfe",
    ],
)
def test_a_malformed_traceparent_is_ignored(never: Tracing, always: Tracing, traceparent: bytes) -> None:
    assert never.start(traceparent) is None
    span = always.start(traceparent)
    assert span is not None
    assert span.header.split(b"-")[1].decode() != TRACE_ID


def test_a_later_version_of_the_header_is_understood(never: Tracing) -> None:
    span = never.start(b"01" + SAMPLED[2:] + b"-more")
    assert span is not None
    assert span.header.startswith(b"00-" + TRACE_ID.encode())


def test_a_span_carries_its_beginning_events_and_attributes(always: Tracing, exporter: InMemorySpanExporter) -> None:
    span = always.start(began_us=1_700_000_000_000_000)
    assert span is not None
    span.event(names.EVENT_HELD, {names.HOLD_ID: "h-1"})
    span.end({names.TEAM: "search"}, error="upstream_timeout")
    assert always.close()
    (request,) = exporter.get_finished_spans()
    assert request.name == names.SPAN_REQUEST
    assert request.start_time == 1_700_000_000_000_000_000
    assert request.attributes == {names.TEAM: "search", names.ERROR_TYPE: "upstream_timeout"}
    assert request.status.status_code is StatusCode.ERROR
    assert [(event.name, dict(event.attributes or {})) for event in request.events] == [
        (names.EVENT_HELD, {names.HOLD_ID: "h-1"})
    ]


def test_events_of_one_span_are_bounded(always: Tracing, exporter: InMemorySpanExporter) -> None:
    span = always.start()
    assert span is not None
    for number in range(100):
        span.event(f"event-{number}")
    span.end()
    assert always.close()
    assert len(exporter.get_finished_spans()[0].events) == 32


class StuckExporter(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.released.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing is kept open."""


def test_close_gives_up_on_a_stuck_collector() -> None:
    stuck = StuckExporter()
    tracing = Tracing(1.0, exporter=stuck)
    span = tracing.start()
    assert span is not None
    span.end()
    began = time.monotonic()
    assert not tracing.close(timeout_s=0.2)
    assert time.monotonic() - began < 2.0
    stuck.released.set()


def test_a_rate_outside_of_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Tracing(1.5)
