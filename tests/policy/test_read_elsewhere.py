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


def named(found: Read) -> set[str]:
    """The rules and tables of the package that are read; other words of its clauses stand among them."""
    return set(found.names) & {"decision", "granted", "open_for_work", "_row", "rows", "offers"}


@pytest.mark.parametrize(
    "text",
    [
        "import data.bursar.admission\n\nx if admission.open_for_work",
        "import data.bursar.admission as a\n\nx if a.open_for_work",
        'import data.bursar.admission as a\n\nx if a["open_for_work"]',
        "import data.bursar.admission.open_for_work\n\nx if open_for_work",
        "import data.bursar as all\n\nx if all.admission.open_for_work",
        "x if data.bursar.admission.open_for_work",
    ],
)
def test_a_rule_is_read_with_all_that_it_is_made_of(text: str) -> None:
    found = read(text)
    assert named(found) == {"open_for_work", "_row", "rows"}
    assert "exempt" in found.words
    assert not found.is_whole


def test_a_table_may_be_read_by_itself() -> None:
    assert named(read("x := data.bursar.admission.offers")) == {"offers"}


@pytest.mark.parametrize(
    "text",
    [
        "import data.bursar.admission as a\n\nx if a[input.name]",
        "x if data.bursar[input.name]",
        "x := data",
    ],
)
def test_a_computed_name_may_be_any(text: str) -> None:
    assert read(text).is_whole


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("import data.bursar.admission\n\nx := 1", "bursar.tools"),
        ("x := data.bursar.risk.models", "bursar.tools"),
        ("x := data.bursar.admission.offers", "bursar.admission"),
    ],
)
def test_an_import_alone_another_package_and_the_package_itself_read_nothing(text: str, package: str) -> None:
    assert read(text, package) == Read()


def test_a_package_that_does_not_count_reads_nothing() -> None:
    modules = (OWN, Module("t.rego", "package bursar.tools\n\nx := data.bursar.admission.offers\n"))
    assert read_elsewhere(modules, OF, ("bursar", "tools")) == Read()
