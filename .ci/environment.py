"""Makes `.venv`, the environment of every make target, from `requirements-dev.lock`; nothing happens when it is made.

It runs on the machine's own Python, from 3.6 on, so that it can say in a sentence what is missing.
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVIRONMENT = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(ENVIRONMENT, "bin", "python")
STAMP = os.path.join(ENVIRONMENT, "installed.sha256")
LOCK = "requirements-dev.lock"
MADE_FROM = (LOCK, "pyproject.toml", os.path.join(".ci", "environment.py"))
PYTHON_MIN = (3, 11)


def main():
    """0 when the environment is as the lock says, 3 when Python is too old or incomplete, else pip's own code."""
    if sys.version_info < PYTHON_MIN:
        least, found = ".".join(map(str, PYTHON_MIN)), sys.version.split()[0]
        say(f"Bursar needs Python {least} or newer, and {sys.executable} is {found}: use PYTHON=python{least}.")
        return 3
    wanted = _digest()
    if _stamped() == wanted:
        return 0
    say(f"Setting up .venv from {LOCK} (about a minute, once)")
    if not os.path.exists(PYTHON) and subprocess.call([sys.executable, "-m", "venv", ENVIRONMENT]) != 0:
        say(f"{sys.executable} cannot make an environment: install its venv module.")
        return 3
    # Compiling what is never imported would take a third of the time.
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    for arguments in (
        ["--require-hashes", "-r", LOCK],
        ["--no-deps", "--no-build-isolation", "--editable", "."],
    ):
        code = subprocess.call(pip + arguments, cwd=ROOT)
        if code != 0:
            say("The packages of .venv could not be installed; run make again to go on.")
            return code
    with open(STAMP, "w") as stamp:
        stamp.write(wanted)
    return 0


def say(line):
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _digest():
    digest = hashlib.sha256(sys.version.encode())
    for name in MADE_FROM:
        with open(os.path.join(ROOT, name), "rb") as source:
            digest.update(source.read())
    return digest.hexdigest()


def _stamped():
    try:
        with open(STAMP) as stamp:
            return stamp.read()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
