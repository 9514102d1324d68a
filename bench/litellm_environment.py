"""The LiteLLM proxy's own environment, made from its lock file and only made again when that file changes."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements-litellm.lock"
ENVIRONMENT: Final = ROOT / ".venv-litellm"
UV: Final = ROOT / ".venv" / "bin" / "uv"
INSTALL_TIMEOUT_S: Final = 900


def ensure(environment: Path = ENVIRONMENT, lock: Path = LOCK) -> Path:
    """Make the environment unless it already is what the lock says; return its folder of executables.

    Raises subprocess.CalledProcessError when the packages cannot be installed. An interrupted install leaves no stamp
    and is done again.
    """
    stamp = environment / "lock.sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        _uv("venv", "--clear", "--python", sys.executable, str(environment))
        python = str(environment / "bin" / "python")
        _uv("pip", "install", "--python", python, "--require-hashes", "-r", str(lock))
        stamp.write_text(digest)
    return environment / "bin"


def _uv(*arguments: str) -> None:
    subprocess.run([str(UV), *arguments, "--quiet"], check=True, timeout=INSTALL_TIMEOUT_S)


def main() -> None:
    print(ensure())


if __name__ == "__main__":
    main()
