"""The process of checks answers, is ended where it hangs, is replaced where it crashed, and takes only so much."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from policy.checks.pii_entities import DEFAULT, SCORE_MIN
from policy.checks.port import CheckFailed, SchemaRefused
from policy.checks.process import CheckProcess, CheckProcesses

AWS = "AKIA" + "QYLPMN5HHHFPZAM2"
# Python's `re` needs some 2^40 steps for it.
FOREVER = {"texts": [["here", '"' + "a" * 40 + '!"']], "schema": {"pattern": "^(a+)+$"}}
HARMLESS = {"texts": [["here", 1, "hello"]]}
LEAK = {"texts": [["here", 3, f"hello\n{AWS}"]]}

CALLS = {"calls": [{"where": "call", "kind": "function", "name": "rm", "arguments": "{}"}], "offered": {}}
# It answers what prepares it, and ends when it is asked.
ENDS_UNREAD = """
import select, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.recv(1 << 16)
said = b'{"findings": []}'
sock.sendall(len(said).to_bytes(4, "big") + said)
select.select([sock], [], [])
"""


@pytest.fixture
async def process() -> AsyncIterator[CheckProcess]:
    process = CheckProcess(1.0, DEFAULT, waiting_max=3)
    yield process
    await process.close()
    assert process.pid is None


async def failure(process: CheckProcess, check: str, given: dict[str, Any]) -> str:
    with pytest.raises(CheckFailed) as failed:
        await process.find(check, given)
    return failed.value.kind


def ticks(pid: int) -> int:
    """How long a process has run, in the clock ticks of Linux."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


async def test_it_is_started_by_the_first_check_and_stays(process: CheckProcess) -> None:
    assert process.pid is None
    (found,) = await process.find("secrets", LEAK)
    assert found == ("AWS Access Key", "here line 4")
    pid = process.pid
    assert await process.find("secrets", HARMLESS) == []
    given = {"texts": [["here", 1, "ada@example.com"]], "entities": list(DEFAULT), "score_min": SCORE_MIN}
    assert [each.kind for each in await process.find("pii", given)] == ["EMAIL_ADDRESS"]
    assert await process.find("tool_calls", CALLS) == [("not_offered", "call")]
    with pytest.raises(SchemaRefused):
        await process.find("json_schema", {"texts": [["here", None]], "schema": {"type": "x"}})
    assert process.pid == pid


async def test_a_pattern_that_backtracks_for_ever_fails_and_the_next_check_is_made(process: CheckProcess) -> None:
    assert await process.find("secrets", HARMLESS) == []
    pid = process.pid
    assert await failure(process, "json_schema", FOREVER) == "timeout"
    assert len(await process.find("secrets", LEAK)) == 1
    assert process.pid != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


async def test_a_process_that_is_killed_fails_the_check_under_way_and_is_replaced() -> None:
    process = CheckProcess(60.0, DEFAULT)
    assert await process.find("json_schema", {"texts": [["here", "{}"]], "schema": {}}) == []
    assert process.pid is not None
    idle_ticks = ticks(process.pid)
    asked = asyncio.create_task(failure(process, "json_schema", FOREVER))
    while ticks(process.pid) < idle_ticks + 5:  # noqa: ASYNC110 it tells nobody
        await asyncio.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert await asked == "crash"
    assert len(await process.find("secrets", LEAK)) == 1
    await process.close()


async def test_one_that_dies_idle_is_replaced_and_fails_no_check(process: CheckProcess) -> None:
    assert await process.find("secrets", HARMLESS) == []
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert len(await process.find("secrets", LEAK)) == 1


@pytest.mark.parametrize(("check", "given"), [("secrets", LEAK), ("tool_calls", CALLS)], ids=["ready", "not ready"])
async def test_one_that_dies_before_it_reads_the_check_is_replaced_and_fails_none(
    process: CheckProcess, check: str, given: dict[str, Any]
) -> None:
    """Nothing tells such a process from a living one when the check is sent, and its death is not what was in it."""
    assert await process.find("secrets", HARMLESS) == []
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.create_task(process.find(check, given))
    await asyncio.sleep(0.1)
    assert process.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert len(await asked) == 1
    assert process.pid != pid


async def test_a_check_that_two_processes_die_of_unread_fails() -> None:
    process = CheckProcess(5.0, DEFAULT, command=(sys.executable, "-c", ENDS_UNREAD))
    assert await failure(process, "secrets", HARMLESS) == "crash"
    assert process.ended == 2
    await process.close()


async def test_who_leaves_does_not_get_the_next_one_their_answer(process: CheckProcess) -> None:
    assert await process.find("secrets", HARMLESS) == []
    for _ in range(20):
        leaving = asyncio.create_task(process.find("secrets", LEAK))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        assert await process.find("secrets", HARMLESS) == []
    assert process.waiting == 0


async def test_only_so_many_wait(process: CheckProcess) -> None:
    assert await process.find("json_schema", {"texts": [["here", "{}"]], "schema": {}}) == []
    asked = [asyncio.create_task(failure(process, "json_schema", FOREVER)) for _ in range(6)]
    kinds = await asyncio.gather(*asked)
    assert kinds.count("timeout") >= 1
    assert kinds.count("busy") >= 2
    assert set(kinds) <= {"timeout", "busy"}


async def test_a_check_that_breaks_on_what_it_is_given_fails_and_the_process_lives(process: CheckProcess) -> None:
    assert await failure(process, "secrets", {"texts": [["here", "no number", None]]}) == "crash"
    pid = process.pid
    assert await process.find("secrets", HARMLESS) == []
    assert process.pid == pid


BREAKS = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.recv(1 << 16)
said = b'{"failed": "RuntimeError"}'
sock.sendall(len(said).to_bytes(4, "big") + said)
sock.recv(1)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("/there/is/nothing/here",),
        (sys.executable, "-c", "raise SystemExit(1)"),
        (sys.executable, "-c", "import time; time.sleep(60)"),
        (sys.executable, "-c", BREAKS),
    ],
    ids=["is not there", "ends", "hangs", "fails on nothing"],
)
async def test_a_check_that_cannot_even_be_prepared_is_not_started(command: tuple[str, ...]) -> None:
    """Whoever asked is not blamed for it, as for a `crash` or a `timeout` of the check of their answer."""
    broken = CheckProcess(1.0, DEFAULT, start_s=1.0, command=command)
    assert await failure(broken, "secrets", HARMLESS) == "not_started"
    await broken.close()


async def test_who_still_waits_when_it_is_closed_starts_no_other_process() -> None:
    process = CheckProcess(5.0, DEFAULT)
    asking = [asyncio.create_task(process.find("secrets", HARMLESS)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await process.close()
    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert all(isinstance(each, CheckFailed) and each.kind == "busy" for each in ended[1:])
    assert process.pid is None


async def test_schemas_that_take_for_ever_delay_no_check_of_texts() -> None:
    """One after the other they would have the only process to themselves, and whoever waits for it would fail."""
    processes = CheckProcesses(CheckProcess(2.0, DEFAULT), CheckProcess(2.0, ()))
    processes.warm(["secrets", "json_schema"])
    assert await processes.find("secrets", HARMLESS) == []
    assert await processes.find("json_schema", {"texts": [["here", "{}"]], "schema": {}}) == []
    endless = []
    for _ in range(2):
        endless.append(asyncio.create_task(processes.find("json_schema", FOREVER)))
        await asyncio.sleep(1.0)
    assert await processes.find("secrets", LEAK) != []
    assert not endless[1].done()
    await asyncio.gather(*endless, return_exceptions=True)
    await processes.close()


async def test_an_alarm_ends_a_check_whose_gateway_is_gone(
    process: CheckProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway would end it after a second; without one it ends itself, though Python cannot be interrupted."""
    monkeypatch.setattr("policy.checks.process._ALARM_AFTER_S", -0.5)
    assert await process.find("json_schema", {"texts": [["here", "{}"]], "schema": {}}) == []
    assert await failure(process, "json_schema", FOREVER) == "crash"


async def test_libraries_are_imported_ahead(process: CheckProcess) -> None:
    process.warm(["secrets"])
    assert await process.find("secrets", HARMLESS) == []
    process.warm(["secrets"])
    assert process.waiting == 0
