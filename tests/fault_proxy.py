"""A TCP proxy that fails on demand, between clients and Redis or anything else; its faults are switched while it runs.

In a test: `async with FaultProxy(host, port) as proxy` and `await proxy.change(freeze=True)`. As a process, for clients
that are other processes or not asyncio: `python -m tests.fault_proxy --upstream HOST:PORT` (see `tests.proxy_process`).
"""

import argparse
import asyncio
import json
import socket
import sys
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any, Self

from tests.proxy_faults import BadFault, Faults
from tests.proxy_link import Counts, Link, Shared, hang_up
from tests.resp import Chunks, Resp

HOST = "127.0.0.1"
LINKS_MAX = 4_096
_BACKLOG = 512
_CONTROL_BYTES_MAX = 1 << 16


class FaultProxy:
    """Listens on loopback and forwards every connection to one server, as far as the faults let it.

    `listen_port` 0 takes a free one; it is kept also while connections are refused. Without `is_resp` the server need
    not be Redis: then whatever bytes come at once count as a command, and what comes back next as its reply. A client
    whose server is away sees its connection made and then reset.
    """

    def __init__(self, host: str, port: int, *, listen_port: int = 0, is_resp: bool = True, seed: int = 0) -> None:
        self.port = listen_port
        self._shared = Shared((host, port), Resp if is_resp else Chunks)
        self._seed = seed
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._listener = self._bound()
        self.port = self._listener.getsockname()[1]
        self._accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._refuse()
        await self.reset()
        assert self._listener is not None
        self._listener.close()

    @property
    def faults(self) -> Faults:
        """The faults as they are switched now."""
        return self._shared.faults

    @property
    def counts(self) -> Counts:
        """What went through so far."""
        return self._shared.counts

    @property
    def url(self) -> str:
        """Database 0 of the Redis behind it."""
        return f"redis://{HOST}:{self.port}/0"

    async def change(self, **changes: Any) -> None:
        """Switch some faults and leave the others; `to_server` and `to_client` take mappings. BadFault."""
        await self._apply(self.faults.changed(changes))

    async def heal(self) -> None:
        """Switch all faults off; what was frozen meanwhile is reset, as a host does that has lost its connections."""
        await self._apply(Faults())

    async def reset(self) -> None:
        """Reset every connection there is now."""
        await self._reset(list(self._links))

    async def _apply(self, faults: Faults) -> None:
        before, self._shared.faults = self.faults, faults
        if faults.refuse and not before.refuse:
            await self._refuse()
        if before.refuse and not faults.refuse:
            self._accept()
        if faults.freeze:
            for link in self._links:
                link.is_frozen = True
        else:
            await self._reset([link for link in self._links if link.is_frozen])
        self._shared.changed.set()
        self._shared.changed = asyncio.Event()

    async def _reset(self, links: list[Link]) -> None:
        tasks = [self._links[link] for link in links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what is called when they are done has been called then

    def _bound(self) -> socket.socket:
        """A socket that has the port and does not listen yet: connecting to it is refused."""
        bound = socket.socket()
        bound.settimeout(0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((HOST, self.port))
        return bound

    def _accept(self) -> None:
        assert self._listener is not None
        self._listener.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._serve(self._listener))

    async def _refuse(self) -> None:
        """Stop listening and keep the port, so that nobody else takes it and clients see it refused."""
        if self._accepting is None:
            return
        assert self._listener is not None
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._accepting = None
        kept = self._bound()
        self._listener.close()
        self._listener = kept

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            client.settimeout(0)
            self.counts.accepted += 1
            if self.faults.reset_at_connect or len(self._links) >= LINKS_MAX:
                hang_up(client)
                self.counts.resets += 1
                continue
            link = Link(self._shared, client, f"{self._seed}/{self.counts.accepted}")
            self._links[link] = task = asyncio.create_task(link.run())
            self.counts.open += 1
            task.add_done_callback(partial(self._ended, link))

    def _ended(self, link: Link, _: asyncio.Task[None]) -> None:
        link.client.close()  # where the task was cancelled before its first step, it is open still
        del self._links[link]
        self.counts.open -= 1


class Control:
    """Lines of JSON on standard input, each with what to `do`, and a line of JSON for each on standard output.

    `{"do": "change", "faults": {…}}`, or `heal`, `reset`, `counts`: the answer is the counts, or `{"error": …}`. The
    first line that comes out is the port.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    async def run(self) -> None:
        """Obey until the input ends."""
        reader = asyncio.StreamReader(_CONTROL_BYTES_MAX)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        _say({"port": self._proxy.port})
        while line := await reader.readline():
            try:
                await self._do(json.loads(line))
            except (BadFault, ValueError, KeyError, TypeError) as error:
                _say({"error": f"{type(error).__name__}: {error}"})
            else:
                _say(asdict(self._proxy.counts))

    async def _do(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "change":
                await self._proxy.change(**order["faults"])
            case "heal":
                await self._proxy.heal()
            case "reset":
                await self._proxy.reset()
            case "counts":
                pass
            case unknown:
                raise BadFault(f"change, heal, reset or counts, not {unknown!r}")


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _serve(options: argparse.Namespace) -> None:
    host, _, port = options.upstream.rpartition(":")
    proxy = FaultProxy(host, int(port), listen_port=options.port, is_resp=not options.any, seed=options.seed)
    async with proxy:
        await Control(proxy).run()


def main() -> None:
    """Forward until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_proxy", description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="where to listen on loopback; 0: a free port")
    parser.add_argument("--any", action="store_true", help="the upstream does not speak Redis' protocol")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
