"""What processes cost: CPU time and resident memory, from the kernel's own accounts of them and their children."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
NS_PER_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
SCANS_MAX: Final = 5


class Stat(NamedTuple):
    """The fields of `/proc/<pid>/stat` that accounts need; CPU times in clock ticks."""

    parent: int
    state: str
    own_ticks: int
    reaped_ticks: int


def read_stat(pid: int) -> Stat:
    """Read one process's line. Raises ProcessLookupError when there is no such process."""
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} is gone") from None
    fields = line[line.rindex(")") + 2 :].split()  # the command before it may hold spaces and parentheses
    return Stat(
        parent=int(fields[1]),
        state=fields[0],
        own_ticks=int(fields[11]) + int(fields[12]),
        reaped_ticks=int(fields[13]) + int(fields[14]),
    )


def tree(pids: Iterable[int]) -> set[int]:
    """The given processes and all their living descendants, each once."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = read_stat(int(entry.name)).parent
        except ProcessLookupError:
            continue  # it ended during the scan, so it is nobody's child any more
        children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time (user and system) ever used by the given processes, their descendants and those they have reaped, in ns.

    A living process is read from its own CPU clock, which counts in ns and not in ticks of 10 ms. Raises
    ProcessLookupError when one of the given processes is gone, for then its time can no longer be told, and
    ChildProcessError when descendants end faster than they can be read.
    """
    roots = set(pids)
    for _ in range(SCANS_MAX):
        members = tree(roots)
        try:
            return sum(_process_ns(pid) for pid in members)
        except ProcessLookupError:
            for root in roots:
                read_stat(root)  # a descendant may end between scan and read, a root may not
    raise ChildProcessError(f"processes under {sorted(roots)} come and go too fast to be accounted")


def _process_ns(pid: int) -> int:
    clock = (~pid << 3) | 2  # the kernel's encoding of "CPU time of process pid" (clock_getcpuclockid(3))
    try:
        own_ns = time.clock_gettime_ns(clock)
    except OSError:
        raise ProcessLookupError(f"process {pid} is gone") from None
    return own_ns + read_stat(pid).reaped_ticks * NS_PER_TICK


def rss_bytes(pid: int) -> int:
    """Resident memory of one process, without its children. Raises ProcessLookupError."""
    try:
        fields = (PROC / str(pid) / "statm").read_text().split()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} is gone") from None
    return int(fields[1]) * PAGE_BYTES
