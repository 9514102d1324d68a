"""The embedded engine: a child process that may crash, hang or be killed, and no input is ever let through for it."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest

from policy import embedded
from policy.bundle import load
from policy.child import Child
from policy.embedded import EmbeddedEngine
from policy.frames import FRAME_BYTES_MAX, question
from policy.port import ADMISSION, BundleError, EngineAway, EvaluationError, Undefined, Unfinished
from policy.session import BundleSession

FILE = "bursar/admission/admission.rego"
HEAD = "package bursar.admission\n\nimport rego.v1\n\n"
# Sixteen million pairings for the one input, nothing for all others.
SLOW = """decision := {"allow": count(pairs) > 0, "reasons": [], "obligations": {}}

pairs contains [a, b, c, d] if {
	input.slow == true
	some a in numbers.range(1, 64)
	some b in numbers.range(1, 64)
	some c in numbers.range(1, 64)
	some d in numbers.range(1, 64)
}
"""
ACME = b'{"principal": {"org": "acme"}}'
EVIL = b'{"principal": {"org": "evil"}}'


@pytest.fixture
async def open_engine() -> AsyncIterator[Callable]:
    opened: list[EmbeddedEngine] = []

    async def begin(root: Path, timeout_ms: int = 2_000) -> EmbeddedEngine:
        opened.append(await EmbeddedEngine.open(root, timeout_ms))
        return opened[-1]

    yield begin
    for engine in opened:
        await engine.close()


def pid_of(engine: EmbeddedEngine) -> int:
    return engine._child.process.pid


async def allows(engine: EmbeddedEngine, input_json: bytes) -> object:
    return (await engine.evaluate(ADMISSION, input_json)).value["allow"]  # type: ignore[index]


async def test_it_answers_as_the_bundle_does_in_process(write_bundle, open_engine) -> None:
    root = write_bundle()
    engine, session = await open_engine(root), BundleSession(load(root))
    answer = await engine.evaluate(ADMISSION, ACME)
    assert answer.value == session.evaluate(ADMISSION, orjson.loads(ACME))
    assert answer.revision == engine.revision == session.revision == load(root).revision
    assert engine.entries == (ADMISSION,)


async def test_many_asked_at_once_are_answered_each_its_own(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle())
    asked = [ACME, EVIL, b"{}"] * 200
    answers = await asyncio.gather(*(allows(engine, text) for text in asked))
    assert answers == [text is ACME for text in asked]


@pytest.mark.parametrize(
    ("text", "kind"),
    [(b"{", EvaluationError), (b'{"principal": {"org": 9300000000000000000}}', EvaluationError)],
)
async def test_an_input_it_cannot_take_fails_and_the_engine_goes_on(write_bundle, open_engine, text, kind) -> None:
    engine = await open_engine(write_bundle())
    with pytest.raises(kind):
        await engine.evaluate(ADMISSION, text)
    assert await allows(engine, ACME) is True


async def test_an_entry_point_without_a_rule_is_undefined(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle())
    with pytest.raises(Undefined):
        await engine.evaluate("bursar/tools/decision", b"{}")


async def test_an_evaluation_without_end_is_ended_and_those_behind_it_are_answered(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle({FILE: HEAD + SLOW}), timeout_ms=300)
    first = pid_of(engine)
    slow = asyncio.create_task(engine.evaluate(ADMISSION, b'{"slow": true}'))
    behind = [asyncio.create_task(allows(engine, b'{"n": %d}' % number)) for number in range(20)]
    with pytest.raises(EvaluationError, match="did not end within 300 ms"):
        await slow
    assert await asyncio.gather(*behind) == [False] * 20
    assert pid_of(engine) != first
    assert engine.counts.restarts == 1


async def test_what_ended_the_engine_once_is_refused_at_once(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle({FILE: HEAD + SLOW}), timeout_ms=200)
    for _ in range(3):
        with pytest.raises(Unfinished, match="did not end within"):
            await engine.evaluate(ADMISSION, b'{"slow": true}')
    assert await allows(engine, b"{}") is False
    assert engine.counts.restarts == 1


async def test_the_event_loop_goes_on_while_an_evaluation_is_slow(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle({FILE: HEAD + SLOW}), timeout_ms=300)
    slow = asyncio.create_task(engine.evaluate(ADMISSION, b'{"slow": true}'))
    turns = 0
    while not slow.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 20
    with pytest.raises(EvaluationError):
        slow.result()


async def test_a_killed_engine_comes_back_and_nothing_that_waits_is_lost(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle())
    os.kill(pid_of(engine), signal.SIGKILL)
    assert await asyncio.gather(*(allows(engine, b'{"n": %d}' % n) for n in range(10))) == [False] * 10
    assert await allows(engine, ACME) is True


async def test_what_ends_the_engine_twice_is_refused_and_the_others_are_answered(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle({FILE: HEAD + SLOW}), timeout_ms=10_000)
    slow = asyncio.create_task(engine.evaluate(ADMISSION, b'{"slow": true}'))
    behind = asyncio.create_task(allows(engine, b"{}"))
    for killed in range(2):
        await asyncio.sleep(0.1)
        os.kill(pid_of(engine), signal.SIGKILL)
        while engine.counts.restarts == killed:  # noqa: ASYNC110 it counts and tells nobody
            await asyncio.sleep(0.01)
    with pytest.raises(Unfinished, match="ended with -9 on this input, twice"):
        await slow
    assert await behind is False


async def test_a_restarted_engine_has_the_bundle_it_was_opened_with(write_bundle, open_engine) -> None:
    root = write_bundle()
    engine = await open_engine(root)
    revision = engine.revision
    write_bundle({FILE: "package broken\n{"})
    os.kill(pid_of(engine), signal.SIGKILL)
    assert await allows(engine, ACME) is True
    assert engine.revision == revision


async def test_what_waits_too_long_is_told_that_the_engine_is_away(
    write_bundle, open_engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WAIT_S_MAX", 0.1)
    engine = await open_engine(write_bundle({FILE: HEAD + SLOW}), timeout_ms=1_000)
    slow = asyncio.create_task(engine.evaluate(ADMISSION, b'{"slow": true}'))
    await asyncio.sleep(0)
    with pytest.raises(EngineAway, match="did not come to"):
        await engine.evaluate(ADMISSION, b"{}")
    with pytest.raises(EngineAway):
        await slow


async def test_more_than_may_wait_are_refused(write_bundle, open_engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WAITING_MAX", 3)
    engine = await open_engine(write_bundle())
    answers = await asyncio.gather(*(allows(engine, ACME) for _ in range(5)), return_exceptions=True)
    assert answers[:3] == [True] * 3
    assert [type(answer) for answer in answers[3:]] == [EngineAway] * 2


async def test_closing_fails_what_is_under_way_and_ends_the_process(write_bundle) -> None:
    engine = await EmbeddedEngine.open(write_bundle({FILE: HEAD + SLOW}), 10_000)
    slow = asyncio.create_task(engine.evaluate(ADMISSION, b'{"slow": true}'))
    await asyncio.sleep(0.05)
    await engine.close()
    with pytest.raises(EngineAway, match="closed"):
        await slow
    assert engine._child.process.returncode is not None
    with pytest.raises(EngineAway, match="closed"):
        await engine.evaluate(ADMISSION, b"{}")


async def test_closing_ends_a_process_that_is_just_being_started_in_place_of_another(write_bundle, monkeypatch) -> None:
    engine = await EmbeddedEngine.open(write_bundle())
    started: list[Child] = []
    is_starting, start = threading.Event(), Child.start

    def noted(*given, **named) -> Child:
        is_starting.set()
        started.append(start(*given, **named))
        return started[-1]

    monkeypatch.setattr(Child, "start", noted)
    os.kill(pid_of(engine), signal.SIGKILL)
    assert await asyncio.to_thread(is_starting.wait, 30)
    await engine.close()
    assert [child.process.returncode is None for child in started] == [False]


async def test_a_long_input_that_was_refused_is_not_kept(write_bundle, open_engine) -> None:
    engine = await open_engine(write_bundle(), timeout_ms=200)
    os.kill(pid_of(engine), signal.SIGSTOP)
    long = b'{"n": "%b"}' % (b"x" * 100_000)
    for _ in range(2):
        with pytest.raises(EvaluationError, match="did not end within 200 ms"):
            await engine.evaluate(ADMISSION, long)
    assert [len(digest) for _, digest in engine._refused] == [32]


async def test_a_bundle_that_does_not_compile_is_refused_with_its_place(write_bundle) -> None:
    with pytest.raises(BundleError) as caught:
        await EmbeddedEngine.open(write_bundle({FILE: HEAD + "decision := {\n"}))
    assert (caught.value.file, caught.value.line) == (FILE, 5)


def test_the_process_ends_with_its_gateway_even_in_an_endless_evaluation(write_bundle) -> None:
    child = Child.of(write_bundle({FILE: HEAD + SLOW}))
    child.sock.sendall(b"\x00\x00\x00\x28" + b"bursar/admission/decision\n" + b'{"slow":true}\n')
    time.sleep(0.1)
    began_s = time.monotonic()
    child.close()
    assert child.process.returncode == 0
    assert time.monotonic() - began_s < 1.0


def test_outcomes_come_in_order_however_many_are_sent_ahead(write_bundle) -> None:
    inputs = [b'{"principal": {"org": "%b"}}' % (b"acme" if n % 3 else b"o" * (n % 500)) for n in range(2_000)]
    with Child.of(write_bundle()) as child:
        outcomes = list(child.outcomes(ADMISSION, inputs))
    assert [outcome.value["allow"] for outcome in outcomes] == [b"acme" in text for text in inputs]


def test_a_child_that_is_killed_says_so(write_bundle) -> None:
    with Child.of(write_bundle()) as child:
        child.process.kill()
        with pytest.raises(EngineAway, match="ended with -9"):
            child.evaluate(ADMISSION, b"{}")


def test_the_child_sees_no_secrets(monkeypatch: pytest.MonkeyPatch, write_bundle) -> None:
    monkeypatch.setenv("BURSAR_SECRET_FOR_TEST", "s3cret")
    with Child.of(write_bundle()) as child:
        environment = Path(f"/proc/{child.process.pid}/environ").read_bytes()
    assert b"s3cret" not in environment


async def test_an_input_that_cannot_be_sent_takes_nobodys_answer(write_bundle, open_engine, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "INPUT_BYTES_MAX", 1_000)
    engine = await open_engine(write_bundle())
    with pytest.raises(EvaluationError, match="larger than 1000"):
        await engine.evaluate(ADMISSION, b'{"n": "%b"}' % (b"x" * 1_000))
    answers = await asyncio.gather(*(allows(engine, text) for text in (EVIL, ACME, EVIL, ACME)))
    assert answers == [False, True, False, True]


def test_the_longest_input_fits_a_frame() -> None:
    assert len(question("bursar/admission/decision", bytes(embedded.INPUT_BYTES_MAX))) < FRAME_BYTES_MAX


async def test_it_comes_back_once_there_are_threads_and_memory_again(write_bundle, open_engine, monkeypatch) -> None:
    engine = await open_engine(write_bundle())
    faults: list[Exception] = [RuntimeError("can't start new thread"), MemoryError(), BlockingIOError(11, "fork")]
    start = Child.start

    def short_of_everything(*given, **named) -> Child:
        if faults:
            raise faults.pop()
        return start(*given, **named)

    monkeypatch.setattr(Child, "start", short_of_everything)
    os.kill(pid_of(engine), signal.SIGKILL)
    assert await allows(engine, ACME) is True
    assert (faults, engine.counts.restarts) == ([], 1)


async def test_what_was_refused_is_tried_again_after_a_while(write_bundle, open_engine, monkeypatch) -> None:
    monkeypatch.setattr(embedded, "REFUSED_S", 0.3)
    engine = await open_engine(write_bundle(), timeout_ms=200)
    said: list[str] = []
    engine.on_loss = said.append
    os.kill(pid_of(engine), signal.SIGSTOP)
    with pytest.raises(EvaluationError, match="did not end within 200 ms"):
        await engine.evaluate(ADMISSION, ACME)
    with pytest.raises(EvaluationError, match="did not end within 200 ms"):
        await engine.evaluate(ADMISSION, ACME)
    await asyncio.sleep(0.4)
    assert await allows(engine, ACME) is True
    assert (said, engine.counts.restarts) == (["the evaluation did not end within 200 ms"], 1)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_its_group_does_not_end_it(write_bundle, open_engine, number: int) -> None:
    engine = await open_engine(write_bundle())
    os.kill(pid_of(engine), number)
    assert await allows(engine, ACME) is True
    assert await allows(engine, EVIL) is False
    assert engine.counts.restarts == 0
