"""Nothing that an OPA, its bundle or the way to it does wrong ever admits a request: each kind of fault denies.

`TOLD` are faults of a server in an OPA's place, `REAL` those of a real OPA and of the network before it. Each is
injected into a decider whose OPA has just admitted, so that an allow would be seen.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from policy.decider import Decider
from policy.opa import ANSWER_BYTES_MAX, OpaEngine, OpaServer
from policy.opa_build import build
from policy.port import PolicyInput, PolicyUnavailable
from tests import opa_server
from tests.fake_opa import ALLOWED, FakeOpa, Reply, answers, said, sends
from tests.fault_proxy import FaultProxy

KINDS_MIN = 10
TIMEOUT_MS = 400
ADMITTED = PolicyInput("acme", "search", "web", (), "internal", "chat", "sim-small")
# Not asked before, so that nothing is cached of it.
GIVEN = ADMITTED._replace(app="other")
RULES = """package bursar.admission

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {}} if {
	input.principal.org == "acme"
}
"""


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A right answer, a byte at a time, which is not done in time."""
    body = orjson.dumps(said())
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(TIMEOUT_MS / 1000 / 50)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer in chunks that goes on past every bound."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b" " * (1 << 16)
    for _ in range(2 * ANSWER_BYTES_MAX // len(chunk)):
        writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await writer.drain()


def decision(**fields: Any) -> Reply:
    """An answer whose decision has these fields instead; one of None is left out."""
    changed = {**ALLOWED, **fields}
    return answers(said(result={name: value for name, value in changed.items() if value is not None}))


TOLD: dict[str, Reply] = {
    "says nothing": silence,
    "hangs up": sends(b""),
    "answers 500": answers({"code": "internal_error", "message": "out of memory"}, 500),
    "answers 500 with an allow": answers(said(), 500),
    "answers 201 with an allow": answers(said(), 201),
    "answers 502": answers(said(), 502),
    "answers 401": answers({"code": "unauthorized"}, 401),
    "leaves the result out": answers(said(result=None)),
    "has null for a result": answers({**said(), "result": None}),
    "has true for a result": answers(said(result=True)),
    "has a text for a result": answers(said(result="allow")),
    "has a list for a result": answers(said(result=[ALLOWED])),
    "has allow as a text": decision(allow="true"),
    "has allow as a number": decision(allow=1),
    "has no allow": decision(allow=None),
    "has no reasons": decision(reasons=None),
    "has a field too many": decision(default_allow=True),
    "has an obligation that nobody knows": decision(obligations={"max_ouput_tokens": 5}),
    "has an obligation of another type": decision(obligations={"max_output_tokens": "5"}),
    "ends its JSON early": answers(orjson.dumps(said())[:-20]),
    "cuts the body": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + orjson.dumps(said())),
    "answers a page": answers(b"<html>It works!</html>", 200, "Content-Type: text/html"),
    "answers nothing": answers(b""),
    "answers in gzip that is none": answers(orjson.dumps(said())[1:], 200, "Content-Encoding: gzip"),
    "answers too much": answers(orjson.dumps(said()) + b" " * ANSWER_BYTES_MAX),
    "never stops": flood,
    "drips": drip,
    "speaks no HTTP": sends(b"+PONG\r\n"),
    "names no bundle": answers(said(provenance=None)),
    "names a bundle without a revision": answers(said(provenance={"bundles": {"bursar": {}}})),
}


@asynccontextmanager
async def decider_on(url: str) -> AsyncIterator[Decider]:
    """A decider whose OPA admits."""
    engine = OpaEngine(OpaServer(url, timeout_ms=TIMEOUT_MS))
    decider = Decider(engine)
    try:
        assert (await decider.decide(ADMITTED)).allow
        yield decider
    finally:
        await engine.close()


async def assert_denied(decider: Decider) -> None:
    """The fault as it comes, again behind what it left of the connections, and many at once."""
    for _ in range(2):
        with pytest.raises(PolicyUnavailable):
            await decider.decide(GIVEN)
    many = (decider.decide(GIVEN._replace(app=f"other{number}")) for number in range(20))
    results = await asyncio.gather(*many, return_exceptions=True)
    assert [result for result in results if not isinstance(result, PolicyUnavailable)] == []


@pytest.mark.parametrize("kind", TOLD)
async def test_what_an_opa_says_wrongly_denies(kind: str) -> None:
    async with FakeOpa() as fake, decider_on(fake.url) as decider:
        asked = len(fake.bodies)
        fake.reply = TOLD[kind]
        await assert_denied(decider)
        assert len(fake.bodies) > asked
        assert decider.cached_decisions == 1  # the one before the fault


async def test_a_redirect_is_not_followed_to_one_that_allows() -> None:
    async with FakeOpa() as fake, FakeOpa() as other, decider_on(fake.url) as decider:
        for status in (301, 302, 307, 308):
            fake.reply = answers(b"", status, f"Location: {other.url}/v1/data/bursar/admission/decision")
            with pytest.raises(PolicyUnavailable, match=f"answered {status}"):
                await decider.decide(GIVEN)
        assert other.connections == 0


async def test_an_answer_that_comes_too_late_answers_nothing_else() -> None:
    """The allow of one input, after its time is over, is not read as that of the next."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(TIMEOUT_MS / 1000 + 0.1)
        await answers(said())(reader, writer)

    async with FakeOpa() as fake, decider_on(fake.url) as decider:
        fake.reply = late
        with pytest.raises(PolicyUnavailable, match="did not answer within"):
            await decider.decide(GIVEN)
        fake.reply = answers(said(result={"allow": False, "reasons": [], "obligations": {}}))
        await asyncio.sleep(0.2)
        for number in range(5):
            assert not (await decider.decide(GIVEN._replace(app=f"next{number}"))).allow


class Real:
    """A real OPA behind a proxy, with the folder that its bundle is built of and the file that it watches."""

    def __init__(self, folder: Path) -> None:
        self.rules = folder / "rego" / "bursar" / "admission" / "admission.rego"
        self.rules.parent.mkdir(parents=True)
        self.file = folder / "bundle.tar.gz"
        self.ship(RULES)
        self.opa = opa_server.OpaServer(paths=[self.file], are_bundles=True, options=["--watch"])

    def ship(self, rules: str) -> str:
        """Serve these rules from now on."""
        self.rules.write_text(rules, encoding="utf-8")
        return build(self.rules.parents[2], self.file, str(opa_server.binary())).revision


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    made = Real(tmp_path)
    with made.opa:
        yield made


Fault = Callable[[Real, FaultProxy], Awaitable[object]]

SLOW = RULES + "\nslow if count({[x, y] | some x in numbers.range(1, 3000); some y in numbers.range(1, 3000)}) > 1\n"
SHIPS: dict[str, str] = {
    "rules that fail": RULES.replace("input.principal.org ==", 'to_number("x") ==').replace('"acme"', "1"),
    "rules that contradict themselves": RULES.replace("true", "false") + RULES.partition("import rego.v1\n")[2],
    "rules that decide nothing": "package bursar.admission\n\ndecision := x if {\n\tx := input.nothing\n}\n",
    "rules that take too long": SLOW.replace("input.principal.org", "slow\n\tinput.principal.org"),
    "rules of another form": RULES.replace('"allow": true', '"allow": "true"'),
}


def ships(rules: str) -> Fault:
    """Rules that OPA takes and that do not decide."""

    async def fault(real: Real, proxy: FaultProxy) -> None:
        revision = await asyncio.to_thread(real.ship, rules)
        await asyncio.to_thread(real.opa.until, lambda: _revision(real) == revision, "take the rules")

    return fault


def _revision(real: Real) -> str:
    """The revision that the real OPA names, whatever else it says."""
    status, answer = real.opa.get("/v1/data/nothing?provenance=true")
    return str(answer["provenance"]["bundles"][str(real.file)]["revision"]) if status == 200 else ""


async def kill(real: Real, proxy: FaultProxy) -> None:
    real.opa.kill()


async def stop(real: Real, proxy: FaultProxy) -> None:
    await asyncio.to_thread(real.opa.stop)


async def pause(real: Real, proxy: FaultProxy) -> None:
    real.opa.pause()


def network(**faults: Any) -> Fault:
    """What the network between Bursar and OPA does."""

    async def fault(real: Real, proxy: FaultProxy) -> None:
        await proxy.change(**faults)

    return fault


REAL: dict[str, Fault] = {
    "is killed": kill,
    "is stopped": stop,
    "is not run any more": pause,
    "is cut off": network(freeze=True),
    "resets each connection": network(reset_at_connect=True, reset_on={"command": "*", "times": 1_000}),
    "is reset in its answer": network(to_client={"reset_after_bytes": 40}),
    "loses its answers": network(lose_reply={"command": "*", "times": 1_000}),
    "comes byte by byte": network(to_client={"byte_s": 0.01}),
    "is far away": network(to_client={"delay_s": 2.0}),
    **{name: ships(rules) for name, rules in SHIPS.items()},
}


@pytest.mark.parametrize("kind", REAL)
async def test_what_happens_to_a_real_opa_denies(real: Real, kind: str) -> None:
    async with (
        FaultProxy("127.0.0.1", real.opa.port, is_resp=False) as proxy,
        decider_on(f"http://127.0.0.1:{proxy.port}") as decider,
    ):
        await REAL[kind](real, proxy)
        await assert_denied(decider)


def test_there_are_more_kinds_of_faults_than_the_ten_that_were_asked_for() -> None:
    assert len(TOLD) >= KINDS_MIN
    assert len(REAL) >= KINDS_MIN
