"""Gates decide by the bundle: what is unknown, missing or expired is a no that names it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from domain.decision import Decision, Obligations, Reason
from gateway.composition import SHIPPED_BUNDLE
from gateway.config_file import LoadedConfig, load
from gateway.gates import Verdict, ask_here, launch, moment, release, said
from policy.port import PolicyUnavailable
from tests.gateway.deployment import KEY_ENV, deploy

MONDAY_NOON_S = 1_771_848_000  # 2026-02-23T12:00:00Z
ENVIRON = {KEY_ENV: "x"}
ROOM: dict[str, Any] = {
    "scope": {"org": "acme", "team": "search", "app": "web", "model": ""},
    "headroom": {"budget": 900, "risk": 1000, "error_budget": 800, "overall": 800},
    "slos": [
        {"id": "fast", "remaining_permille": 800, "fast_burn_milli": 0, "slow_burn_milli": 100, "state": "ok"},
    ],
}


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedConfig:
    """A configuration with the shipped bundle beside it, which tests may change."""
    config = deploy(tmp_path, "http://127.0.0.1:9")
    shutil.rmtree(tmp_path / "rego")
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "rego")
    return load(config, ENVIRON)


async def launched(loaded: LoadedConfig, target_id: str, env: str, at_s: int = MONDAY_NOON_S) -> Verdict:
    return await ask_here("launch", target_id, launch("model", target_id, env, at_s), loaded, ENVIRON)


async def released(
    loaded: LoadedConfig, level: str | None = "normal", at_s: int = MONDAY_NOON_S, **room: Any
) -> Verdict:
    document = release("1.2", "prod", {**ROOM, **room}, level, at_s, freeze=False)
    return await ask_here("release", "web@1.2", document, loaded, ENVIRON)


def codes(verdict: Verdict) -> set[str]:
    assert verdict.allow == (not verdict.reasons)
    return {reason.code for reason in verdict.reasons}


def evidence(loaded: LoadedConfig, **changes: Any) -> None:
    """Write one piece of evidence for the smallest model into the bundle."""
    table = loaded.path.parent / "rego" / "bursar" / "launch" / "data.json"
    usual = {
        "id": "eval-1",
        "kind": "evaluation",
        "target": {"kind": "model", "id": "sim-small"},
        "tier": "low",
        "env": "prod",
        "by": "safety",
        "reference": "https://reports.example/eval-1",
        "score_permille": 970,
        "at_s": MONDAY_NOON_S - 86_400,
        "expires_at_s": MONDAY_NOON_S + 86_400,
    }
    whole = json.loads(table.read_text())
    table.write_text(json.dumps({**whole, "evidence": [{**usual, **changes}]}))


async def test_a_model_with_its_evidence_may_be_enabled(loaded: LoadedConfig) -> None:
    evidence(loaded)
    verdict = await launched(loaded, "sim-small", "prod")
    assert codes(verdict) == set()
    assert verdict.revision.startswith("sha256:")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "red_team"}, "evidence_missing"),
        ({"expires_at_s": MONDAY_NOON_S}, "evidence_expired"),
        ({"target": {"kind": "model", "id": "sim-large"}, "tier": "low"}, "evidence_wrong_tier"),
        ({"env": "dev"}, "evidence_wrong_environment"),
    ],
)
async def test_evidence_that_does_not_count_is_named(loaded: LoadedConfig, changes: dict[str, Any], code: str) -> None:
    evidence(loaded, **changes)
    verdict = await launched(loaded, changes.get("target", {"id": "sim-small"})["id"], "prod")
    assert code in codes(verdict)
    assert not verdict.allow


async def test_an_unknown_target_is_named(loaded: LoadedConfig) -> None:
    assert "target_unknown" in codes(await launched(loaded, "nothing", "prod"))


async def test_a_release_with_room_goes_ahead_in_working_hours(loaded: LoadedConfig) -> None:
    assert codes(await released(loaded)) == set()
    assert "outside_window" in codes(await released(loaded, at_s=MONDAY_NOON_S - 86_400))


@pytest.mark.parametrize("level", ["high", "critical", None])
async def test_a_release_at_risk_or_at_an_unknown_one_does_not(loaded: LoadedConfig, level: str | None) -> None:
    assert "risk_too_high" in codes(await released(loaded, level))


async def test_a_release_without_room_does_not(loaded: LoadedConfig) -> None:
    short = {"budget": 100, "risk": 1000, "error_budget": 800, "overall": 100}
    assert codes(await released(loaded, headroom=short))
    burning = [{**ROOM["slos"][0], "state": "burning"}]
    assert "slos_unhealthy" in codes(await released(loaded, slos=burning))


async def test_a_bundle_that_says_nothing_of_gates_is_no_go_ahead(tmp_path: Path) -> None:
    loaded = load(deploy(tmp_path, "http://127.0.0.1:9"), ENVIRON)
    shutil.rmtree(tmp_path / "rego")
    shutil.copytree(SHIPPED_BUNDLE, tmp_path / "rego", ignore=shutil.ignore_patterns("launch", "launch.json"))
    with pytest.raises(PolicyUnavailable):
        await launched(loaded, "sim-small", "dev")


def decided(
    *, allow: bool = False, reasons: tuple[Reason, ...] = (), obligations: Obligations | None = None
) -> Decision:
    return Decision("d", allow, reasons, obligations or Obligations(), "sha256:1", "digest")


def test_a_go_ahead_with_obligations_is_none() -> None:
    decision = decided(allow=True, obligations=Obligations(verify=("human",)))
    verdict = said("launch", "x", {}, decision)
    assert not verdict.allow
    assert [reason.code for reason in verdict.reasons] == ["obligations"]


def test_a_verdict_shows_reasons_revision_and_what_was_asked() -> None:
    decision = decided(reasons=(Reason("no", "No."),))
    assert said("launch", "x", {"env": {}}, decision).view() == {
        "gate": "launch",
        "subject": "x",
        "allow": False,
        "reasons": [{"code": "no", "message": "No."}],
        "policy_revision": "sha256:1",
        "asked": {"env": {}},
    }


def test_a_time_is_in_utc_and_its_week_begins_on_monday() -> None:
    assert moment(MONDAY_NOON_S) == {"weekday": 0, "minute": 720, "s": MONDAY_NOON_S}
    assert moment(MONDAY_NOON_S + 86_400 * 6 + 60) == {
        "weekday": 6,
        "minute": 721,
        "s": MONDAY_NOON_S + 86_400 * 6 + 60,
    }
