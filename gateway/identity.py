"""Identity: from the headers of a request to the key that its caller holds, and what else they say."""

from typing import NamedTuple

from domain.intent import NO_RUN, Run

_BEARER = b"bearer "
ID_CHARS_MAX = 128


class Head(NamedTuple):
    """What Bursar reads of a request's headers; absent ones are empty."""

    secret: bytes = b""
    content_length: int | None = 0
    traceparent: bytes | None = None
    request_id: str = ""
    run: Run = NO_RUN


def read_head(headers: list[tuple[bytes, bytes]]) -> Head:
    """Read the headers once; an unreadable content length is None."""
    found = {name: value for name, value in headers if name in _READ}
    secret = found.get(b"x-api-key", b"")
    authorization = found.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == _BEARER:
        secret = authorization[7:].strip()
    length = found.get(b"content-length")
    run_id = found.get(b"x-bursar-run")
    return Head(
        secret,
        0 if length is None else int(length) if length.isdigit() and len(length) < 19 else None,
        found.get(b"traceparent"),
        _text(found.get(b"x-request-id")),
        Run(run_id=_text(run_id)) if run_id else NO_RUN,
    )


_READ = frozenset((b"authorization", b"x-api-key", b"content-length", b"traceparent", b"x-request-id", b"x-bursar-run"))


def _text(value: bytes | None) -> str:
    """A header's value, cut to what a column takes; bytes that are not printable ASCII are replaced."""
    if not value:
        return ""
    text = value[:ID_CHARS_MAX].decode("ascii", "replace")
    return text if text.isprintable() else ascii(text)
