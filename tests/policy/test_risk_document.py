"""The example and the numbers of `docs/risk.md` are what the code makes of the shipped scoring."""

import json
from pathlib import Path

import pytest

from policy.risk import APP, GRAINS, SCOPES_MAX, Scope, Tracker
from policy.scoring import LEVELS, SIGNALS, Scoring, parse_scoring
from policy.spend import SpendRule

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "risk.md").read_text(encoding="utf-8")
WEB = Scope(APP, ("acme", "search", "web"))
HAPPENS = (
    (0, "verification_failed", 3, "three verifications fail"),
    (60, "tool_blocked", 8, "eight tools are blocked"),
    (300, "spend_anomaly", 1, "its spend is an anomaly"),
    (360, "rollback", 3, "three of its changes are rolled back"),
)


@pytest.fixture
def shipped() -> Scoring:
    return parse_scoring(json.loads((ROOT / "rego" / "bursar" / "risk" / "data.json").read_bytes())["score"])


def test_the_numbers_are_those_of_the_shipped_bundle(shipped: Scoring) -> None:
    cells = {cell.strip() for line in DOCUMENT.splitlines() if line.startswith("|") for cell in line.split("|")}
    for signal, weight in zip(SIGNALS, shipped.weights_milli, strict=True):
        assert any(f"`{signal}`" in line and f"| {weight} |" in line for line in DOCUMENT.splitlines()), signal
    for level, rises, falls in zip(LEVELS[1:], shipped.rises_at_milli, shipped.falls_at_milli, strict=True):
        assert f"| {level} | {rises} | {falls} |" in DOCUMENT
    assert {"rises at", "falls under"} <= cells
    times = f'"half_life_s": {shipped.half_life_s}, "dwell_s": {shipped.dwell_s}'
    assert f'{times}, "score_max_milli": {shipped.score_max_milli}' in DOCUMENT


def test_the_example_is_what_happens(shipped: Scoring) -> None:
    tracker, rows = Tracker(shipped), []
    for at_s, signal, count, said in HAPPENS:
        tracker.observe(signal, *WEB.names, "", at_s, count)
        rows.append(f"| {at_s} s | {said} | {tracker.score(WEB, at_s) // GRAINS} | {tracker.level(WEB)} |")
    for change in tracker.tick(100_000):
        if change.scope == WEB:
            rows.append(f"| {change.at_s} s | nothing more | {change.score_milli} | {change.level} |")
    assert "\n".join(rows) in DOCUMENT


def test_the_way_down_from_the_highest_score_takes_as_long_as_is_said(shipped: Scoring) -> None:
    tracker = Tracker(shipped)
    tracker.raise_to(WEB, 10**18, 0)
    said = {change.level: change.at_s // 60 for change in tracker.tick(100_000)}
    text = "at `high` after {high} minutes, at `elevated` after {elevated} and at `normal` after {normal}."
    assert text.format(**said) in DOCUMENT


def test_bounds_and_the_rule_of_spend_are_as_is_said() -> None:
    teams, apps, runs = SCOPES_MAX
    assert f"{teams:,} teams, {apps:,} apps and {runs:,} runs" in DOCUMENT
    rule = SpendRule()
    assert f"last {rule.memory} such minutes" in DOCUMENT
    assert f"more than {rule.times} times that" in DOCUMENT
    assert f"{rule.floor_nusd / 1e9:.2f} USD" in DOCUMENT
    assert f"once {rule.samples_min} such minutes" in DOCUMENT
