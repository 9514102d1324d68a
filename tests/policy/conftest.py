"""Fixtures of the policy tests: the shipped bundle, bundles written for one test, and a fake engine."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from policy.bundle import load
from policy.port import Answer, PolicyInput
from policy.session import BundleSession

SHIPPED = Path(__file__).resolve().parents[2] / "rego"

RULES = """package bursar.admission

import rego.v1

decision := {"allow": allow, "reasons": [], "obligations": {"priority": data.bursar.admission.priority}}

default allow := false

allow if input.principal.org == "acme"
"""

RULES_TEST = """package bursar.admission_test

import rego.v1

import data.bursar.admission

test_acme_is_admitted if {
	admission.decision.allow with input as {"principal": {"org": "acme"}}
}

test_others_are_not if {
	decision := admission.decision with input as {"principal": {"org": "evil"}}
	not decision.allow
}
"""

WriteBundle = Callable[..., Path]


class FakeEngine:
    """Answers what it was given, and counts how often it was asked."""

    def __init__(self, answer: object, revision: str = "sha256:fake") -> None:
        self.revision = revision
        self.answer = answer
        self.asked: list[bytes] = []
        self.away_since_s: float | None = None
        self.go_on: asyncio.Event | None = None

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        self.asked.append(input_json)
        revision, answer = self.revision, self.answer
        if self.go_on is not None:
            await self.go_on.wait()
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, revision)

    async def close(self) -> None:
        """Nothing to end."""


@pytest.fixture(scope="session")
def shipped() -> BundleSession:
    return BundleSession(load(SHIPPED))


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def request_facts() -> PolicyInput:
    return PolicyInput("acme", "search", "web", ("dev",), "internal", "chat", "sim-large")


@pytest.fixture
def write_bundle(tmp_path: Path) -> WriteBundle:
    """Writes a bundle that can serve, with the files given laid over it; None leaves a file out."""

    def write(files: dict[str, str | None] | None = None) -> Path:
        root = tmp_path / "bundle"
        written: dict[str, str | None] = {
            "bursar/admission/admission.rego": RULES,
            "bursar/admission/admission_test.rego": RULES_TEST,
            "bursar/admission/data.json": '{"priority": 3}',
        }
        for name, text in (written | (files or {})).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text, encoding="utf-8")
        return root

    return write
