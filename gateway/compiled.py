"""The modules that each request passes through, compiled by mypyc where `make compile` has done so.

The compiled ones lie apart, in `build/compiled`, and are used together or not at all: only while every source file is
the one that they were made from. A file that was edited since thus never hides behind its older self.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "compiled"
STAMP = FOLDER / "sources.sha256"
LAYERS = ("domain", "policy", "ledger", "runtime", "observability", "gateway")
MODULES = (
    "domain.amounts",
    "domain.charges",
    "domain.decision",
    "domain.ids",
    "domain.intent",
    "domain.prices",
    "domain.usage",
    "gateway.admission",
    "gateway.asgi",
    "gateway.bodies",
    "gateway.bounds",
    "gateway.calls",
    "gateway.demands",
    "gateway.errors",
    "gateway.flow",
    "gateway.forward",
    "gateway.governance",
    "gateway.identity",
    "gateway.live",
    "gateway.metering",
    "gateway.pseudonyms",
    "gateway.recent",
    "gateway.repeats",
    "gateway.replies",
    "gateway.requests",
    "gateway.rows",
    "ledger.accounts",
    "ledger.book",
    "ledger.budgets",
    "ledger.counters",
    "ledger.holds",
    "ledger.journal",
    "ledger.records",
    "ledger.windows",
    "observability.metrics",
    "policy.decider",
    "runtime.breaker",
    "runtime.client",
    "runtime.openai.usage",
    "runtime.pool",
    "runtime.wire",
)

# "0": never; "1": or else NotCompiled; otherwise: where they are.
SWITCH = "BURSAR_COMPILED"


class NotCompiled(Exception):
    """Compiled modules were asked for and there are none of these sources."""


class Finder:
    """Finds compiled modules, and the library that they share, before the sources are found."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The compiled module of that name; None leaves it to the finders that follow."""
        file = self._files.get(name)
        return None if file is None else spec_from_file_location(name, file)


def use(environ: Mapping[str, str] = os.environ) -> bool:
    """Have compiled modules imported from now on; False where Python's own will be.

    Call it before any of them is imported. NotCompiled where the environment insists on them.
    """
    wanted = environ.get(SWITCH, "")
    if wanted == "0":
        return False
    if not STAMP.exists() or STAMP.read_text(encoding="ascii") != digest():
        if wanted == "1":
            raise NotCompiled(f"{FOLDER} has not these sources compiled: run `make compile`")
        return False
    early = sorted(sys.modules.keys() & set(MODULES))
    if early:
        raise NotCompiled(f"{early[0]} has been imported already")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = (path.relative_to(FOLDER) for path in FOLDER.rglob(f"*{suffix}"))
    sys.meta_path.insert(0, Finder({".".join(file.parts).removesuffix(suffix): FOLDER / file for file in found}))
    return True


def digest() -> str:
    """What identifies the sources of all layers and the Python that they are compiled for."""
    whole = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()} {' '.join(MODULES)}".encode())
    for layer in LAYERS:
        for source in sorted((ROOT / layer).rglob("*.py")):
            whole.update(f"\n{source.relative_to(ROOT)}\n".encode() + source.read_bytes())
    return whole.hexdigest()
