"""Rego tests and checks: the shipped ones pass, and failures are reported as failures."""

import json
import os
import shutil
from pathlib import Path

import pytest

from policy.port import BundleError
from policy.testing import check, find_opa, run_tests

from .conftest import RULES_TEST, SHIPPED

FILE = "bursar/admission/admission.rego"
TEST_FILE = "bursar/admission/admission_test.rego"


@pytest.fixture(autouse=True)
def without_opa(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPA on the machine must not change what these tests see; the tests of OPA bring their own."""
    monkeypatch.setenv("PATH", "")


def test_every_shipped_rego_test_runs_and_passes() -> None:
    results = run_tests(SHIPPED)
    written = sum(path.read_text().count("\ntest_") for path in SHIPPED.rglob("*_test.rego"))
    assert len(results) == written > 100
    assert [result for result in results if not result.passed] == []
    assert {result.engine for result in results} == {"embedded"}


def test_the_shipped_bundle_has_no_problems() -> None:
    assert check(SHIPPED) == []


def test_the_shipped_tests_fail_when_the_policy_is_broken(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    rules = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(rules.replace("[input.principal.clearance] == true", ""))
    for other in {*tmp_path.rglob("*_test.rego")} - {tmp_path / TEST_FILE}:
        other.unlink()
    failed = {result.name.rpartition(".")[2] for result in run_tests(tmp_path) if not result.passed}
    assert "test_clearance_lower_than_the_models_is_denied" in failed


def test_a_failing_test_is_reported_with_its_place(write_bundle) -> None:
    failing = "\ntest_wrong if 1 == 2\n\ntest_not_true := 5\n"
    results = {r.name.rpartition(".")[2]: r for r in run_tests(write_bundle({TEST_FILE: RULES_TEST + failing}))}
    assert [name for name, result in results.items() if result.passed] == [
        "test_acme_is_admitted",
        "test_others_are_not",
    ]
    wrong = results["test_wrong"]
    assert (wrong.passed, wrong.file, wrong.line) == (False, TEST_FILE, RULES_TEST.count("\n") + 2)
    assert "undefined" in wrong.message
    assert "5" in results["test_not_true"].message


def test_a_test_that_conflicts_is_reported_as_failed(write_bundle) -> None:
    conflict = "\ntest_two if false\n\ntest_conflict := true if input == {}\n\ntest_conflict := 1 if input == {}\n"
    results = {r.name.rpartition(".")[2]: r for r in run_tests(write_bundle({TEST_FILE: RULES_TEST + conflict}))}
    assert not results["test_conflict"].passed
    assert "conflict" in results["test_conflict"].message


def test_a_bundle_without_tests_has_no_results(write_bundle) -> None:
    assert run_tests(write_bundle({TEST_FILE: None})) == []


def test_tests_that_do_not_compile_are_an_error_not_a_pass(write_bundle) -> None:
    root = write_bundle({TEST_FILE: RULES_TEST + "\ntest_broken if {\n"})
    with pytest.raises(BundleError) as caught:
        run_tests(root)
    assert caught.value.file == TEST_FILE
    assert [problem.file for problem in check(root)] == [TEST_FILE]


def test_a_check_lists_every_mistake_in_its_place(write_bundle) -> None:
    root = write_bundle({FILE: "package bursar.admission\nimport rego.v1\ndecision := typo\nother := max([1])\n"})
    assert [(problem.file, problem.line) for problem in check(root)] == [(FILE, 3), (FILE, 4)]


def test_a_check_reports_what_cannot_be_loaded_or_has_no_decision(write_bundle, tmp_path: Path) -> None:
    assert [problem.message for problem in check(tmp_path / "none")] == ["no such folder"]
    root = write_bundle({FILE: "package bursar.admission\nimport rego.v1\nother := 1\n", TEST_FILE: None})
    assert ["no rule" in problem.message for problem in check(root)] == [True]


def opa(tmp_path: Path, output: str, code: int = 0) -> str:
    """A program that stands for OPA: prints what OPA printed, and leaves its arguments behind."""
    script = tmp_path / "opa"
    script.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/arguments'\n/bin/cat <<'END'\n{output}\nEND\nexit {code}\n"
    )
    script.chmod(0o755)
    return str(script)


def test_opas_results_stand_beside_the_embedded_ones(write_bundle, tmp_path: Path) -> None:
    root = write_bundle()
    place = {"file": f"{root}/{TEST_FILE}", "row": 7}
    said = [{"location": place, "package": "data.p", "name": name} for name in ("test_a", "test_b")]
    output = json.dumps([said[0], said[1] | {"fail": True}])
    results = [result for result in run_tests(root, opa(tmp_path, output, 2)) if result.engine == "opa"]
    assert [(r.name, r.passed, r.file, r.line) for r in results] == [
        ("data.p.test_a", True, TEST_FILE, 7),
        ("data.p.test_b", False, TEST_FILE, 7),
    ]
    assert (tmp_path / "arguments").read_text() == f"test --bundle --format json {root}\n"


def test_opas_errors_are_problems(write_bundle, tmp_path: Path) -> None:
    root = write_bundle()
    output = f'{{"errors": [{{"message": "unused", "location": {{"file": "{root}/{FILE}", "row": 4}}}}]}}'
    assert [tuple(problem) for problem in check(root, opa(tmp_path, output, 1))] == [(FILE, 4, "unused")]
    with pytest.raises(BundleError, match="unused"):
        run_tests(root, opa(tmp_path, output, 1))


def test_an_opa_that_answers_nonsense_is_an_error(write_bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nonsense"):
        run_tests(write_bundle(), opa(tmp_path, "nonsense"))
    with pytest.raises(BundleError, match="cannot be run"):
        run_tests(write_bundle(), str(tmp_path / "nowhere"))


def test_opa_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_opa() is None
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/nowhere"]))
    program = opa(tmp_path, "")
    assert find_opa() == program
