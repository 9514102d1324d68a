"""Architecture is a test: what holds of every file of the repository, whoever writes the next one."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("domain", "policy", "ledger", "runtime", "observability", "gateway")
TEST_FOLDERS = {*PACKAGES, "bench", "e2e", "load", "simulation"}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

# What is over a limit, with its size: it may only shrink, and leaves the list once it is within.
# The verifier is one file so that an auditor can copy and read it alone.
LONG_FILES: dict[str, int] = {"ledger/verifier.py": 559}
LONG_FUNCTIONS: dict[str, int] = {}

SHAPELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".yaml", ".json", ".rego", ".sql", ".in", ".lock", ".txt"}
BANNER = re.compile(r"^\s*#\s*([-=*#~_─━═])\1{3,}")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|root|home|Users|tmp)/\w+")
INVENTED_PATHS = {"tests/gateway/test_config.py"}  # the home of nobody
HOSTS = ("pypi", "pythonhosted", "npmjs", "golang", "anaconda", "docker", "huggingface")
REGISTRY = re.compile(rf"\b(?:{'|'.join(HOSTS)})\.(?:org|com|io|co)\b")
# Of another environment (.venv-vllm), or a part of what is declared: starlette of fastapi, the core of pydantic.
UNDECLARED = {"torch", "transformers", "vllm", "bursar-vllm", "starlette", "pydantic-core"}
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)")


class Source(NamedTuple):
    """One Python file, read once."""

    name: str
    lines: list[str]
    tree: ast.Module


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that git does not ignore: `.gitignore` names folders only, so no git is needed."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    found: list[Path] = []
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name == ".git" or any(path.match(pattern) for pattern in ignored):
                continue
            (folders if path.is_dir() else found).append(path)
    return tuple(found)


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the repository."""
    return tuple(
        Source(name(path), text.splitlines(), ast.parse(text))
        for path in tracked()
        if path.suffix == ".py"
        for text in [path.read_text(encoding="utf-8")]
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def strangers(folders: set[str], known: set[str]) -> set[str]:
    """The modules that files of some top-level folders import, and that nothing known provides: not Python, not we."""
    modules = {
        module.split(".")[0]
        for source in sources()
        if source.name.split("/")[0] in folders
        for node in ast.walk(source.tree)
        for module in _imported(node)
    }
    providers = importlib.metadata.packages_distributions()
    foreign = modules - sys.stdlib_module_names - {*PACKAGES, "tests", "bench"}
    return {module for module in foreign if known.isdisjoint(map(normal, providers.get(module, [module])))}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [] if node.level else [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def declared() -> tuple[set[str], set[str]]:
    """What pyproject.toml asks for, extras included, and what developers need beside it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    extras = project["project"].get("optional-dependencies", {})
    runs = {normal(each) for each in chain(project["project"]["dependencies"], *extras.values())}
    return runs, {normal(each) for each in project["dependency-groups"]["dev"]}


def texts() -> Iterator[tuple[str, str]]:
    """Every text file with its content."""
    for path in tracked():
        if path.suffix in TEXT_SUFFIXES:
            yield name(path), path.read_text(encoding="utf-8")


def locks() -> list[Path]:
    return sorted(ROOT.glob("requirements*.lock"))


def pins(lock: Path) -> dict[str, set[str]]:
    """The versions of each package that a lock pins; one package may have several, for different Pythons."""
    found: dict[str, set[str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        match = REQUIREMENT.match(line)
        if match:
            found.setdefault(normal(match[1]), set()).add(match[2])
    return found


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", package, maxsplit=1)[0]).lower()


def test_imports_go_down_only() -> None:
    """The contracts of pyproject.toml, kept by import-linter."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_domain_needs_nothing_but_python() -> None:
    assert strangers({"domain"}, set()) == set()


def test_every_import_is_declared() -> None:
    """What the environment happens to hold is not what a fresh one will hold."""
    runs, develops = declared()
    assert strangers({*PACKAGES}, runs | UNDECLARED) == set()
    assert strangers({"tests", "bench"}, runs | develops | UNDECLARED) == set()


def test_no_module_is_named_for_nothing() -> None:
    shapeless = [each.name for each in sources() if not SHAPELESS.isdisjoint(Path(each.name).with_suffix("").parts)]
    assert shapeless == []


def test_every_module_says_what_it_is() -> None:
    """A docstring in every module and package but the tests' own, which are named for what they prove."""
    silent = [
        source.name
        for source in sources()
        if source.name.split("/")[0] in {*PACKAGES, "bench"} and not ast.get_docstring(source.tree)
    ]
    assert silent == []


def test_files_are_short() -> None:
    sizes = {source.name: len(source.lines) for source in sources()}
    assert {file: size for file, size in sizes.items() if size > FILE_LINES_MAX} == LONG_FILES


def test_functions_are_short() -> None:
    sizes = {
        f"{source.name} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for source in sources()
        for node in functions(source)
    }
    assert {function: size for function, size in sizes.items() if size > FUNCTION_LINES_MAX} == LONG_FUNCTIONS


def test_an_import_inside_a_function_says_why() -> None:
    """Its reason is a comment on its line, or above the run of imports that it belongs to."""
    silent = [
        f"{source.name}:{node.lineno}"
        for source in sources()
        for function in functions(source)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom) and not _has_reason(source.lines, node.lineno)
    ]
    assert silent == []


def _has_reason(lines: list[str], line: int) -> bool:
    own = re.sub(r"#\s*(noqa|type: ?ignore)[^#]*", "", lines[line - 1])
    if "#" in own:
        return True
    above = line - 1
    while above > 0 and re.match(r"\s*(import|from)\s", lines[above - 1]):
        above -= 1
    return above > 0 and lines[above - 1].lstrip().startswith("#")


def test_nothing_is_global() -> None:
    found = [
        f"{source.name}:{node.lineno}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Global)
    ]
    assert found == []


def test_no_banner_stands_where_a_module_should() -> None:
    banners = [
        f"{source.name}:{number}"
        for source in sources()
        for number, line in enumerate(source.lines, start=1)
        if BANNER.match(line)
    ]
    assert banners == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    found = [
        f"{file}: {match[0]}"
        for file, text in texts()
        for match in MACHINE_PATH.finditer(text)
        if file not in INVENTED_PATHS
    ]
    assert found == []


def test_no_file_names_a_package_registry() -> None:
    assert [f"{file}: {match[0]}" for file, text in texts() for match in REGISTRY.finditer(text)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_tests(package: str) -> None:
    assert list((ROOT / "tests" / package).rglob("test_*.py"))


def test_tests_mirror_the_packages() -> None:
    """A folder of tests is that of a package, or one of the three that run the whole; none is a package itself."""
    folders = {Path(each.name).parts[1] for each in sources() if re.match("tests/.+/", each.name)}
    assert folders <= TEST_FOLDERS
    assert [source.name for source in sources() if re.fullmatch(r"tests/.*__init__\.py", source.name)] == []


def test_migrations_are_numbered_without_gaps() -> None:
    files = sorted(path.name for path in (ROOT / "ledger" / "schema").glob("*.sql"))
    assert files
    assert [file.split("_")[0] for file in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]


@pytest.mark.parametrize("lock", locks(), ids=lambda lock: lock.name)
def test_a_lock_pins_and_hashes_every_package_and_names_no_index(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"(?m)^\s*#.*\n", "", text).strip())
    assert len(entries) > 10
    loose = [entry for entry in entries if not REQUIREMENT.match(entry) or "--hash=sha256:" not in entry]
    assert loose == []
    assert re.findall(r"://|--(?:extra-)?index-url|--find-links| @ ", text) == []


def test_the_locks_hold_what_the_project_asks_for() -> None:
    asked, asked_by_developers = declared()
    runs, develops = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-dev.lock")
    assert asked - runs.keys() == set()
    assert (asked | asked_by_developers) - develops.keys() == set()
    assert {package for package, versions in runs.items() if develops.get(package) != versions} == set()
