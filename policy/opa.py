"""The engine that is an OPA server, asked over its REST API; whatever it answers but a value is an error, which denies.

Why it speaks HTTP itself, and `opa-python-client` only manages: docs/decisions/0016-opa-server-engine.md.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from domain.tasks import within
from policy.port import Answer, EngineAway, EvaluationError, Undefined

ANSWER_BYTES_MAX = 4 * 1024 * 1024
REVISION_CHARACTERS_MAX = 512
STATUS_EVERY = 10
# No rule has this name: an answer says which bundles decide, and whatever else comes says that nobody knows.
POLLED = "bursar/none"

_QUERY = {"provenance": "true", "strict-builtin-errors": "true"}
# What something in front of OPA answers in its place, or OPA when it is shutting down.
_AWAY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
_SAID_CHARACTERS_MAX = 300
# uvloop raises RuntimeError where something is written to a connection that the other side has reset.
_FAULTS = (aiohttp.ClientError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class OpaServer:
    """Where an OPA answers and how it is asked.

    `timeout_ms` is for one answer, waiting for a free connection included. After `failures_max` failures in a row it
    is asked once per `reset_s` only, until it answers. `token` goes to it as `Authorization: Bearer`.
    """

    url: str
    timeout_ms: int = 250
    poll_s: float = 1.0
    failures_max: int = 5
    reset_s: float = 1.0
    connections_max: int = 16
    waiting_max: int = 10_000
    token: str = ""


class _Said(NamedTuple):
    """One answer, and the how manieth question it is to."""

    number: int
    status: int
    body: bytes


class OpaState(NamedTuple):
    """What is known of an OPA: the revision that decides, and what is wrong, which is empty when nothing is.

    `problem` is why it cannot be asked, or why its newest bundle does not serve and the last good one still does.
    """

    revision: str
    is_away: bool
    problem: str


class OpaEngine:
    """Evaluates entry points on an OPA server, a bounded number at once; for one event loop.

    `revision` is that of the bundle which gave the newest answer; `run` asks for it every `poll_s`.
    """

    def __init__(self, server: OpaServer, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self._url = server.url.rstrip("/")
        self._now_s = now_s
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(server.connections_max)
        self._asking = 0
        self._asked = 0
        self._newest = 0
        self._revision = ""
        self._failures = 0
        self._failing_since_s = now_s()
        self._try_at_s = 0.0
        self._away_because = "it has not been asked yet"
        self._bundle_problem = ""
        self._is_closed = False

    @property
    def revision(self) -> str:
        """What names the bundles that decide now; empty as long as none was heard of."""
        return self._revision

    @property
    def away_since_s(self) -> float | None:
        """Since when (monotonic) it cannot be asked; None while it can. One failure is not enough, a failed poll is."""
        return self._failing_since_s if self._is_away else None

    @property
    def state(self) -> OpaState:
        """What is known of the server now."""
        is_away = self._is_away
        return OpaState(self._revision, is_away, self._away_because if is_away else self._bundle_problem)

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        """What an entry point is worth for one input; raises EvaluationError or one of its kinds."""
        if self._failures >= self.server.failures_max:
            now_s = self._now_s()
            if now_s < self._try_at_s:
                raise EngineAway(f"OPA is not asked for a moment: {self._away_because}")
            self._try_at_s = now_s + self.server.reset_s
        said, revision = self._heard(await self._said(entry, input_json))
        if "result" not in said:
            raise Undefined("the entry point is undefined for this input")
        return Answer(said["result"], revision, _text(said.get("decision_id")))

    async def run(self, changed: Callable[[OpaState], None] | None = None) -> None:
        """Polls until it is cancelled; `changed` is told each state that differs from the one before."""
        known: OpaState | None = None
        polls = 0
        while True:
            await self.poll(with_status=polls % STATUS_EVERY == 0)
            state = self.state
            if state != known and changed is not None:
                changed(state)
            known = state
            polls += 1
            await asyncio.sleep(self.server.poll_s)

    async def poll(self, *, with_status: bool = True) -> None:
        """Ask once whether it is there, which bundles decide and, where it says so, whether a newer one was refused."""
        number = self._asked + 1
        try:
            self._heard(await self._said(POLLED, b"{}"))
        except EngineAway:
            self._failures = max(self._failures, self.server.failures_max)
        except EvaluationError as error:
            if not self._newest:
                self._away_because = str(error)
            elif self._newest < number:
                # Which bundle decides now, if any, is not known: what the last one decided is in force no more.
                self._failed(str(error))
                self._failures = max(self._failures, self.server.failures_max)
        else:
            if with_status:
                self._bundle_problem = await self._problem()

    async def close(self) -> None:
        """Close its connections; evaluations under way fail."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    @property
    def _is_away(self) -> bool:
        return not self._newest or self._failures >= self.server.failures_max

    async def _said(self, entry: str, input_json: bytes) -> "_Said":
        self._asked += 1
        number = self._asked
        try:
            status, body = await self._exchange("POST", _address(self._url, entry), b'{"input":%b}' % input_json)
        except EngineAway as away:
            self._failed(str(away))
            raise
        return _Said(number, status, body)

    def _heard(self, raw: "_Said") -> tuple[dict[str, Any], str]:
        """What a good answer says, and the revision behind it; raises EvaluationError where it names none."""
        said = _table(raw.status, raw.body)
        revision = _revision(said)
        self._failures = 0
        if raw.number > self._newest:
            # An answer that was asked for earlier may come later, and must not bring an older revision back.
            self._newest, self._revision = raw.number, revision
        return said, revision

    def _failed(self, why: str) -> None:
        now_s = self._now_s()
        if self._failures == 0 and self._newest:
            self._failing_since_s = now_s
        self._failures += 1
        self._away_because = why
        self._try_at_s = now_s + self.server.reset_s

    async def _problem(self) -> str:
        """Why a newer bundle does not serve, as OPA's status says; nothing where it says none or keeps no status."""
        try:
            status, body = await self._exchange("GET", f"{self._url}/v1/status", None)
            bundles = _table(status, body)["result"]["bundles"]
            return "; ".join(f"bundle {name}: {_said(of)}" for name, of in sorted(bundles.items()) if _said(of))
        except (EvaluationError, LookupError, TypeError, AttributeError):
            return ""

    async def _exchange(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        """The status and the body of an answer; EngineAway where none came, EvaluationError where it is too large."""
        if self._is_closed or self._asking >= self.server.waiting_max:
            raise EngineAway("the engine is closed" if self._is_closed else f"{self._asking} evaluations wait for OPA")
        self._asking += 1
        try:
            return await within(self.server.timeout_ms / 1000, self._answered(method, url, body))
        except TimeoutError as error:
            raise EngineAway(f"OPA did not answer within {self.server.timeout_ms} ms") from error
        except _FAULTS as error:
            raise EngineAway(f"OPA cannot be asked: {type(error).__name__}: {error}") from error
        finally:
            self._asking -= 1

    async def _answered(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        async with self._slots:
            try:
                return await self._asked_once(method, url, body)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A connection that was kept is found closed when OPA was restarted: once more on a new one.
                return await self._asked_once(method, url, body)

    async def _asked_once(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        async with self._connected().request(method, url, data=body, allow_redirects=False) as response:
            pieces = bytearray()
            async for piece in response.content.iter_any():
                pieces += piece
                if len(pieces) > ANSWER_BYTES_MAX:
                    response.close()
                    raise EvaluationError(f"OPA's answer is larger than {ANSWER_BYTES_MAX} bytes")
            if response.status in _AWAY_STATUSES:
                raise EngineAway(f"OPA answered {response.status}")
            return response.status, bytes(pieces)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self.server.token:
                headers["Authorization"] = f"Bearer {self.server.token}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                # The slots bound it: they are given in turn, and aiohttp's own waiting list is not.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


@lru_cache(maxsize=64)
def _address(server: str, entry: str) -> str:
    return f"{server}/v1/data/{quote(entry)}?{urlencode(_QUERY)}"


def _table(status: int, body: bytes) -> dict[str, Any]:
    """The JSON object of a good answer; raises EvaluationError with what OPA said instead."""
    try:
        said = orjson.loads(body)
    except ValueError as error:
        raise EvaluationError(f"OPA answered {status} with what is not JSON") from error
    if not isinstance(said, dict):
        raise EvaluationError(f"OPA answered {status} with what is not an object")
    if status != 200:
        raise EvaluationError(f"OPA answered {status}: {_said(said) or 'without a reason'}")
    return said


def _said(answer: object) -> str:
    """The code and message of an error, and the place in a policy where the first of its errors is."""
    if not isinstance(answer, dict) or not (answer.get("code") or answer.get("message")):
        return ""
    parts = [str(answer.get("code", "")), str(answer.get("message", ""))]
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    if isinstance(first, dict):
        place = first.get("location")
        at = f"{place.get('file')}:{place.get('row')}: " if isinstance(place, dict) else ""
        parts.append(f"{at}{first.get('message', '')}")
    elif first is not None:
        parts.append(str(first))
    return " ".join(": ".join(filter(None, parts)).split())[:_SAID_CHARACTERS_MAX]


def _revision(said: dict[str, Any]) -> str:
    """What names the bundles behind an answer: the revision of the only one, or each with its name.

    Raises EvaluationError where there is none or one has no revision: such a decision could not be told from another.
    """
    provenance = said.get("provenance")
    bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
    if not isinstance(bundles, dict) or not bundles:
        raise EvaluationError("OPA names no bundle: have it serve one that has a revision (bursar policy build)")
    named = {name: _text(of.get("revision")) if isinstance(of, dict) else "" for name, of in bundles.items()}
    for name, revision in named.items():
        if not revision:
            raise EvaluationError(f"OPA's bundle {name!r:.80} has no revision: build it with one (bursar policy build)")
    if len(named) == 1:
        return next(iter(named.values()))
    together = _text("+".join(f"{name}={revision}" for name, revision in sorted(named.items())))
    if not together:
        raise EvaluationError(f"OPA's {len(named)} bundles have names or revisions that are too long, or not plain")
    return together


def _text(value: object) -> str:
    """A text that may stand in a header and in a row, or nothing."""
    if not isinstance(value, str) or len(value) > REVISION_CHARACTERS_MAX:
        return ""
    return value if value.isascii() and value.isprintable() and " " not in value else ""
