"""RESP as it stands on the wire, cut into whole commands and whole replies: what a proxy must know of Redis."""

from typing import NamedTuple, Protocol

FRAME_BYTES_MAX = 8 << 20
_END = b"\r\n"
_SIZED = b"$=!"
_LISTS = b"*~>"
_MAP, _ATTRIBUTE, _PUSH, _ARRAY = b"%", b"|", b">", b"*"
_WORDS_MAX = 4
_WORD_BYTES_MAX = 128


class NotFramed(Exception):
    """The bytes are no RESP, or one frame of them is larger than `FRAME_BYTES_MAX`."""


class Frame(NamedTuple):
    """One command or reply. `words` are the first of a command's; `is_push`: no command asked for this reply."""

    data: bytes
    words: tuple[str, ...] = ()
    is_push: bool = False


class Frames(Protocol):
    """Cuts the bytes of one direction into frames; `is_counted`: to each frame one way there is one the other way."""

    is_counted: bool

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. NotFramed."""

    def rest(self) -> bytes:
        """What is left of an incomplete frame when the bytes end."""


class Chunks:
    """Any protocol: what comes at once is a frame."""

    is_counted = False

    def feed(self, data: bytes) -> list[Frame]:
        """The bytes as they came."""
        return [Frame(data)]

    def rest(self) -> bytes:
        """Nothing is ever kept."""
        return b""


class Resp:
    """Redis' protocol, versions 2 and 3, inline commands included."""

    is_counted = True

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. NotFramed."""
        self._bytes += data
        frames, start = [], 0
        while start < len(self._bytes):
            end = _end_of(self._bytes, start)
            if end is None:
                break
            frame = bytes(self._bytes[start:end])
            frames.append(Frame(frame, _words(frame), frame.startswith(_PUSH)))
            start = end
        del self._bytes[:start]
        if len(self._bytes) > FRAME_BYTES_MAX:
            raise NotFramed(f"a frame of more than {FRAME_BYTES_MAX} bytes")
        return frames

    def rest(self) -> bytes:
        """What is left of an incomplete frame when the bytes end."""
        return bytes(self._bytes)


def _end_of(content: bytearray, at: int) -> int | None:
    """Where the frame ends that begins at `at`, None while it is incomplete."""
    wanted = 1
    while wanted:
        line_end = content.find(_END, at)
        if line_end < 0:
            return None
        kind, line = content[at : at + 1], content[at + 1 : line_end]
        at = line_end + len(_END)
        wanted -= 1
        if kind in _SIZED:
            size = _count(line)
            at += size + len(_END) if size >= 0 else 0
        elif kind in _LISTS:
            wanted += max(0, _count(line))
        elif kind in (_MAP, _ATTRIBUTE):
            # An attribute is followed by what it is an attribute of.
            wanted += 2 * _count(line) + (kind == _ATTRIBUTE)
    return at if at <= len(content) else None


def _count(line: bytearray) -> int:
    try:
        return int(line)
    except ValueError:
        raise NotFramed(f"not a count of RESP: {bytes(line[:40])!r}") from None


def _words(frame: bytes) -> tuple[str, ...]:
    """The first words of a command, the first in capitals; nothing for a reply that is no list of strings."""
    if not frame.startswith(_ARRAY):
        words = frame.split()[:_WORDS_MAX]
    else:
        words, at = [], frame.find(_END) + len(_END)
        while at < len(frame) and len(words) < _WORDS_MAX and frame[at : at + 1] == b"$":
            line_end = frame.find(_END, at)
            size = max(0, int(frame[at + 1 : line_end]))
            start = line_end + len(_END)
            words.append(frame[start : start + min(size, _WORD_BYTES_MAX)])
            at = start + size + len(_END)
    texts = [word[:_WORD_BYTES_MAX].decode(errors="replace") for word in words]
    return (texts[0].upper(), *texts[1:]) if texts else ()
