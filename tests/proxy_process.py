"""A fault proxy in a process of its own, for tests that are not asyncio or whose own loop must not wait for it."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.proxy_faults import BadFault

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
STOP_S = 20.0


class ProxyProcess:
    """A running proxy; each method returns once it is done, with the counts so far."""

    def __init__(self, host: str, port: int, *, is_resp: bool = True, seed: int = 0) -> None:
        self._options = ["--upstream", f"{host}:{port}", "--seed", str(seed), *([] if is_resp else ["--any"])]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_proxy", *self._options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._answer()["port"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    @property
    def url(self) -> str:
        """Database 0 of the Redis behind it."""
        return f"redis://{HOST}:{self.port}/0"

    def change(self, **faults: Any) -> dict[str, Any]:
        """Switch some faults and leave the others, as `tests.proxy_faults.Faults` names them. BadFault."""
        return self._do("change", faults=faults)

    def heal(self) -> dict[str, Any]:
        """Switch all faults off; what was frozen meanwhile is reset."""
        return self._do("heal")

    def reset(self) -> dict[str, Any]:
        """Reset every connection there is now."""
        return self._do("reset")

    def counts(self) -> dict[str, Any]:
        """What went through since the start."""
        return self._do("counts")

    def _do(self, what: str, **more: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise BadFault(answer["error"])
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer
