"""Traces: sampled spans of governed requests, which cost one random number while off."""

import random
import re
import sys
import threading
from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from observability import names

QUEUE_MAX = 2_048
BATCH_MAX = 256
EXPORT_INTERVAL_MS = 1_000
EXPORT_TIMEOUT_S = 5.0
OTLP_PATH = "/v1/traces"
LIMITS = SpanLimits(max_events=32, max_span_attributes=64, max_event_attributes=16, max_attribute_length=512)

# Version 00 has exactly four fields; a later version may add some behind a dash (W3C Trace Context, section 3.2).
TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,256})?")
FLAGS_AT = 54
SAMPLED_DIGITS = frozenset(b"%x" % digit for digit in range(1, 16, 2))  # of the last, where bit 0 says sampled

Value = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Value]


class Span:
    """One sampled span; it has to be ended, and then takes nothing more."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        """Note that something happened now."""
        self._span.add_event(name, attributes)

    def end(self, attributes: Attributes | None = None, error: str | None = None) -> None:
        """Close the span; `error` is the error table's code of what went wrong."""
        if attributes:
            self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute(names.ERROR_TYPE, error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    @property
    def header(self) -> bytes:
        """The `traceparent` that continues this span in the process called."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}".encode("ascii")


class Tracing:
    """Decides which requests are traced and exports their spans from a bounded queue, dropping what does not fit.

    It is off without an exporter. `otlp_endpoint` is the base address of a collector, as in
    OTEL_EXPORTER_OTLP_ENDPOINT; `exporter` replaces it in tests.
    """

    def __init__(
        self,
        sample: float,
        otlp_endpoint: str | None = None,
        *,
        console: bool = False,
        exporter: SpanExporter | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not 0.0 <= sample <= 1.0:
            raise ValueError(f"a sampling rate lies between 0 and 1, not at {sample}")
        self._sample = sample
        self._draw = draw
        exporters = _exporters(otlp_endpoint, console=console, exporter=exporter)
        self._on = bool(exporters)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": "bursar"}),
            shutdown_on_exit=False,  # its own exit handler would wait without a bound; `close` has one
            span_limits=LIMITS,
        )
        for each in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(each, QUEUE_MAX, EXPORT_INTERVAL_MS, BATCH_MAX))
        self._tracer = self._provider.get_tracer("bursar")

    def start(
        self, traceparent: bytes | None = None, sample: float | None = None, began_us: int | None = None
    ) -> Span | None:
        """The span of a request that began at a Unix microsecond, or now; None when it is not traced.

        `sample` is the policy's rate for it and replaces the configured one. A caller's sampled `traceparent` is
        always followed; a malformed one is ignored.
        """
        if not self._on:
            return None
        drawn = self._draw() < (self._sample if sample is None else sample)
        if not drawn and (traceparent is None or traceparent[FLAGS_AT : FLAGS_AT + 1] not in SAMPLED_DIGITS):
            return None
        caller = _caller(traceparent)
        if not drawn and (caller is None or not caller.trace_flags.sampled):
            return None
        context = Context() if caller is None else trace.set_span_in_context(NonRecordingSpan(caller), Context())
        began_ns = None if began_us is None else began_us * 1000
        span = self._tracer.start_span(names.SPAN_REQUEST, context, SpanKind.SERVER, start_time=began_ns)
        return Span(span)

    def close(self, timeout_s: float = EXPORT_TIMEOUT_S) -> bool:
        """Export what is queued and stop; False when that took longer than `timeout_s` and the rest was given up."""
        closing = threading.Thread(target=self._provider.shutdown, name="bursar-tracing-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()


def _exporters(otlp_endpoint: str | None, *, console: bool, exporter: SpanExporter | None) -> list[SpanExporter]:
    exporters = [] if exporter is None else [exporter]
    if otlp_endpoint is not None:
        base = otlp_endpoint.rstrip("/").removesuffix(OTLP_PATH)
        exporters.append(OTLPSpanExporter(endpoint=base + OTLP_PATH, timeout=EXPORT_TIMEOUT_S))
    if console:
        exporters.append(ConsoleSpanExporter(out=sys.stderr))
    return exporters


def _caller(traceparent: bytes | None) -> SpanContext | None:
    """The span that a `traceparent` header names, or None where it is missing or malformed."""
    match = None if traceparent is None else TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"00" and more is not None:
        return None
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return context if context.is_valid else None
