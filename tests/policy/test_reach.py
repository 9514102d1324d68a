"""Reach: what an entry point may refer to is compiled with it, and nothing else."""

from dataclasses import replace

import pytest

from policy.bundle import Module, load
from policy.port import ADMISSION, CHANGE, ENTRIES
from policy.reach import reachable
from policy.session import BundleSession

from .conftest import SHIPPED


def module(package: str, body: str = "") -> Module:
    return Module(f"{package}.rego", f"package {package}\n\nimport rego.v1\n\n{body}\n")


def names(modules: tuple[Module, ...]) -> list[str]:
    return [each.file.removesuffix(".rego") for each in modules]


@pytest.mark.parametrize(
    "body",
    [
        "import data.a.b",
        "import data.a.b as other",
        "import data.a.b.rule",
        "x := data.a.b.rule",
        'x := data["a"].b.rule',
        "x := data.a[input.name].rule",
        "x := data[input.name]",
        "x := data",
        'x if {\n\ty := data.a\n\t["other"][0] == "other"\n\ty.b.rule\n}',
    ],
)
def test_a_package_that_may_be_meant_is_reached(body: str) -> None:
    modules = (module("entry", body), module("a.b"), module("entry.below"))
    assert "a.b" in names(reachable(modules, "entry/decision"))


def test_what_is_reached_reaches_on_and_circles_end() -> None:
    modules = (module("a", "import data.b"), module("b", "import data.c"), module("c", "import data.a"), module("d"))
    assert names(reachable(modules, "a/decision")) == ["a", "b", "c"]


def test_every_module_of_a_package_is_reached() -> None:
    first, second = module("a", "import data.b"), Module("more.rego", "package a\n\nx := data.c\n")
    assert names(reachable((first, second, module("b"), module("c")), "a/decision")) == ["a", "more", "b", "c"]


def test_packages_that_only_begin_alike_are_not_reached() -> None:
    modules = (module("a", "x := data.bee.rule"), module("be"), module("bee.other"))
    assert names(reachable(modules, "a/decision")) == ["a"]


def test_an_admission_reaches_no_gate_of_the_shipped_bundle() -> None:
    modules = load(SHIPPED).modules
    packages = [each.file.split("/")[1] for each in reachable(modules, ADMISSION)]
    assert packages == ["admission", "budget", "risk", "tools"]
    assert [each.file.split("/")[1] for each in reachable(modules, CHANGE)] == ["budget", "change"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_point_answers_alone_as_with_all_others(shipped: BundleSession, entry: str) -> None:
    bundle = load(SHIPPED)
    alone = replace(bundle, modules=reachable(bundle.modules, entry))
    assert BundleSession(alone, [entry]).evaluate(entry, {}) == shipped.evaluate(entry, {})
