"""A link: one connection through the proxy, with its two directions and what the faults do to them."""

import asyncio
import random
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.proxy_faults import Faults, Way
from tests.resp import Frame, Frames, NotFramed

READ_BYTES = 1 << 16
QUEUED_BYTES_MAX = 1 << 20  # of a direction, besides the frame that passes it
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, at once: closing sends RST


@dataclass
class Counts:
    """What went through since the start.

    `round_trips`: how often a client spoke after it had been answered; commands sent together are one. `commands`: the
    commands of Redis by name, handshakes included. `resets`: connections that ended with RST, by a fault or because an
    end of theirs broke.
    """

    accepted: int = 0
    open: int = 0
    resets: int = 0
    round_trips: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    commands: dict[str, int] = field(default_factory=dict)


@dataclass
class Shared:
    """What all links of a proxy look at; `changed` is set, and replaced, when `faults` are."""

    upstream: tuple[str, int]
    frames: Callable[[], Frames]
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Reset(Exception):
    """The link is to end with RST to both sides."""


class Piece(NamedTuple):
    """Bytes that go on at `due_s` of the loop's clock, and how the link goes on then: `go`, `end` (FIN) or `reset`."""

    due_s: float
    data: bytes
    then: str = "go"


class Link:
    """One client's connection and its own connection to the server."""

    def __init__(self, shared: Shared, client: socket.socket, seed: str) -> None:
        self.shared = shared
        self.client = client
        self.seed = seed
        self.is_frozen = shared.faults.freeze
        self.losing: deque[bool] = deque()  # of each command without a reply so far, whether its reply is to be lost
        self.is_asking = False

    async def run(self) -> None:
        """Forward both ways until both ends have ended, a fault resets it, or it is cancelled."""
        server = socket.socket()
        server.settimeout(0)
        is_over = False
        try:
            if self.is_frozen:
                await self._swallow()
            else:
                await self._connect(server)
                async with asyncio.TaskGroup() as both:
                    for direction in (ToServer(self, self.client, server), ToClient(self, server, self.client)):
                        both.create_task(direction.read())
                        both.create_task(direction.write())
                is_over = True
        except* (Reset, OSError, NotFramed):
            pass  # what the ends see of it is the RST below
        finally:
            if is_over:
                self.client.close()
                server.close()
            else:
                self.shared.counts.resets += 1
                hang_up(self.client)
                hang_up(server)

    async def _connect(self, server: socket.socket) -> None:
        for end in (self.client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(server, self.shared.upstream)

    async def _swallow(self) -> None:
        """Take what a client says that came during a freeze, and stay silent when it leaves too."""
        while await asyncio.get_running_loop().sock_recv(self.client, READ_BYTES):
            pass
        await asyncio.Event().wait()


class Direction(ABC):
    """Bytes from one end to the other: read into a bounded queue, and written when the faults let them."""

    def __init__(self, link: Link, source: socket.socket, target: socket.socket) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.frames = link.shared.frames()
        self.random = random.Random(f"{link.seed}/{type(self).__name__}")
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._queued_bytes = 0
        self._taken = asyncio.Event()
        self._last_due_s = 0.0
        self._sent_bytes = 0

    @property
    @abstractmethod
    def way(self) -> Way:
        """The faults of this direction now."""

    @abstractmethod
    def passes(self, frame: Frame) -> bool:
        """Whether a frame may go on; where it may not, the link is reset in its place."""

    @abstractmethod
    def count(self, size_bytes: int) -> None:
        """Bytes have gone on."""

    async def read(self) -> None:
        """Queue what comes, until it ends or the link is to be reset."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self.source, READ_BYTES):
            if self.link.is_frozen:
                continue
            passing = []
            for frame in self.frames.feed(data):
                if not self.passes(frame):
                    await self._put(b"".join(passing), "reset")
                    return
                passing.append(frame.data)
            if passing:
                await self._put(b"".join(passing))
        if not self.link.is_frozen:
            await self._put(self.frames.rest(), "end")

    async def write(self) -> None:
        """Send what is queued, when the faults let it."""
        while True:
            piece = await self._queue.get()
            await self._wait_for(piece)
            if not self.link.is_frozen:
                await self._send(piece.data)
            self._queued_bytes -= len(piece.data)
            self._taken.set()
            if self.link.is_frozen:
                continue
            if piece.then == "reset":
                raise Reset
            if piece.then == "end":
                self.target.shutdown(socket.SHUT_WR)
                return

    async def _put(self, data: bytes, then: str = "go") -> None:
        while self._queued_bytes > QUEUED_BYTES_MAX:
            self._taken.clear()
            await self._taken.wait()
        way = self.way
        jitter_s = way.jitter_s * self.random.random() if way.jitter_s else 0.0
        due_s = asyncio.get_running_loop().time() + way.delay_s + jitter_s
        self._last_due_s = max(self._last_due_s, due_s)
        self._queued_bytes += len(data)
        self._queue.put_nowait(Piece(self._last_due_s, data, then))

    async def _wait_for(self, piece: Piece) -> None:
        """Until a piece is due and nothing is cut; what waited for a delay goes on when the delay is switched off."""
        while not self.link.is_frozen:
            left_s = piece.due_s - asyncio.get_running_loop().time()
            if self.way.cut:
                await self._change(None)
            elif left_s > 0 and (self.way.delay_s or self.way.jitter_s):
                await self._change(left_s)
            else:
                return

    async def _change(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.link.shared.changed.wait()
        except TimeoutError:
            return

    async def _send(self, data: bytes) -> None:
        most = self.way.reset_after_bytes
        left = len(data) if most is None else max(0, most - self._sent_bytes)
        allowed = data[:left]
        while allowed and not self.link.is_frozen:
            part = allowed[:1] if self.way.byte_s else allowed
            await asyncio.get_running_loop().sock_sendall(self.target, part)
            self._sent_bytes += len(part)
            self.count(len(part))
            allowed = allowed[len(part) :]
            if allowed and self.way.byte_s:
                await asyncio.sleep(self.way.byte_s)
        if most is not None and self._sent_bytes >= most:
            raise Reset


class ToServer(Direction):
    """Commands."""

    @property
    def way(self) -> Way:
        """The faults on the way to the server."""
        return self.link.shared.faults.to_server

    def passes(self, frame: Frame) -> bool:
        """Count a command, and remember whether its reply is to be lost."""
        faults = self.link.shared.faults
        if faults.reset_on is not None and faults.reset_on.fires(frame.words):
            return False
        if frame.words:
            commands = self.link.shared.counts.commands
            commands[frame.words[0]] = commands.get(frame.words[0], 0) + 1
        if not frame.words or not frame.words[0].endswith("SUBSCRIBE"):  # those are answered by pushes
            self.link.losing.append(faults.lose_reply is not None and faults.lose_reply.fires(frame.words))
        return True

    def count(self, size_bytes: int) -> None:
        """What is sent after an answer, or first of all, is a round trip."""
        counts = self.link.shared.counts
        counts.bytes_to_server += size_bytes
        counts.round_trips += not self.link.is_asking
        self.link.is_asking = True


class ToClient(Direction):
    """Replies."""

    @property
    def way(self) -> Way:
        """The faults on the way to the client."""
        return self.link.shared.faults.to_client

    def passes(self, frame: Frame) -> bool:
        """Whether this reply is not the one to be lost: the command it answers has been executed by now."""
        losing = self.link.losing
        if frame.is_push or not losing:
            return True
        is_lost = losing.popleft()
        if not self.frames.is_counted:
            is_lost = is_lost or any(losing)
            losing.clear()
        return not is_lost

    def count(self, size_bytes: int) -> None:
        """An answer is under way."""
        self.link.shared.counts.bytes_to_client += size_bytes
        self.link.is_asking = False


def hang_up(end: socket.socket) -> None:
    """Close a connection with RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
