"""CPU and memory accounts of processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.cpu import NS_PER_TICK, cpu_ns, read_stat, rss_bytes, tree

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
SAY_READY_AND_WAIT = "print('ready', flush=True)\nimport sys\nsys.stdin.read()\n"


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed its first line and now waits for the end of its stdin."""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline().strip() == "ready"
        yield child
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


def test_work_of_a_living_child_is_counted() -> None:
    with python(BURN.format(seconds=0.2) + SAY_READY_AND_WAIT) as child:
        assert cpu_ns([child.pid]) >= 0.2e9


def test_work_of_a_grandchild_is_counted_while_it_lives_and_after_it_was_reaped() -> None:
    burner = BURN.format(seconds=0.2)
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {burner + SAY_READY_AND_WAIT!r}],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "child.stdin.close()\n"
        "child.wait()\n"
        "print('reaped', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with python(code) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert len(tree([child.pid])) == 2
        living_ns = cpu_ns([child.pid])
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == "reaped"
        assert tree([child.pid]) == {child.pid}
        reaped_ns = cpu_ns([child.pid])
    assert living_ns >= 0.2e9
    assert reaped_ns >= living_ns - 2 * NS_PER_TICK, "what is reaped is told in ticks, rounded down"


def test_a_process_named_twice_or_beside_its_parent_counts_once() -> None:
    with python(SAY_READY_AND_WAIT) as child:
        assert tree([os.getpid(), child.pid, child.pid]) == tree([os.getpid()])


def test_the_fine_clock_agrees_with_the_ticks_of_proc() -> None:
    with python(BURN.format(seconds=0.3) + SAY_READY_AND_WAIT) as child:
        ticks_ns = read_stat(child.pid).own_ticks * NS_PER_TICK
        assert abs(cpu_ns([child.pid]) - ticks_ns) <= 3 * NS_PER_TICK


def test_an_idle_process_costs_next_to_nothing() -> None:
    with python(SAY_READY_AND_WAIT) as child:
        before_ns = cpu_ns([child.pid])
        time.sleep(0.2)
        assert cpu_ns([child.pid]) - before_ns < 0.02e9


def test_a_process_that_is_gone_has_no_account() -> None:
    with python(SAY_READY_AND_WAIT) as child:
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        cpu_ns([pid])
    with pytest.raises(ProcessLookupError):
        rss_bytes(pid)


def test_resident_memory_grows_by_what_is_touched() -> None:
    with python(SAY_READY_AND_WAIT) as small, python("kept = b'x' * 50_000_000\n" + SAY_READY_AND_WAIT) as large:
        assert 45e6 < rss_bytes(large.pid) - rss_bytes(small.pid) < 60e6
