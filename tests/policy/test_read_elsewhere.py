"""What other packages read of one is found through imports, paths and the rules between."""

import pytest

from policy.bundle import Module
from policy.read_elsewhere import Read, read_elsewhere

OF = ("bursar", "admission")
OWN = Module(
    "a.rego",
    """package bursar.admission

import data.bursar.tools

decision := tools.checks if granted

granted := data.bursar.admission.offers

default open_for_work := false

open_for_work if _row["exempt"]

_row := data.bursar.admission.rows[input.app]
""",
)


def read(text: str, package: str = "bursar.tools") -> Read:
    return read_elsewhere((OWN, Module("t.rego", f"package {package}\n\n{text}\n")), OF)


def named(found: Read) -> set[str] | None:
    """The rules and tables of the package that are read; other words of its clauses stand among them."""
    names = found.below(OF)
    return None if names is None else set(names) & {"decision", "granted", "open_for_work", "_row", "rows", "offers"}


@pytest.mark.parametrize(
    "text",
    [
        "import data.bursar.admission\n\nx if admission.open_for_work",
        "import data.bursar.admission as a\n\nx if a.open_for_work",
        'import data.bursar.admission as a\n\nx if a["open_for_work"]',
        "import data.bursar.admission.open_for_work\n\nx if open_for_work",
        'import data.bursar.admission["open_for_work"]\n\nx if open_for_work',
        "import data.bursar as all\n\nx if all.admission.open_for_work",
        "x if data.bursar.admission.open_for_work",
    ],
)
def test_a_rule_is_read_with_all_that_it_is_made_of(text: str) -> None:
    found = read(text)
    assert named(found) == {"open_for_work", "_row", "rows"}
    assert "exempt" in found.words


def test_a_table_may_be_read_by_itself() -> None:
    assert named(read("x := data.bursar.admission.offers")) == {"offers"}


@pytest.mark.parametrize(
    "text",
    [
        "import data.bursar.admission as a\n\nx if a[input.name]",
        "x if data.bursar[input.name]",
        "x := data",
        'x := y if {\n\tall := data.bursar.admission\n\t["offers"][0] == "offers"\n\ty := all[input.name]\n}',
    ],
)
def test_a_computed_name_may_be_any(text: str) -> None:
    assert named(read(text)) is None


def test_a_computed_name_in_a_rule_that_is_read_may_be_any() -> None:
    picks = Module("p.rego", "package bursar.admission\n\npicked := data.bursar.admission[input.name]\n")
    reads = Module("t.rego", "package bursar.tools\n\nx if data.bursar.admission.picked\n")
    assert named(read_elsewhere((OWN, picks), OF)) == set()
    assert named(read_elsewhere((OWN, picks, reads), OF)) is None


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("import data.bursar.admission\n\nx := 1", "bursar.tools"),
        ("x := data.bursar.risk.models", "bursar.tools"),
        ("x := data.bursar.admission.offers", "bursar.admission"),
    ],
)
def test_an_import_alone_another_package_and_the_package_itself_read_nothing(text: str, package: str) -> None:
    assert read(text, package).below(OF) == frozenset()


def test_what_others_read_is_told_of_any_package_that_the_rules_between_lead_to() -> None:
    assert read("x := data.bursar.admission.decision").below(("bursar", "tools")) == {"checks", "x"}
    assert "checks" not in (read("x := data.bursar.admission.granted").below(("bursar", "tools")) or ())
