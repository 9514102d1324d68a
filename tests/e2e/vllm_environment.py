"""Makes what the end-to-end tests run vLLM with: `.venv-vllm` with Bursar's plugin in it, and `build/tiny-qwen3`.

`python tests/e2e/vllm_environment.py` brings both up to date; when they are, it takes a fraction of a second.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venv" / "bin" / "uv"
LOCK = ROOT / "requirements-vllm.lock"
ENVIRONMENT = ROOT / ".venv-vllm"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "installed.sha256"
PLUGIN = ROOT / "runtime" / "vllm" / "plugin"
PLUGIN_STAMP = ENVIRONMENT / "plugin.sha256"
PLUGIN_WHEEL = ROOT / "build" / "plugin"
MODEL = ROOT / "build" / "tiny-qwen3"
TINY_MODEL = ROOT / "tests" / "e2e" / "tiny_model.py"
INSTALL_TIMEOUT_S = 1800
MODEL_TIMEOUT_S = 300


def wanted_stamp() -> str:
    """Return the digest of what the environment is made from: the lock and this Python's version."""
    return hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()


def is_installed() -> bool:
    """Return whether the environment was completed from this very lock."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == wanted_stamp()


def install() -> None:
    """Make `.venv-vllm` hold exactly the packages of the lock, each checked against its hash."""
    STAMP.unlink(missing_ok=True)
    if ENVIRONMENT.exists() and not PYTHON.exists():
        shutil.rmtree(ENVIRONMENT)
    make = [str(UV), "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(ENVIRONMENT)]
    sync = [str(UV), "pip", "sync", "--require-hashes", "--python", str(PYTHON), str(LOCK)]
    PLUGIN_STAMP.unlink(missing_ok=True)  # the sync removes what the lock does not name
    subprocess.run(make, check=True, timeout=INSTALL_TIMEOUT_S)
    subprocess.run(sync, check=True, timeout=INSTALL_TIMEOUT_S)
    STAMP.write_text(wanted_stamp())


def wanted_plugin_stamp() -> str:
    """Return the digest of the plugin's sources, each with its name, and those that it shares with Bursar included."""
    with (PLUGIN / "pyproject.toml").open("rb") as project:
        wheel = tomllib.load(project)["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = [PLUGIN, *((PLUGIN / part).resolve() for part in wheel["force-include"])]
    files = sorted(file for part in parts for file in (part.rglob("*") if part.is_dir() else [part]))
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def install_plugin() -> None:
    """Build Bursar's vLLM plugin with this environment's own hatchling, and install it without asking any index."""
    PLUGIN_STAMP.unlink(missing_ok=True)
    stamp = wanted_plugin_stamp()
    shutil.rmtree(PLUGIN_WHEEL, ignore_errors=True)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(PLUGIN_WHEEL)]
    subprocess.run(build, check=True, cwd=PLUGIN, stdout=subprocess.DEVNULL, timeout=INSTALL_TIMEOUT_S)
    [wheel] = PLUGIN_WHEEL.glob("*.whl")
    add = [str(UV), "pip", "install", "--quiet", "--offline", "--no-deps", "--reinstall", "--python", str(PYTHON)]
    subprocess.run([*add, str(wheel)], check=True, timeout=INSTALL_TIMEOUT_S)
    PLUGIN_STAMP.write_text(stamp)


def main() -> int:
    """Bring the environment and the model up to date, and say on standard error what was done."""
    if is_installed():
        say(f"vLLM environment: up to date in {ENVIRONMENT.name}")
    else:
        say(f"vLLM environment: installing {LOCK.name} into {ENVIRONMENT.name} (about 5 GB on disk)")
        began_s = time.monotonic()
        install()
        say(f"vLLM environment: installed in {time.monotonic() - began_s:.0f} s")
    if not (PLUGIN_STAMP.is_file() and PLUGIN_STAMP.read_text() == wanted_plugin_stamp()):
        install_plugin()
        say(f"vLLM environment: installed Bursar's plugin from {PLUGIN.relative_to(ROOT)}")
    subprocess.run([str(PYTHON), str(TINY_MODEL), str(MODEL)], check=True, timeout=MODEL_TIMEOUT_S)
    return 0


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
