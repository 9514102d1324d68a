"""Event streams: pass a runtime's chunks on as they come, and read its usage reports on the way.

A runtime asked for `continuous_usage_stats` reports usage in every chunk. The client sees only what it asked for, so
reports it did not ask for are cut out. The common chunk is handled without parsing its JSON.
"""

import re
from typing import Any

import orjson

from runtime.openai.usage import Report, produced_bytes, read_report
from runtime.port import Garbage

_USAGE = b',"usage":{'
_END = b"}\n\n"
_DONE = b"data: [DONE]\n\n"
_NO_CHOICES = b'"choices":[]'
_INDEX = re.compile(rb'"index": ?(\d{1,6})')
_SEPARATOR = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Meter:
    """Reads one response's event stream; `feed` returns the bytes that the client is to see.

    Until the final chunk, which sums them, each of several choices reports for itself. `show_final` keeps that closing
    chunk, `show_all` the report in every chunk. Raises Garbage when the stream is not server-sent events of JSON
    objects or an event is larger than `event_bytes_max`.
    """

    __slots__ = (
        "_final",
        "_partial",
        "_reports",
        "choices",
        "done",
        "error",
        "event_bytes_max",
        "produced",
        "show_all",
        "show_final",
    )

    def __init__(self, *, choices: int, show_final: bool, show_all: bool, event_bytes_max: int) -> None:
        self.choices = choices
        self.show_final = show_final
        self.show_all = show_all
        self.event_bytes_max = event_bytes_max
        self.done = False
        self.error: dict[str, Any] | None = None
        self.produced = 0
        self._partial = b""
        self._reports: dict[int, bytes | Report] = {}
        self._final: bytes | Report | None = None

    @property
    def report(self) -> Report | None:
        """The usage as last reported: the final sum, or else the sum of what each choice reported for itself.

        Raises Garbage when a report is not one.
        """
        if self._final is not None:
            return _read(self._final)
        reports = [_read(report) for report in self._reports.values()]
        if not reports:
            return None
        return Report(
            input_tokens=max(report.input_tokens for report in reports),
            cached_input_tokens=min(report.cached_input_tokens for report in reports),
            output_tokens=sum(report.output_tokens for report in reports),
            reasoning_tokens=sum(report.reasoning_tokens for report in reports),
        )

    def feed(self, data: bytes) -> bytes:
        """Take what arrived and return what to pass on, perhaps nothing yet."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            return self._event(data)
        return self._split(data)

    def finish(self) -> bytes:
        """The stream has ended: what was still partial is an event too, or garbage."""
        rest, self._partial = self._partial, b""
        return self._event(rest.rstrip(b"\r\n") + b"\n\n") if rest.strip() else b""

    def _split(self, data: bytes) -> bytes:
        out = []
        start = 0
        for match in _SEPARATOR.finditer(data):
            out.append(self._event(data[start : match.start()].replace(b"\r\n", b"\n") + b"\n\n"))
            start = match.end()
        self._partial = data[start:]
        if len(self._partial) > self.event_bytes_max:
            raise Garbage(f"an event is larger than {self.event_bytes_max} bytes")
        return b"".join(out)

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return self._other(event)
        cut = event.rfind(_USAGE)
        raw = event[cut + 9 : -3]
        if cut < 0 or not event.endswith(b"}}\n\n") or raw.count(b"{") != raw.count(b"}") or b'"error"' in event:
            return self._parsed(event) if event.find(b"\n") == len(event) - 2 else self._other(event)
        if _NO_CHOICES in event:
            self._final = raw
            return event if self.show_final else b""
        self._reports[0 if self.choices == 1 else _index(event)] = raw
        return event if self.show_all else event[:cut] + _END

    def _parsed(self, event: bytes) -> bytes:
        """The slow way, for chunks that are not shaped as expected."""
        chunk = _load(event[6:])
        if not isinstance(chunk, dict):
            raise Garbage("an event is not a JSON object")
        if isinstance(chunk.get("error"), dict):
            self.error = chunk["error"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            self.produced += produced_bytes(choice)
        usage = chunk.get("usage")
        if usage is None:
            return event
        report = read_report(usage)
        if report is None:
            raise Garbage("an event reports a usage that cannot be")
        if not choices:
            self._final = report
            return event if self.show_final else b""
        self._reports[_index(event)] = report
        if self.show_all:
            return event
        del chunk["usage"]
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _other(self, event: bytes) -> bytes:
        if event == _DONE:
            self.done = True
            return event
        lines = event.strip(b"\n").split(b"\n")
        # JSON has no line breaks but between its tokens, where a space does as well.
        data = b" ".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data:
            if all(
                not line or line[0] == ord(":") or line.split(b":", 1)[0] in (b"event", b"id", b"retry")
                for line in lines
            ):
                return event
            raise Garbage("a line of the stream is not a server-sent event")
        if data.strip() == b"[DONE]":
            self.done = True
            return _DONE
        return self._parsed(b"data: " + data + b"\n\n")


def shown(body: dict[str, Any]) -> tuple[bool, bool]:
    """Which usage chunks the client of a request asked to see: the final one, and those in every chunk."""
    options = body.get("stream_options") or {}
    show_final = bool(options.get("include_usage"))
    return show_final, show_final and bool(options.get("continuous_usage_stats"))


def _index(event: bytes) -> int:
    """Which choice a chunk is of."""
    match = _INDEX.search(event)
    return int(match[1]) if match else 0


def _read(raw: bytes | Report) -> Report:
    report = raw if isinstance(raw, Report) else read_report(_load(raw))
    if report is None:
        raise Garbage("an event reports a usage that cannot be")
    return report


def _load(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Garbage(f"an event is not JSON: {error}") from error
