"""The modules that each request passes through, compiled by mypyc where `make compile` has done so.

The compiled ones lie apart, in `build/compiled`, and are used together or not at all: only while every source file is
the one that they were made from. A file that was edited since thus never hides behind its older self.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

LAYERS = ("domain", "policy", "ledger", "runtime", "observability", "gateway")
RECIPE = (".ci/compile.py", "pyproject.toml", "requirements-dev.lock")
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
    "gateway.catalogue",
    "gateway.demands",
    "gateway.errors",
    "gateway.fields",
    "gateway.flow",
    "gateway.forward",
    "gateway.governance",
    "gateway.identity",
    "gateway.live",
    "gateway.metering",
    "gateway.prompt_blocks",
    "gateway.protocol",
    "gateway.pseudonyms",
    "gateway.recent",
    "gateway.repeats",
    "gateway.replies",
    "gateway.requests",
    "gateway.rows",
    "gateway.waiting",
    "ledger.accounts",
    "ledger.batch",
    "ledger.book",
    "ledger.budgets",
    "ledger.counters",
    "ledger.holds",
    "ledger.journal",
    "ledger.records",
    "ledger.segments",
    "ledger.sequences",
    "ledger.windows",
    "observability.histogram",
    "observability.metrics",
    "policy.decider",
    "runtime.breaker",
    "runtime.client",
    "runtime.openai.usage",
    "runtime.pool",
    "runtime.port",
    "runtime.wire",
)

# "0": never; "1": or else NotCompiled; "" or unset: where they are.
SWITCH = "BURSAR_COMPILED"


class NotCompiled(Exception):
    """What the environment asks for cannot be had: nothing is compiled of these sources, or there is no such switch."""


@dataclass(frozen=True, slots=True)
class Build:
    """Compiled modules under a root, beside the sources of all layers that they are made from."""

    root: Path
    modules: tuple[str, ...] = MODULES

    @property
    def folder(self) -> Path:
        """Where the compiled modules lie."""
        return self.root / "build" / "compiled"

    @property
    def stamp(self) -> Path:
        """The digest of the sources that were compiled; written last, so there is none on half a build."""
        return self.folder / "sources.sha256"

    def files(self) -> dict[str, Path]:
        """Every compiled module, and the library that they share, by its name."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        found = {file.relative_to(self.folder): file for file in self.folder.rglob(f"*{suffix}")}
        return {".".join(path.parts).removesuffix(suffix): file for path, file in found.items()}

    def is_current(self) -> bool:
        """Whether all modules are compiled, from the sources as they are now."""
        try:
            stamped = self.stamp.read_bytes()
        except OSError:
            return False
        return stamped == self.digest().encode() and self.files().keys() >= set(self.modules)

    def digest(self) -> str:
        """What identifies the sources of all layers, how they are compiled, and the Python that it is done for."""
        whole = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()} {' '.join(self.modules)}".encode())
        for source in self._sources():
            whole.update(f"\n{source.relative_to(self.root)}\n".encode() + source.read_bytes())
        return whole.hexdigest()

    def _sources(self) -> Iterator[Path]:
        yield from (self.root / name for name in RECIPE if (self.root / name).exists())
        for layer in LAYERS:
            yield from sorted((self.root / layer).rglob("*.py"))


# Of a checkout: where a wheel is installed, nothing lies beside it and Python's own modules are imported.
BUILD = Build(Path(__file__).resolve().parent.parent)


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


def use(environ: Mapping[str, str] = os.environ, build: Build = BUILD) -> bool:
    """Have compiled modules imported from now on; False where Python's own will be.

    Call it before any of them is imported. NotCompiled where the environment insists on them.
    """
    wanted = environ.get(SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise NotCompiled(f"{SWITCH} is {wanted!r}: it may be 0, 1 or unset")
    if wanted == "0":
        return False
    if not build.is_current():
        if wanted == "1":
            raise NotCompiled(f"{build.folder} has not these sources compiled: run `make compile`")
        return False
    early = sorted(sys.modules.keys() & set(build.modules))
    if early:
        raise NotCompiled(f"{early[0]} has been imported already")
    sys.meta_path.insert(0, Finder(build.files()))
    return True


def start() -> None:
    """Begin a process: `use`, or end it with a sentence and exit code 3, as for anything needed that is away."""
    try:
        use()
    except NotCompiled as error:
        sys.stderr.write(f"bursar: {error}\n")
        sys.exit(3)


def in_use() -> bool:
    """Whether this process imports compiled modules."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)
