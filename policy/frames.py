"""What a gateway and the process that evaluates its policies say to each other, as frames of a length and bytes.

First the gateway sends one frame of JSON, which names the files of a bundle, and one frame for each of them; the answer
is JSON too. Then each question is an entry point, a line break and the input as JSON; the answers come in their order.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from policy.port import EvaluationError, Undefined

FRAME_BYTES_MAX = 64 * 1024 * 1024
_LENGTH_BYTES = 4
_VALUE, _FAILED = b"v", b"f"


def packed(content: bytes) -> bytes:
    """One frame; ValueError where it would be longer than a frame may be."""
    if len(content) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(content)} bytes is longer than {FRAME_BYTES_MAX}")
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def received(stream: BinaryIO) -> bytes | None:
    """The next frame of a blocking stream; None where the other side has closed it."""
    head = stream.read(_LENGTH_BYTES)
    size = int.from_bytes(head, "big")
    if len(head) < _LENGTH_BYTES or size > FRAME_BYTES_MAX:
        return None
    content = stream.read(size)
    return content if len(content) == size else None


class Frames:
    """Puts frames together from pieces as they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The frames that are complete with this piece."""
        rest = self._rest
        rest += piece
        while len(rest) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(rest[:_LENGTH_BYTES], "big")
            if len(rest) < end:
                return
            frame = bytes(rest[_LENGTH_BYTES:end])
            del rest[:end]
            yield frame


def question(entry: str, input_json: bytes) -> bytes:
    """The frame that asks an entry point about one input."""
    return packed(b"%b\n%b" % (entry.encode(), input_json))


def asked(frame: bytes) -> tuple[str, bytes]:
    """The entry point and the input of a question."""
    entry, _, input_json = frame.partition(b"\n")
    return entry.decode(), input_json


def answered(text: bytes) -> bytes:
    """The frame that carries the engine's text."""
    return packed(_VALUE + text)


def failed(error: EvaluationError) -> bytes:
    """The frame that says why there is no value."""
    return packed(_FAILED + str(error).encode())


def value_in(frame: bytes) -> Any:
    """The value in an answer; raises EvaluationError or Undefined."""
    if frame[:1] == _VALUE:
        return value_of(frame[1:])
    raise EvaluationError(frame[1:].decode(errors="replace"))


def value_of(text: bytes) -> Any:
    """The value in the engine's text; raises EvaluationError or Undefined."""
    if text == b"undefined":
        raise Undefined("the entry point is undefined for this input")
    try:
        return orjson.loads(text)["expressions"][0]
    except (ValueError, LookupError, TypeError) as error:
        raise EvaluationError("the engine's answer is not JSON: a rule failed or refers to itself") from error
