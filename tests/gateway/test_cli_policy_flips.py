"""What-if on the command line: what differs between two bundles, and what would have flipped of what is on record."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.ids import uuid7
from gateway.cli import policy_diff, policy_flips
from gateway.cli.output import brief
from ledger import client, decisions
from tests.gateway.decisions_on_record import FILE, NEW_CAPS, RULES, Named, Recording, recorded, write_bundle
from tests.gateway.deployment import closed_port
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran


@pytest.fixture(scope="module")
def on_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recording, Named]]:
    with recorded(tmp_path_factory.mktemp("what-if")) as found:
        yield found


def backtest(of: Recording, *options: str) -> Any:
    return answer("policy", "backtest", "--bundle", str(of.new), "--json", *options, home=of.home)


def test_a_backtest_adds_up_what_flips(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    found = backtest(of)
    assert (found["inputs"], found["requests"], found["list_cost_nusd"]) == (4, 6, 7_000_004_000)
    assert found["allowed_to_denied"] == {"inputs": 1, "requests": 1, "list_cost_nusd": 7_000_000_000}
    assert found["denied_to_allowed"] == {"inputs": 1, "requests": 1, "list_cost_nusd": 0}
    assert found["obligations_changed"] == {"inputs": 1, "requests": 3, "list_cost_nusd": 3_000}
    assert {(each["kind"], each["cause"]): each["requests"] for each in found["by_cause"]} == {
        ("allowed_to_denied", "team_unknown"): 1,
        ("denied_to_allowed", "team_unknown"): 1,
        ("obligations_changed", "max_output_tokens"): 3,
    }
    assert {each["team"]: (each["requests"], each["of_requests"]) for each in found["by_team"]} == {
        "search": (3, 3),
        "ads": (1, 1),
        "research": (1, 1),
    }
    assert (found["against"], found["failed"]) == ("recorded", 0)
    assert found["revision"] == of.engines[of.new].revision


def test_a_backtest_against_a_bundle_decides_by_both(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    found = backtest(of, "--against", str(of.old))
    assert found["against"] == of.engines[of.old].revision
    assert (found["inputs"], found["allowed_to_denied"]["inputs"]) == (4, 1)
    same = backtest(of, "--against", str(of.new))
    assert [same[kind]["inputs"] for kind in ("allowed_to_denied", "denied_to_allowed", "obligations_changed")] == [
        0
    ] * 3


def test_a_backtest_reaches_as_far_back_as_it_is_told(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    assert backtest(of, "--since", "31d")["inputs"] == 5
    assert backtest(of, "--since", "2100-01-01")["inputs"] == 0


def test_pages_hold_each_input_once(on_record: tuple[Recording, Named], monkeypatch: pytest.MonkeyPatch) -> None:
    of, _ = on_record
    whole = backtest(of)
    monkeypatch.setattr(decisions, "PAGE_ROWS", 1)
    paged = backtest(of)
    for once in ("since", "seconds"):
        del whole[once], paged[once]
    assert paged == whole


def test_pages_cover_every_digest() -> None:
    for found in (0, 1, decisions.PAGE_ROWS, decisions.PAGE_ROWS + 1, 10**6, 10**7):
        bounds = decisions.page_bounds(found)
        assert bounds[0][0] == ""
        assert bounds[-1][1] > "f" * 64
        assert [end for _, end in bounds[:-1]] == [begin for begin, _ in bounds[1:]]
        assert all(begin < end for begin, end in bounds)
        assert found / len(bounds) <= decisions.PAGE_ROWS


def test_a_flip_fails_the_command_where_that_is_asked(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    said = ran(NO, "policy", "backtest", "--bundle", str(of.new), "--fail-on-flip", home=of.home).stdout
    for text in ("allowed → denied", "team_unknown", "max_output_tokens", "acme/ads/web", "7.000000000", "a second"):
        assert text in said
    ran(DONE, "policy", "backtest", "--bundle", str(of.old), "--fail-on-flip", home=of.home)


def test_what_cannot_be_decided_is_counted_and_shown(on_record: tuple[Recording, Named], tmp_path: Path) -> None:
    of, _ = on_record
    broken = write_bundle(tmp_path / "broken", NEW_CAPS, RULES.replace("_cap}} if", '"many"}} if'))
    found = json.loads(
        ran(NO, "policy", "backtest", "--bundle", str(broken), "--json", "--fail-on-flip", home=of.home).stdout
    )
    assert found["failed"] == 3
    assert {each["cause"] for each in found["by_cause"]} == {"policy_unavailable", "team_unknown"}
    said = ran(DONE, "policy", "backtest", "--bundle", str(broken), home=of.home).stdout
    assert "3 inputs could not be decided, which denies: 3 times max_output_tokens must be an integer" in said


def test_bad_input_gets_a_line(on_record: tuple[Recording, Named], tmp_path: Path) -> None:
    of, _ = on_record
    write_bundle(tmp_path / "broken", NEW_CAPS, "package bursar.admission\n\nnot rego {\n")
    for code, arguments in (
        (WRONG_USAGE, ["backtest"]),
        (WRONG_USAGE, ["backtest", "--bundle", str(of.new), "--since", "yesterday"]),
        (WRONG_USAGE, ["backtest", "--bundle", str(tmp_path / "missing")]),
        (WRONG_USAGE, ["backtest", "--bundle", str(tmp_path / "broken"), "--fail-on-flip"]),
        (WRONG_USAGE, ["backtest", "--bundle", str(of.new), "--against", str(tmp_path / "missing")]),
        (WRONG_USAGE, ["diff"]),
        (WRONG_USAGE, ["diff", str(of.old), str(tmp_path / "missing")]),
        (WRONG_USAGE, ["diff", str(of.old), str(of.new), "--since", "soon"]),
        (WRONG_USAGE, ["shadow", "report", "--since", "soon"]),
        (WRONG_USAGE, ["explain"]),
    ):
        done = ran(code, "policy", *arguments, home=of.home, config=of.config)
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_one_folder_is_not_enough_where_an_opa_server_has_the_other(
    on_record: tuple[Recording, Named], tmp_path: Path
) -> None:
    of, _ = on_record
    whole = yaml.safe_load(of.config.read_text())
    whole["policy"] = {"url": "http://127.0.0.1:9"}
    remote = tmp_path / "remote.yaml"
    remote.write_text(yaml.safe_dump(whole))
    said = ran(WRONG_USAGE, "policy", "diff", str(of.new), home=of.home, config=remote).stderr
    assert "name two folders" in said
    assert "with --bundle" in ran(WRONG_USAGE, "policy", "check", home=of.home, config=remote).stderr


def test_a_ledger_that_is_away_is_three(
    on_record: tuple[Recording, Named], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, _ = on_record
    monkeypatch.setattr(client, "START_TIMEOUT_S", 1.0)
    whole = yaml.safe_load(of.config.read_text())
    whole["ledger"] = {"url": f"clickhouse://127.0.0.1:{closed_port()}/bursar"}
    away = tmp_path / "away.yaml"
    away.write_text(yaml.safe_dump(whole))
    home = tmp_path / "home"
    (home / "journal").mkdir(parents=True)
    done = ran(AWAY, "policy", "explain", uuid7(), home=home, config=away)
    assert "could not be opened" in done.stderr
    ran(AWAY, "policy", "diff", str(of.old), str(of.new), "--since", "7d", home=home, config=away)
    unasked = ran(DONE, "policy", "diff", str(of.old), str(of.new), home=home, config=away)
    assert "data.bursar.admission.caps.ads" in unasked.stdout
    assert "what flips is not known" in unasked.stderr


def test_a_difference_names_rules_and_values_and_what_flips(on_record: tuple[Recording, Named], tmp_path: Path) -> None:
    of, _ = on_record
    rules = RULES.replace('["team_unknown", "frozen"]', '["frozen", "team_unknown"]')
    new = write_bundle(tmp_path / "newer", NEW_CAPS, rules)
    found = answer("policy", "diff", str(of.old), str(new), "--json", home=of.home)
    assert [(each["change"], each["rule"], each["file"]) for each in found["rules"]] == [("changed", "reasons", FILE)]
    assert found["tables"] == [
        {"path": "data.bursar.admission.caps.ads", "before": 100},
        {"path": "data.bursar.admission.caps.research", "after": 10},
        {"path": "data.bursar.admission.caps.search", "before": 100, "after": 50},
    ]
    assert found["flips"]["allowed_to_denied"]["requests"] == 1
    said = ran(DONE, "policy", "diff", str(of.old), str(new), home=of.home).stdout
    for text in ("Rules: 1 differ", "Tables: 3 differ", f"{FILE}:{line_of(rules, 'reasons :=')}", "allowed → denied"):
        assert text in said


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_one_folder_is_compared_with_the_configured_one(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    found = answer("policy", "diff", str(of.new), "--json", home=of.home, config=of.config)
    assert (found["old"]["revision"], found["new"]["revision"]) == tuple(
        of.engines[root].revision for root in (of.old, of.new)
    )


def test_equal_bundles_differ_in_nothing_and_no_ledger_is_made(
    on_record: tuple[Recording, Named], tmp_path: Path
) -> None:
    of, _ = on_record
    copy = shutil.copytree(of.old, tmp_path / "copy")
    assert "nothing that serves differs" in ran(DONE, "policy", "diff", str(of.old), str(copy), home=tmp_path).stdout
    (copy / FILE).write_text(f"# A comment.\n{RULES}")
    said = ran(DONE, "policy", "diff", str(of.old), str(copy), home=tmp_path / "home").stdout
    assert "only comments, layout or schemas differ" in said
    assert not (tmp_path / "home").exists()


def test_long_answers_are_cut_and_say_so(
    on_record: tuple[Recording, Named], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, _ = on_record
    monkeypatch.setattr(policy_diff, "ROWS_MAX", 2)
    monkeypatch.setattr(policy_diff, "JSON_ROWS_MAX", 2)
    monkeypatch.setattr(policy_flips, "ROWS_MAX", 1)
    said = ran(DONE, "policy", "diff", str(of.old), str(of.new), home=of.home).stdout
    assert "and 1 more: see them with --json" in said
    assert "and 2 more: see them with --json" in said
    found = answer("policy", "diff", str(of.old), str(of.new), "--json", home=of.home)
    assert (len(found["tables"]), found["left_out"]) == (2, 1)


def test_a_shadow_is_compared_with_what_was_in_force(on_record: tuple[Recording, Named]) -> None:
    of, _ = on_record
    found = answer("policy", "shadow", "report", "--json", home=of.home)
    assert (found["inputs"], found["requests"]) == (2, 3)
    assert found["allowed_to_denied"] == {"inputs": 1, "requests": 1, "list_cost_nusd": 7_000_000_000}
    assert found["obligations_changed"]["requests"] == 2
    old, new = (of.engines[root].revision for root in (of.old, of.new))
    assert found["revisions"] == [{"enforced": old, "shadow": new, "inputs": 2}]
    said = f"{brief(new)} in the shadow of {brief(old)}: 2 inputs"
    assert said in ran(DONE, "policy", "shadow", "report", home=of.home).stdout
    nothing = ran(DONE, "policy", "shadow", "report", "--since", "2100-01-01", home=of.home).stdout
    assert "no shadow has decided anything since 2100-01-01" in nothing
    assert "bursar_policy_shadow_failures_total" in nothing


def test_a_wrong_table_fails_the_check_with_its_line(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", {"search": "many"})
    schema = root / "schemas" / "data" / "admission.json"
    schema.parent.mkdir(parents=True)
    schema.write_text('{"properties": {"caps": {"additionalProperties": {"type": "integer"}}}}')
    said = ran(NO, "policy", "check", "--bundle", str(root), home=tmp_path).stdout
    assert "bursar/admission/data.json:3: data.bursar.admission.caps.search: 'many' is not of type 'integer'" in said
    (root / "bursar/admission/data.json").write_text("{")
    assert "data.json:1:" in ran(NO, "policy", "check", "--bundle", str(root), home=tmp_path).stdout
    missing = str(tmp_path / "missing")
    assert ran(NO, "policy", "check", "--bundle", missing, home=tmp_path).stdout == f"{missing}: no such folder\n"
