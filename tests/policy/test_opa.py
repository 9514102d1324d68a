"""The OPA engine against a server that answers as it is told: a value or an error, never anything in between."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from policy.opa import ANSWER_BYTES_MAX, OpaEngine, OpaServer, OpaState
from policy.port import ADMISSION, TOOLS, EngineAway, EvaluationError, Undefined
from tests.fake_opa import ALLOWED, HOST, REVISION, FakeOpa, Reply, answers, said, sends

HANG_S = 30.0
TIMEOUT_MS = 2_000


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.at_s = 1_000.0

    def __call__(self) -> float:
        return self.at_s


@asynccontextmanager
async def engine_on(
    fake: FakeOpa, now_s: Callable[[], float] | None = None, **settings: Any
) -> AsyncIterator[OpaEngine]:
    server = OpaServer(fake.url, **{"timeout_ms": TIMEOUT_MS, **settings})
    engine = OpaEngine(server, now_s=now_s) if now_s else OpaEngine(server)
    try:
        yield engine
    finally:
        await engine.close()


async def refused(engine: OpaEngine, entry: str = ADMISSION) -> EvaluationError:
    """How an evaluation failed."""
    with pytest.raises(EvaluationError) as caught:
        await engine.evaluate(entry, b"{}")
    return caught.value


def revisions(**named: str) -> dict[str, Any]:
    return {"bundles": {name: {"revision": revision} for name, revision in named.items()}}


async def test_an_answer_carries_the_value_the_bundles_revision_and_opas_own_id_of_the_decision() -> None:
    async with FakeOpa(answers(said(decision_id="d-1"))) as fake, engine_on(fake) as engine:
        answer = await engine.evaluate(TOOLS, b'{"phase":"called"}')
        assert (answer.value, answer.revision, answer.engine_decision_id) == (ALLOWED, REVISION, "d-1")
        assert fake.bodies == [{"input": {"phase": "called"}}]
        request, *headers = fake.heads[0].lower().split("\r\n")
        assert request == "post /v1/data/bursar/tools/decision?provenance=true&strict-builtin-errors=true http/1.1"
        assert "accept-encoding: identity" in headers


async def test_a_token_goes_with_each_request() -> None:
    async with FakeOpa() as fake, engine_on(fake, token="t-1") as engine:
        await engine.evaluate(ADMISSION, b"{}")
        assert "authorization: bearer t-1" in fake.heads[0].lower()


async def test_connections_are_used_again() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        for _ in range(20):
            await engine.evaluate(ADMISSION, b"{}")
        assert fake.connections == 1


async def test_no_more_than_so_many_are_asked_at_once_and_the_others_wait_their_turn() -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        await answers(said())(reader, writer)

    async with FakeOpa(slowly) as fake, engine_on(fake, connections_max=3, timeout_ms=30_000) as engine:
        done = await asyncio.gather(*(engine.evaluate(ADMISSION, b"{}") for _ in range(30)))
        assert len(done) == 30
        assert (fake.connections, fake.serving_most) == (3, 3)


async def test_more_than_may_wait_are_turned_away_at_once() -> None:
    async with FakeOpa(hangs) as fake, engine_on(fake, waiting_max=2, timeout_ms=500) as engine:
        results = await asyncio.gather(*(engine.evaluate(ADMISSION, b"{}") for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in results] == [EngineAway] * 5
        assert sum("evaluations wait" in str(each) for each in results) == 3


async def test_an_entry_point_without_a_value_is_undefined() -> None:
    async with FakeOpa(answers(said(result=None))) as fake, engine_on(fake) as engine:
        assert type(await refused(engine)) is Undefined
        assert engine.revision == REVISION


async def test_a_value_of_any_form_is_given_as_it_is() -> None:
    """Whether it is a decision is for the one who asked to say."""
    for value in (0, "yes", [], {"allow": "true"}, False):
        async with FakeOpa(answers(said(result=value))) as fake, engine_on(fake) as engine:
            assert (await engine.evaluate(ADMISSION, b"{}")).value == value


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def conflict() -> dict[str, Any]:
    place = {"file": "/bursar/admission/admission.rego", "row": 17, "col": 1}
    error = {"code": "eval_conflict_error", "message": "rule gives:\n  1\n  2", "location": place}
    return {"code": "internal_error", "message": "error(s) occurred", "errors": [error]}


ERRORS: dict[str, tuple[Reply, str]] = {
    "an error of the policy": (
        answers(conflict(), 500),
        "OPA answered 500: internal_error: error(s) occurred: /bursar/admission/admission.rego:17: rule gives: 1 2",
    ),
    "a bad request": (answers({"code": "invalid_parameter", "message": "no"}, 400), "OPA answered 400: invalid"),
    "no permission": (answers({"code": "unauthorized", "message": "bad token"}, 401), "OPA answered 401: unauth"),
    "errors that are texts": (answers({"code": "x", "errors": ["y"]}, 500), "OPA answered 500: x: y"),
    "a status without a reason": (answers({}, 404), "OPA answered 404: without a reason"),
    "another place": (answers(b"{}", 307, "Location: http://127.0.0.1:1/"), "OPA answered 307"),
    "half a JSON": (answers(b'{"result": {"allow": tr'), "is not JSON"),
    "a page": (answers(b"<html>welcome</html>", 200, "Content-Type: text/html"), "is not JSON"),
    "nothing": (answers(b""), "is not JSON"),
    "a list": (answers([said()]), "is not an object"),
    "no provenance": (answers(said(provenance=None)), "names no bundle"),
    "a provenance that is a text": (answers(said(provenance="x")), "names no bundle"),
    "no bundle": (answers(said(provenance={"bundles": {}})), "names no bundle"),
    "a bundle without a revision": (answers(said(provenance=revisions(bursar=""))), "'bursar' has no revision"),
    "a bundle that is a text": (answers(said(provenance={"bundles": {"b": "x"}})), "'b' has no revision"),
    "a revision that no header may hold": (answers(said(provenance=revisions(b="a\r\nb"))), "has no revision"),
    "too many revisions": (
        answers(said(provenance=revisions(**{f"b{n}": "x" * 200 for n in range(3)}))),
        "3 bundles have names or revisions that are too long",
    ),
    "an answer that does not end": (answers(b" " * (ANSWER_BYTES_MAX + 1)), "larger than 4194304 bytes"),
    "squeezed bytes": (answers(b"\x1f\x8b\x08\x00", 200, "Content-Encoding: gzip"), "is not JSON"),
}

AWAY: dict[str, tuple[Reply, str]] = {
    "a silence": (hangs, "did not answer within 300 ms"),
    "a reset": (sends(b""), "ServerDisconnected"),
    "no HTTP": (sends(b"SSH-2.0-OpenSSH_9.9\r\n"), "cannot be asked"),
    "half a head": (sends(b"HTTP/1.1 200 OK\r\nContent-"), "cannot be asked"),
    "a body that is cut": (sends(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"result":'), "cannot be asked"),
    "chunks that are none": (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "cannot be asked"),
    "a proxy without an OPA": (answers({}, 502), "OPA answered 502"),
    "an OPA that is shutting down": (answers({}, 503), "OPA answered 503"),
}


@pytest.mark.parametrize("kind", ERRORS)
async def test_what_is_no_answer_is_an_error(kind: str) -> None:
    reply, why = ERRORS[kind]
    async with FakeOpa(reply) as fake, engine_on(fake) as engine:
        error = await refused(engine)
        assert type(error) is EvaluationError
        assert why in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", AWAY)
async def test_one_that_does_not_answer_is_away(kind: str) -> None:
    reply, why = AWAY[kind]
    async with FakeOpa(reply) as fake, engine_on(fake, timeout_ms=300) as engine:
        error = await refused(engine)
        assert type(error) is EngineAway
        assert why in str(error)


async def test_nobody_at_the_address_is_away() -> None:
    engine = OpaEngine(OpaServer(f"http://{HOST}:1"))
    assert type(await refused(engine)) is EngineAway
    await engine.close()


async def test_several_bundles_have_one_revision_whatever_their_order() -> None:
    for provenance in (revisions(b="2", a="1"), revisions(a="1", b="2")):
        async with FakeOpa(answers(said(provenance=provenance))) as fake, engine_on(fake) as engine:
            assert (await engine.evaluate(ADMISSION, b"{}")).revision == "a=1+b=2"


async def test_the_newest_answer_says_what_revision_decides() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        assert (engine.revision, engine.away_since_s is None) == ("", False)
        await engine.poll()
        assert (engine.revision, engine.away_since_s) == (REVISION, None)
        fake.reply = answers(said(provenance=revisions(bursar="sha256:b")))
        await engine.evaluate(ADMISSION, b"{}")
        assert engine.revision == "sha256:b"


async def test_a_late_answer_does_not_bring_an_older_revision_back() -> None:
    has_come, goes_on = asyncio.Event(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_come.set()
        await goes_on.wait()
        await answers(said(provenance=revisions(bursar="sha256:old")))(reader, writer)

    async with FakeOpa(late) as fake, engine_on(fake) as engine:
        first = asyncio.create_task(engine.evaluate(ADMISSION, b"{}"))
        await has_come.wait()
        fake.reply = answers(said(provenance=revisions(bursar="sha256:new")))
        await engine.evaluate(ADMISSION, b"{}")
        goes_on.set()
        assert (await first).revision == "sha256:old"
        assert engine.revision == "sha256:new"


async def test_a_connection_that_was_closed_meanwhile_costs_no_evaluation() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        await engine.evaluate(ADMISSION, b"{}")
        replies = iter((sends(b""), answers(said())))

        async def first_closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await next(replies)(reader, writer)

        fake.reply = first_closes
        assert (await engine.evaluate(ADMISSION, b"{}")).value == ALLOWED
        assert fake.connections == 2


async def test_after_so_many_failures_in_a_row_it_is_asked_once_in_a_while_until_it_answers() -> None:
    clock = Clock()
    async with FakeOpa() as fake, engine_on(fake, clock, failures_max=3, reset_s=5.0) as engine:
        await engine.evaluate(ADMISSION, b"{}")
        fake.reply = answers({}, 503)
        for _ in range(2):
            await refused(engine)
        assert engine.away_since_s is None
        clock.at_s += 1
        await refused(engine)
        assert engine.away_since_s == 1_000.0  # since the first of the three
        asked = len(fake.bodies)
        for _ in range(10):
            assert "not asked for a moment: OPA answered 503" in str(await refused(engine))
        assert len(fake.bodies) == asked
        clock.at_s += 5
        results = await asyncio.gather(*(engine.evaluate(ADMISSION, b"{}") for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in results] == [EngineAway] * 5
        assert len(fake.bodies) == asked + 1
        fake.reply = answers(said())
        clock.at_s += 5
        await engine.evaluate(ADMISSION, b"{}")
        assert engine.away_since_s is None
        await engine.evaluate(ADMISSION, b"{}")


async def test_errors_of_policies_do_not_stop_it_from_being_asked() -> None:
    async with FakeOpa(answers(conflict(), 500)) as fake, engine_on(fake, failures_max=2) as engine:
        for _ in range(10):
            assert type(await refused(engine)) is EvaluationError
        assert len(fake.bodies) == 10


async def test_a_poll_finds_out_that_it_is_away_and_that_it_is_back() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        await engine.poll()
        fake.reply = answers({}, 502)
        await engine.poll()
        assert engine.away_since_s is not None
        assert engine.state == OpaState(REVISION, is_away=True, problem="OPA answered 502")
        fake.reply = answers(said())
        await engine.poll()
        assert engine.state == OpaState(REVISION, is_away=False, problem="")


async def test_an_opa_without_a_bundle_counts_as_away_until_it_has_one() -> None:
    async with FakeOpa(answers(said(provenance={}))) as fake, engine_on(fake) as engine:
        await engine.poll()
        assert engine.state.is_away
        assert "names no bundle" in engine.state.problem
        fake.reply = answers(said(result=None))
        await engine.poll()
        assert engine.state == OpaState(REVISION, is_away=False, problem="")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answers({"code": "unauthorized", "message": "request rejected"}, 401), "OPA answered 401: unauthorized"),
        (answers(said(provenance=None, result=None)), "OPA names no bundle"),
        (answers(b"<html>upstream gone</html>", 500), "OPA answered 500 with what is not JSON"),
        (answers(conflict(), 500), "OPA answered 500: internal_error"),
        (answers(b" " * (ANSWER_BYTES_MAX + 1)), "larger than 4194304 bytes"),
    ],
    ids=["no permission", "no bundle", "a proxy's error", "an error", "too much"],
)
async def test_one_that_says_no_longer_which_bundle_decides_counts_as_away(reply: Reply, why: str) -> None:
    clock = Clock()
    async with FakeOpa() as fake, engine_on(fake, clock) as engine:
        await engine.poll()
        assert engine.away_since_s is None
        fake.reply = reply
        await engine.poll()
        assert engine.away_since_s is not None
        assert why in engine.state.problem
        clock.at_s += engine.server.reset_s
        assert why in str(await refused(engine))
        assert engine.away_since_s is not None
        fake.reply = answers(said())
        await engine.poll()
        assert engine.state == OpaState(REVISION, is_away=False, problem="")


async def test_a_poll_asks_no_rule_so_that_none_that_fails_counts_as_away() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        await engine.poll(with_status=False)
        assert [head.split("?")[0] for head in fake.heads] == ["POST /v1/data/bursar/none"]
        fake.reply = answers(conflict(), 500)
        await refused(engine)
        assert engine.away_since_s is None


def with_status(bundles: Any) -> Reply:
    """Decides as usual, and says this of its bundles."""
    decides, tells = answers(said()), answers({"result": {"bundles": bundles}})
    asked: list[bool] = []

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(True)
        await (decides if len(asked) % 2 else tells)(reader, writer)

    return reply


async def test_a_newer_bundle_that_does_not_serve_is_told_with_file_and_line() -> None:
    error = {"code": "rego_unsafe_var_error", "message": "var x is unsafe", "location": {"file": "a.rego", "row": 2}}
    refused_bundle = {"code": "bundle_error", "message": "1 error occurred", "errors": [error]}
    async with FakeOpa(with_status({"bursar": refused_bundle, "b": {"name": "b"}})) as fake, engine_on(fake) as engine:
        await engine.poll()
        assert engine.state.problem == "bundle bursar: bundle_error: 1 error occurred: a.rego:2: var x is unsafe"
        assert not engine.state.is_away


@pytest.mark.parametrize("bundles", [None, [], "x", {"bursar": None}, {"bursar": {"code": ""}}], ids=json.dumps)
async def test_a_status_of_another_form_is_none(bundles: Any) -> None:
    async with FakeOpa(with_status(bundles)) as fake, engine_on(fake) as engine:
        await engine.poll()
        assert engine.state == OpaState(REVISION, is_away=False, problem="")


async def test_while_it_runs_each_change_of_its_state_is_told_once() -> None:
    told: asyncio.Queue[OpaState] = asyncio.Queue()
    async with FakeOpa() as fake, engine_on(fake, poll_s=0.001) as engine:
        running = asyncio.create_task(engine.run(told.put_nowait))
        async with asyncio.timeout(HANG_S):
            assert await told.get() == OpaState(REVISION, is_away=False, problem="")
            fake.reply = answers(said(provenance=revisions(bursar="sha256:b")))
            assert await told.get() == OpaState("sha256:b", is_away=False, problem="")
            fake.reply = answers({}, 502)
            assert await told.get() == OpaState("sha256:b", is_away=True, problem="OPA answered 502")
            for _ in range(20):
                await engine.poll()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert told.empty()


async def test_a_closed_engine_is_away() -> None:
    async with FakeOpa() as fake, engine_on(fake) as engine:
        await engine.evaluate(ADMISSION, b"{}")
        await engine.close()
        assert "closed" in str(await refused(engine))
