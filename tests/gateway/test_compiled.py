"""Compiled modules: used all together, only of the very sources, and never where they were not asked for."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest

from gateway.compiled import BUILD, MODULES, RECIPE, SWITCH, Build, Finder, NotCompiled, in_use, use
from tests.gateway.gateway_process import bursar

ROOT = Path(__file__).resolve().parent.parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
IS_COMPILED = os.environ.get(SWITCH) == "1"
TOLD = "1" if IS_COMPILED else "0"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A current build of two tiny modules, and an import path that forgets what the test puts on it."""
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, Finder)])
    return made(tmp_path, "domain.one", "gateway.two")


def made(root: Path, *modules: str) -> Build:
    """A build whose extension files are empty: they are found, never loaded."""
    made = Build(root, modules)
    for module in modules:
        source = root / f"{module.replace('.', '/')}.py"
        extension = made.folder / f"{module.replace('.', '/')}{SUFFIX}"
        for file in (source, extension):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
    made.stamp.write_text(made.digest())
    return made


def test_every_module_that_is_compiled_is_a_source_file() -> None:
    assert [name for name in MODULES if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
    assert list(MODULES) == sorted(set(MODULES))
    assert [name for name in RECIPE if not (ROOT / name).is_file()] == []
    assert BUILD.root == ROOT


def test_a_current_build_is_used(build: Build) -> None:
    assert not in_use()
    assert use({}, build)
    assert in_use()


def test_the_switch_insists_or_declines(build: Build) -> None:
    assert not use({SWITCH: "0"}, build)
    assert not in_use()
    assert use({SWITCH: "1"}, build)


def test_no_other_value_of_the_switch_is_guessed_at(build: Build) -> None:
    with pytest.raises(NotCompiled, match=r"BURSAR_COMPILED is 'no': it may be 0, 1 or unset"):
        use({SWITCH: "no"}, build)
    assert not in_use()


@pytest.mark.parametrize("source", ["domain/one.py", "policy/new.py", "gateway/cli/deep.py", "pyproject.toml"])
def test_a_build_of_other_sources_is_not_used(build: Build, source: str) -> None:
    """Any source of a layer counts, compiled or not, and so does what says how to compile."""
    digest = build.digest()
    (build.root / source).parent.mkdir(parents=True, exist_ok=True)
    (build.root / source).write_text("CHANGED = True\n")
    assert build.digest() != digest
    assert not use({}, build)
    with pytest.raises(NotCompiled, match="run `make compile`"):
        use({SWITCH: "1"}, build)
    assert not in_use()


def test_a_source_that_went_or_moved_changes_the_digest(build: Build) -> None:
    digests = {build.digest()}
    (build.root / "domain" / "one.py").rename(build.root / "domain" / "other.py")
    digests.add(build.digest())
    (build.root / "domain" / "other.py").unlink()
    digests.add(build.digest())
    assert len(digests) == 3


def test_another_list_of_modules_is_another_build(build: Build) -> None:
    assert Build(build.root, ("domain.one",)).digest() != build.digest()
    assert not Build(build.root, ("domain.one",)).is_current()


def test_what_is_no_source_does_not_count(build: Build) -> None:
    (build.root / "domain" / "notes.txt").write_text("x")
    (build.root / "tests").mkdir()
    (build.root / "tests" / "test_one.py").write_text("x = 1\n")
    assert build.is_current()


def test_half_a_build_is_not_used(build: Build) -> None:
    """One whose stamp was never written, and one that lost a file since."""
    stamp = build.stamp.read_bytes()
    build.stamp.unlink()
    assert not use({}, build)
    build.stamp.write_bytes(stamp)
    (build.folder / "domain" / f"one{SUFFIX}").unlink()
    assert not use({}, build)
    with pytest.raises(NotCompiled):
        use({SWITCH: "1"}, build)


def test_a_stamp_that_cannot_be_read_is_none(build: Build) -> None:
    build.stamp.write_bytes(b"\xff\xfe")
    assert not use({}, build)
    build.stamp.unlink()
    build.stamp.mkdir()
    assert not use({}, build)


def test_where_nothing_was_built_python_runs(tmp_path: Path) -> None:
    """As where a wheel is installed: there is not even a folder."""
    assert not use({}, Build(tmp_path))
    with pytest.raises(NotCompiled):
        use({SWITCH: "1"}, Build(tmp_path))


def test_a_module_that_was_imported_before_is_refused(build: Build) -> None:
    """Half of the modules compiled and half not is what must never be."""
    late = made(build.root, "domain.one", "gateway.compiled")
    with pytest.raises(NotCompiled, match=r"gateway\.compiled has been imported already"):
        use({}, late)
    assert not in_use()


def test_the_finder_finds_compiled_modules_and_leaves_the_others(build: Build) -> None:
    finder = Finder(build.files())
    spec = finder.find_spec("domain.one", [str(build.root / "domain")])
    assert spec is not None
    assert spec.origin == str(build.folder / "domain" / f"one{SUFFIX}")
    assert isinstance(spec.loader, ExtensionFileLoader)
    assert finder.find_spec("domain") is None
    assert finder.find_spec("domain.three") is None


def test_the_library_that_compiled_modules_share_is_found_too(build: Build) -> None:
    (build.folder / f"shared__mypyc{SUFFIX}").write_text("")
    assert build.files().keys() == {"domain.one", "gateway.two", "shared__mypyc"}


def test_this_process_uses_what_it_was_told_to() -> None:
    assert in_use() == IS_COMPILED


@pytest.mark.parametrize("module", ["gateway.asgi", "ledger.book"])
def test_a_process_imports_what_it_was_told_to(module: str) -> None:
    code = f"from gateway import compiled; compiled.use(); import {module}; print({module}.__file__)"
    environ = {**os.environ, SWITCH: TOLD}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    expected = (BUILD.folder if IS_COMPILED else ROOT) / module.replace(".", "/")
    assert done.stdout.strip() == f"{expected}{SUFFIX if IS_COMPILED else '.py'}", done.stderr


def test_doctor_says_which_is_used(tmp_path: Path) -> None:
    done = bursar("doctor", "--json", home=tmp_path, BURSAR_COMPILED=TOLD)
    states = {each["dependency"]: (each["state"], each["detail"].split(",")[0]) for each in json.loads(done.stdout)}
    assert states["compiled modules"] == (("ok", "in use") if IS_COMPILED else ("optional", "not in use"))


def test_the_command_line_says_in_a_line_what_the_switch_may_be(tmp_path: Path) -> None:
    done = bursar("--help", home=tmp_path, BURSAR_COMPILED="yes")
    assert (done.returncode, done.stderr) == (3, "bursar: BURSAR_COMPILED is 'yes': it may be 0, 1 or unset\n")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        ("import os; os.environ['CC'] = 'no-such-compiler -O2'", "There is no C compiler (no-such-compiler)"),
        ("import sysconfig; sysconfig.get_path = lambda name: 'nowhere'", "(Debian's package is python3-dev)"),
        ("open('build', 'w').close()", "cannot be written"),
    ],
    ids=["no compiler", "no headers", "no folder"],
)
def test_a_machine_that_cannot_compile_is_told_why_and_runs_python(tmp_path: Path, breaks: str, says: str) -> None:
    for file in (".ci/compile.py", "gateway/__init__.py", "gateway/compiled.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    code = f"{breaks}; import runpy; runpy.run_path('.ci/compile.py', run_name='__main__')"
    # A compiler that fails would end this with 1: none is to be started.
    environ = {**os.environ, "CC": "false"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert says in done.stderr
    assert done.stderr.endswith("Until then Bursar runs as Python.\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "build" / "compiled" / "sources.sha256").exists()


@pytest.mark.parametrize("module", MODULES)
def test_no_function_gives_two_exceptions_one_name(module: str) -> None:
    """Compiled, a name keeps the type that it is given first, and the second handler would raise TypeError."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            handlers = [node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name]
            types = {(handler.name, ast.unparse(handler.type)) for handler in handlers if handler.type is not None}
            assert len(types) == len({name for name, _ in types}), f"{module}.{function.name}: {sorted(types)}"
