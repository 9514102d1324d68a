"""The lines of telemetry as values, and the parser that makes them; the format is that of `runtime.telemetry`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from runtime.telemetry.writer import VERSION

# Larger than any time in microseconds that means something, and within the ledger's Int64 when added up. What is
# multiplied by a time has bounds of its own.
TIME_US_MAX = 1 << 53
COUNT_MAX = 1 << 31
ACCELERATORS_MAX = 100_000
STEP_US_MAX = 3_600_000_000
TEXT_CHARS_MAX = 512
VERSION_CHARS_MAX = 40
REASONS = ("finished", "aborted", "preempted")

Take = tuple[int, int]


class Open(NamedTuple):
    """A segment begins: of which source and start of the engine, and the facts about it.

    `lost` counts the lines of the session that could not be written so far. `off` says why the engine serves on without
    telling of its steps; empty where it tells.
    """

    source: str
    session: str
    segment: int
    unix_us: int
    engine: str
    model: str
    accelerators: int
    block_size: int
    num_blocks: int
    lost: int
    off: str = ""


class State(NamedTuple):
    """Who is in the batch where a segment begins: handle, request id and the tokens of its context."""

    batch: tuple[tuple[int, str, int], ...]


class Join(NamedTuple):
    """A request entered the batch; `context_tokens` of its prompt were in the prefix cache."""

    handle: int
    request_id: str
    prompt_tokens: int
    context_tokens: int
    queued_us: int


class Step(NamedTuple):
    """A step was computed; `takes` are the handles that computed other than one decoded token, and how many."""

    begin_us: int
    end_us: int
    used_blocks: int
    running: int
    waiting: int
    takes: tuple[Take, ...]


class Leave(NamedTuple):
    """A request left the batch: finished, aborted or preempted, with so many output tokens."""

    handle: int
    reason: str
    output_tokens: int


class Finished(NamedTuple):
    """What the runtime itself counted of a request that finished."""

    request_id: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queued_us: int
    prefill_us: int
    decode_us: int
    e2e_us: int
    preemptions: int


class Close(NamedTuple):
    """The engine ended by itself."""

    unix_us: int


class Lost(NamedTuple):
    """Something is missing here, and why: `garbage`, `torn`, `long`, `segments`, `replaced`, `version` or `unwritten`.

    `missing` is how many lines that were, or segments, where that is known; `detail` the version that is not ours.
    """

    why: str
    missing: int = 1
    detail: str = ""


Record = Open | State | Join | Step | Leave | Finished | Close | Lost


class Parser:
    """Makes records of the whole lines of one source; what cannot be read becomes a `Lost` and nothing is raised.

    `foreign` is the version of the format in which the source tells now, where that is not ours.
    """

    def __init__(self) -> None:
        self.foreign = ""

    def records(self, data: bytes) -> Iterator[Record]:
        """The records of some whole lines, each made when it is asked for."""
        for line in data.split(b"\n"):
            if not line:
                continue
            try:
                record = _record(orjson.loads(line))
            except (ValueError, TypeError, LookupError, AttributeError):
                record = Lost("garbage")
            if isinstance(record, Open | Lost) and (not isinstance(record, Lost) or record.why == "version"):
                # What another version of the format means by its lines is not known until a segment of ours begins.
                self.foreign = record.detail if isinstance(record, Lost) else ""
                yield record
            elif not self.foreign:
                yield record


def _record(line: Any) -> Record:
    kind = line[0]
    if kind == "step":
        _, begin_us, end_us, used_blocks, running, waiting, takes = line
        _check_times(begin_us, end_us)
        _check(used_blocks, running, waiting)
        if end_us - begin_us > STEP_US_MAX:
            raise ValueError("longer than any step")
        if takes:
            takes = [(handle, tokens) for handle, tokens in takes]
            for take in takes:
                _check(*take)
            if len(dict(takes)) != len(takes):
                raise ValueError("a handle twice")
        return Step(begin_us, end_us, used_blocks, running, waiting, tuple(takes))
    if kind == "join":
        join = Join(*line[1:])
        _check(join.handle, join.prompt_tokens, join.context_tokens)
        _check_times(join.queued_us)
        _check_text(join.request_id)
        return join
    return _rarer(kind, line)


def _rarer(kind: Any, line: Any) -> Record:
    if kind == "leave":
        leave = Leave(*line[1:])
        _check(leave.handle, leave.output_tokens)
        if leave.reason not in REASONS:
            raise ValueError("an unknown reason")
        return leave
    if kind == "finished":
        finished = Finished(*line[1:])
        _check(finished.prompt_tokens, finished.cached_tokens, finished.output_tokens, finished.preemptions)
        _check_times(finished.queued_us, finished.prefill_us, finished.decode_us, finished.e2e_us)
        _check_text(finished.request_id)
        _check_text(finished.reason)
        return finished
    if kind == "state":
        batch = tuple([(handle, request_id, context) for handle, request_id, context in line[1]])
        for handle, request_id, context in batch:
            _check(handle, context)
            _check_text(request_id)
        return State(batch)
    if kind == "close":
        _check_times(line[1])
        return Close(line[1])
    if kind == "open":
        return _opened(line)
    raise ValueError("an unknown kind")


def _opened(line: Any) -> Record:
    if line[1] != VERSION:
        return Lost("version", detail=repr(line[1])[:VERSION_CHARS_MAX])
    _, _, source, session, segment, unix_us, facts = line
    _check_text(source)
    _check_text(session)
    counts = [facts.get(name, default) for name, default in _COUNTED]
    _check(segment, *counts)
    _check_times(unix_us)
    accelerators, block_size, num_blocks, lost = counts
    if accelerators > ACCELERATORS_MAX:
        raise ValueError("more accelerators than an engine has")
    engine, model, off = [str(facts.get(name, ""))[:TEXT_CHARS_MAX] for name in ("engine", "model", "off")]
    return Open(source, session, segment, unix_us, engine, model, accelerators, block_size, num_blocks, lost, off)


_COUNTED = (("accelerators", 0), ("block_size", 0), ("num_blocks", 0), ("lost", 0))


def _check(*numbers: Any) -> None:
    for number in numbers:
        if type(number) is not int or not 0 <= number < COUNT_MAX:
            raise ValueError("not a count")


def _check_times(*times_us: Any) -> None:
    for time_us in times_us:
        if type(time_us) is not int or not 0 <= time_us < TIME_US_MAX:
            raise ValueError("not a time")


def _check_text(text: Any) -> None:
    if type(text) is not str or len(text) > TEXT_CHARS_MAX:
        raise ValueError("not a short text")
