"""A name below `data` that a bundle has not is refused, and what nobody can tell is let be."""

from pathlib import Path

import pytest

from policy.bundle import load
from policy.lint import Problem, unknown_names

ADMISSION = """package bursar.admission

import rego.v1

import data.bursar.risk
import data.bursar.risk as worry
import data.shared.bursar

{rule}

row := data.bursar.admission.rows[input.team]
"""


def found(folder: Path, rule: str) -> list[Problem]:
    """The unknown names of a bundle with this rule, two packages, and tables of a package and of a mere folder."""
    for file, text in {
        "bursar/admission/admission.rego": ADMISSION.format(rule=rule),
        "bursar/admission/data.json": '{"rows": {"search": {"model": "sim"}}}',
        "bursar/house/data.json": '{"banned": {"web": true}}',
        "bursar/risk/risk.rego": "package bursar.risk\n\nlevel := 1\n",
        "bursar/risk/more.rego": "package bursar\n\nrisk.score := 1\n",
        "shared/bursar/data.json": '{"limit": 3}',
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    bundle = load(folder)
    return unknown_names(bundle.modules, bundle)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("x if not data.bursar.house.baned[input.app]", "bursar.house.baned"),
        ("x if not data.bursar.huose.banned[input.app]", "bursar.huose"),
        ('x if not data.bursar.house["baned"]', "bursar.house.baned"),
        ("x if not data.busar", "busar"),
        ("x if not data.bursar.admission.row_of[input.app]", "bursar.admission.row_of"),
        ("x if not risk.levl", "bursar.risk.levl"),
        ("x if not worry.levl == 1", "bursar.risk.levl"),
    ],
)
def test_a_name_that_is_not_there_is_a_mistake_with_its_line(tmp_path: Path, rule: str, name: str) -> None:
    message = f"data.{name} is no package, rule or table of this bundle"
    assert found(tmp_path, rule) == [("bursar/admission/admission.rego", 9, message)]


@pytest.mark.parametrize(
    "rule",
    [
        "x if not data.bursar.house.banned[input.app]",
        "x if not data.bursar.house.banned.nobody.knows",
        "x if not data.bursar[input.package].rows",
        "x if not data.bursar.admission.rows.search.nobody_knows",
        "x if risk.level == worry.level",
        "x if data.bursar.risk.score == risk.score",
        "x if row with data.bursar.nowhere as 1",
        "x if { risk := input.risk; risk.levl }",
        "x := data",
    ],
)
def test_a_name_that_is_there_or_is_somebody_elses_is_none(tmp_path: Path, rule: str) -> None:
    assert found(tmp_path, rule) == []
