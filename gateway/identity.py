"""Identity: what the headers of a request say of its caller."""

from typing import NamedTuple

from domain.intent import NO_RUN, Run

_BEARER = b"bearer "
ID_CHARS_MAX = 128
_DIGITS_MAX = 18


class Head(NamedTuple):
    """What Bursar reads of a request's headers; absent ones are empty, None or 0, and an unreadable number is -1."""

    secret: bytes
    content_length: int
    traceparent: bytes | None
    request_id: str
    run: Run
    priority: int
    idempotency_key: bytes | None


def read_head(headers: list[tuple[bytes, bytes]]) -> Head:
    """Read the headers once."""
    secret = key = b""
    length = priority = 0
    traceparent = idempotency_key = None
    request_id = run_id = ""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            secret = value[7:].strip()
        elif name == b"content-length":
            length = _number(value)
        elif name == b"x-api-key":
            key = value
        elif name == b"traceparent":
            traceparent = value
        elif name == b"x-request-id":
            request_id = _text(value)
        elif name == b"x-bursar-run":
            run_id = _text(value)
        elif name == b"x-bursar-priority":
            priority = _number(value)
        elif name == b"idempotency-key":
            idempotency_key = value
    run = Run(run_id) if run_id else NO_RUN
    return Head(secret or key, length, traceparent, request_id, run, priority, idempotency_key)


def _number(value: bytes) -> int:
    """A whole number, or -1 where a header's value is none."""
    return int(value) if value.isdigit() and len(value) <= _DIGITS_MAX else -1


def _text(value: bytes) -> str:
    """A header's value, cut to what a column takes; bytes that are not printable ASCII are escaped."""
    text = value[:ID_CHARS_MAX].decode("ascii", "replace")
    return text if text.isprintable() else ascii(text)
