"""The shipped Rego by the tools that its editors use: checked, typed, tested, covered, linted and formatted."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from policy.bundle import load
from policy.source import statements
from policy.testing import run_tests
from tests.opa_server import binary, regal
from tests.policy.conftest import SHIPPED

ROOT = SHIPPED.parent
PACKAGES = ("admission", "budget", "change", "launch", "release", "risk", "tools")
COVERED_PERCENT = 95.0
ENTRY_POINTS = {"decision", "scoring"}


def ran(program: Path, *arguments: str, cwd: Path = SHIPPED) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the shipped bundle, to break."""
    return shutil.copytree(SHIPPED, tmp_path / "rego")


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_package_has_rules_tests_tables_and_schemas() -> None:
    assert {folder.name for folder in (SHIPPED / "bursar").iterdir()} == set(PACKAGES)
    for name in PACKAGES:
        package = SHIPPED / "bursar" / name
        assert {path.name for path in package.iterdir()} == {f"{name}.rego", f"{name}_test.rego", "data.json"}
        assert (SHIPPED / "schemas" / "data" / f"{name}.json").is_file()


def test_opa_finds_no_mistake_with_inputs_typed() -> None:
    done = ran(binary(), "check", "--strict", "--bundle", "--schema", "schemas", ".")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_opa_takes_the_bundle_without_its_schemas_too() -> None:
    done = ran(binary(), "check", "--strict", "--bundle", ".")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("package", "old", "new"),
    [
        ("admission", "input.intent.model]", "input.intent.modle]"),
        ("budget", "input.headroom[kind]", "input.headrom[kind]"),
        ("change", "input.change.reversible == true", "input.change.reversable == true"),
        ("launch", "input.target.id", "input.target.name"),
        ("release", "input.slos", "input.slo"),
        ("risk", "input.risk.level", "input.risk.lvl"),
        ("tools", "input.phase", "input.phases"),
    ],
)
def test_a_misspelt_fact_of_the_input_is_a_type_error(copied: Path, package: str, old: str, new: str) -> None:
    replaced(copied / "bursar" / package / f"{package}.rego", old, new)
    done = ran(binary(), "check", "--strict", "--bundle", "--schema", "schemas", ".", cwd=copied)
    assert done.returncode != 0
    assert f"{package}.rego" in done.stderr
    assert "rego_type_error: undefined ref" in done.stderr


def test_schemas_do_not_get_into_what_opa_builds_or_evaluates(tmp_path: Path) -> None:
    built = tmp_path / "bundle.tar.gz"
    done = ran(binary(), "build", "--bundle", ".", "--output", str(built))
    assert done.returncode == 0, done.stderr
    done = ran(binary(), "eval", "--bundle", str(built), "--format", "raw", "object.keys(data)", cwd=tmp_path)
    assert json.loads(done.stdout) == ["bursar"]


def test_rego_is_formatted_as_opa_formats_it() -> None:
    done = ran(binary(), "fmt", "--list", "bursar")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_regal_finds_nothing_but_what_its_configuration_leaves_out() -> None:
    done = ran(regal(), "lint", "--format", "json", "rego", cwd=ROOT)
    assert json.loads(done.stdout)["violations"] == []
    assert done.returncode == 0


def test_each_rule_that_regal_leaves_out_has_its_reason() -> None:
    lines = (ROOT / ".regal" / "config.yaml").read_text().splitlines()
    ignored = [line for line in lines if "level: ignore" in line]
    assert ignored
    assert [line for line in ignored if not re.search(r"# \w.{20,}", line)] == []


def test_opas_tests_pass_and_cover_every_file() -> None:
    done = ran(binary(), "test", "--bundle", "--coverage", ".")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    found = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.rego")}
    assert set(files) == found
    covered = {name: each.get("coverage", 0) for name, each in files.items()}
    assert {name: percent for name, percent in covered.items() if percent < COVERED_PERCENT} == {}


def test_every_test_passes_on_both_engines() -> None:
    results = run_tests(SHIPPED, str(binary()))
    assert [result for result in results if not result.passed] == []
    names = {engine: {r.name for r in results if r.engine == engine} for engine in ("embedded", "opa")}
    assert names["embedded"] == names["opa"]
    assert len(names["opa"]) > 100


def test_every_public_rule_says_what_it_is() -> None:
    for module in load(SHIPPED).modules:
        undocumented = [name for name, line in public_rules(module.text) if not documented(module.text, line)]
        assert (module.file, undocumented) == (module.file, [])


def test_every_entry_point_is_annotated_as_one() -> None:
    for module in load(SHIPPED).modules:
        for name, line in public_rules(module.text):
            is_entry = "entrypoint: true" in annotation(module.text, line)
            assert is_entry == (name in ENTRY_POINTS), f"{module.file}:{line}"


def public_rules(text: str) -> list[tuple[str, int]]:
    """The first line of every rule whose name does not begin with `_`."""
    lines: dict[str, int] = {}
    for statement in statements("", text):
        name = statement[1] if statement[0].text == "default" else statement[0]
        if name.text not in ("package", "import") and not name.text.startswith("_"):
            lines.setdefault(name.text, name.line)
    return list(lines.items())


def annotation(text: str, line: int) -> str:
    """The comment right above a line."""
    above: list[str] = []
    for each in reversed(text.splitlines()[: line - 1]):
        if not each.startswith("#"):
            break
        above.insert(0, each)
    return "\n".join(above)


def documented(text: str, line: int) -> bool:
    said = annotation(text, line)
    return said.startswith("# METADATA\n") and "# title: " in said and "# description: " in said
