"""What the documents say exists, and what exists that they must say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_group

from gateway import approvals_config, config, errors, objectives, offers, quality_config, verification_config
from gateway.cli import app
from gateway.config_file import load
from gateway.errors import ErrorKind
from observability import names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"`((?:domain|policy|ledger|runtime|observability|gateway|tests|bench|rego|docs)/[\w./-]+\.\w+)`")
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"(?m)^#+ (.+)$")
ROW = re.compile(r"(?m)^\| `(\w+)` \|")
SECTIONS: dict[str, type[BaseModel]] = {
    "env": config.Environment,
    "listen": config.Listen,
    "limits": config.Limits,
    "book": config.Book,
    "policy": config.Policy,
    "ledger": config.Ledger,
    "telemetry": config.Telemetry,
    "webhooks": config.Webhook,
    "runtimes": config.Runtime,
    "runtimes.work": offers.Work,
    "runtimes.sim": offers.Sim,
    "models": config.Model,
    "models.price": offers.Price,
    "budgets": config.Budget,
    "budgets.scope": config.Scope,
    "approvals": approvals_config.ApprovalRules,
    "slos": objectives.Slo,
    "slos.scope": objectives.SloScope,
    "slos.fast": objectives.FastAlert,
    "slos.slow": objectives.SlowAlert,
    "quality": quality_config.Quality,
    "verify": verification_config.Verify,
    "verify.pii": verification_config.Pii,
    "verify.second_model": verification_config.SecondModel,
}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The headings of a document as its readers' links spell them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text(document))}


def commands(group: TyperGroup) -> Iterator[str]:
    """Every command of the command line, as it is typed."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        if isinstance(command, TyperGroup):
            yield from (f"{name} {each}" for each in commands(command))
        else:
            yield name


@each_document
def test_relative_links_resolve(document: Path) -> None:
    for link in LINK.findall(text(document)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_document
def test_every_file_that_is_named_exists(document: Path) -> None:
    assert [file for file in PATH.findall(text(document)) if not list(ROOT.glob(file))] == []


@each_document
def test_every_command_that_is_shown_exists(document: Path) -> None:
    known = set(commands(get_group(app)))
    known |= {" ".join(command.split(" ")[:2]) for command in known}  # as much as is looked for below
    shown = re.findall(r"(?m)(?:^ {4}|`)bursar ([a-z]+(?: [a-z]+)?)", text(document))
    assert [command for command in shown if command not in known and command.split(" ")[0] not in known] == []


@each_document
def test_every_make_target_that_is_shown_exists(document: Path) -> None:
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert set(re.findall(r"(?m)(?:^ {4}|`)make (\w+)", text(document))) - targets == set()


@each_document
def test_every_metric_that_is_shown_exists(document: Path) -> None:
    known = {value for value in vars(names).values() if isinstance(value, str)}
    assert set(re.findall(r"`(bursar_\w+)[`{]", text(document))) - known == set()


def test_every_command_is_in_the_readme() -> None:
    readme = text(ROOT / "README.md")
    assert [command for command in commands(get_group(app)) if f"`bursar {command}`" not in readme] == []


def test_every_metric_is_in_the_operations() -> None:
    own = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("bursar_")}
    assert own - set(re.findall(r"`(bursar_\w+)`", text(ROOT / "docs" / "operations.md"))) == set()


def test_every_error_is_in_the_table_of_errors_with_its_status_and_type() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, ErrorKind)]
    rows = re.findall(r"(?m)^\| (\d+) \| `(\w+)` \| (.*?) \|.*\| (.*?) ?\|$", text(ROOT / "docs" / "errors.md"))
    assert len(kinds) > 10
    assert {(int(status), code) for status, code, _, _ in rows} == {(kind.status, kind.code) for kind in kinds}
    for kind in kinds:
        _, _, types, headers = next(row for row in rows if row[1] == kind.code)
        assert f"`{kind.type}`" in types
        assert ("`retry-after`" in headers) == kind.retryable


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_the_configuration_is_documented(section: str) -> None:
    page = text(ROOT / "docs" / "configuration.md")
    part = page.split(f"## `{section}`\n", 1)[1].split("\n## ", 1)[0]
    assert ROW.findall(part) == list(SECTIONS[section].model_fields)


def test_no_section_of_the_configuration_is_missing() -> None:
    assert config.Config.model_fields.keys() - SECTIONS.keys() == {"version"}


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    example = re.search(r"(?s)```yaml\n(.*?)```", text(ROOT / "README.md"))
    assert example is not None
    (tmp_path / "rego").mkdir()
    (tmp_path / "bursar.yaml").write_text(example[1], encoding="utf-8")
    assert load(tmp_path / "bursar.yaml", env={}).config.models[0].id == "sim-small"


def test_decisions_are_numbered_without_gaps_and_short() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    assert [file.name for file in files if len(text(file).splitlines()) > 40] == []
    for file in files:
        assert text(file).startswith(f"# {file.name[:4]} ")
        assert all(f"**{part}.**" in text(file) for part in ("Context", "Decision", "Consequence"))
