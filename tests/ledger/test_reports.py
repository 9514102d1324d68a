"""Reports add up to the last nano-dollar and cannot be bent."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ledger.journal import Journal
from ledger.reports import KINDS, BadReport, report
from ledger.shipper import Shipper
from ledger.store import Store

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)


def us(**ago):
    """The time so long before NOW."""
    return int((NOW - timedelta(**ago)).timestamp() * 1_000_000)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs reports over a few known rows."""
    home = tmp_path_factory.mktemp("home")
    rows = [
        {"ts_us": us(hours=1), "team": "a", "model": "m", "status": "ok", "list_cost_nusd": 9_007_199_254_740_993},
        {"ts_us": us(hours=2), "team": "a", "model": "m", "status": "ok", "list_cost_nusd": 1},
        {"ts_us": us(days=1), "team": "b", "model": "n", "status": "cut", "list_cost_nusd": 7, "gpu_us": 1_234_567},
        {"ts_us": us(days=1), "team": "b", "model": "m", "input_tokens": 300, "cached_input_tokens": 100},
        {"ts_us": us(days=9), "team": "b", "model": "m", "status": "ok", "list_cost_nusd": 5},
        {"ts_us": us(minutes=5), "team": "a", "model": "m", "status": "adjusted", "list_cost_nusd": -1, "gpu_us": 5},
        *[{"ts_us": us(hours=n), "team": "c", "status": "refused", "error_code": "insufficient_quota"} for n in (3, 4)],
    ]
    journal = Journal.open(home / "journal" / "w", snapshot=dict)
    for row in rows:
        journal.append("usage", {"org": "acme", **row})
    for name, team, value, ago in (
        ("policy_violation", "a", 40, {"minutes": 5}),
        ("policy_violation", "a", 2, {"hours": 1}),
        ("tool_blocked", "b", 1, {"hours": 2}),
        ("tool_blocked", "b", 9, {"days": 9}),
    ):
        journal.append("signal", {"ts_us": us(**ago), "org": "acme", "name": name, "team": team, "value": value})
    journal.close()
    store = Store(f"chdb://{home}/ledger")
    Shipper(home / "journal", store).round()
    reader = store.connect({"readonly": 1})

    def run(kind, **options):
        made = report(kind, now=NOW, **options)
        found = [json.loads(line) for line in bytes(reader.raw_query(made.sql, fmt="JSONEachRow")).splitlines()]
        assert all(tuple(row) == made.columns for row in found)
        return found

    yield run
    store.close()


def test_spend_is_exact_to_the_nano_dollar(ask):
    spend = {row["team"]: row for row in ask("spend")}
    assert spend["a"]["list_cost_usd"] == "9007199.254740993"
    assert spend["b"]["list_cost_usd"] == "0.000000007"
    assert (spend["a"]["requests"], spend["b"]["requests"], spend["c"]["requests"]) == (2, 2, 0)


def test_an_adjustment_is_summed_and_is_no_request(ask):
    [gpu] = [row for row in ask("gpu", group_by=["team"], since="3h") if row["team"] == "a"]
    assert (gpu["requests"], gpu["gpu_s"]) == (2, "0.000005")
    by_status = {
        row["status"]: row for row in ask("spend", group_by=["team", "status"], since="3h") if row["team"] == "a"
    }
    assert (by_status["adjusted"]["requests"], by_status["adjusted"]["list_cost_usd"]) == (0, "-0.000000001")


@pytest.mark.parametrize("group_by", [["team"], ["team", "day"], ["hour"], ["day", "model"], ["status"]])
@pytest.mark.parametrize(
    "since", ["7m", "3h", "26h", "7d", "2w", "2026-03-01", "2026-03-10", "2026-03-10T11:31:07+00:00"]
)
def test_from_rollups_or_from_rows_a_report_says_the_same(ask, group_by, since):
    """Grouped by `certainty` too, which is empty in all rows and in no rollup, it comes from the rows."""
    from_rollups = ask("spend", group_by=group_by, since=since)
    from_rows = ask("spend", group_by=[*group_by, "certainty"], since=since)
    for row in from_rows:
        assert row.pop("certainty") == ""
    assert sorted(map(str, from_rollups)) == sorted(map(str, from_rows))


def test_the_rollups_are_read_where_they_have_what_is_asked():
    assert " FROM usage " not in report("spend", group_by=["team", "day"], now=NOW).sql
    assert "usage_by_day" in report("spend", group_by=["team", "day"], now=NOW).sql
    assert "usage_by_day" not in report("spend", group_by=["hour"], now=NOW).sql
    for kind, group_by in (("spend", ["key_id"]), ("denials", ["team"]), ("cache", ["cache_domain"])):
        assert "usage_by" not in report(kind, group_by=group_by, now=NOW).sql


def test_since_is_an_age_or_a_date(ask):
    assert {row["team"] for row in ask("spend", since="90m")} == {"a"}
    assert {row["team"] for row in ask("spend", since="24h")} == {"a", "b", "c"}
    assert ask("spend", since="0001-01-01") == ask("spend", since="1970-01-02")
    old = {row["team"]: row for row in ask("spend", since="2026-03-01")}
    assert old["b"]["list_cost_usd"] == "0.000000012"
    assert ask("spend", since="2026-03-10T11:00:00+00:00") == ask("spend", since="2026-03-10T12:00:00+01:00")


def test_days_and_hours_come_in_order(ask):
    days = ask("spend", group_by=["day", "org"], since="2w")
    assert [row["day"] for row in days] == ["2026-03-01", "2026-03-09", "2026-03-10"]
    assert len(ask("spend", group_by=["hour"])) == 6


def test_cache_gpu_and_denials(ask):
    cache = {row["model"]: row for row in ask("cache")}
    assert (cache["m"]["cached_input_tokens"], cache["m"]["cached_percent"]) == (100, 33.33)
    gpu = ask("gpu", group_by=["model"])
    assert gpu[0]["gpu_s"] == "1.234567"
    assert [(row["team"], row["error_code"], row["refused"]) for row in ask("denials")] == [
        ("c", "insufficient_quota", 2)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_report_runs_over_every_dimension(ask, kind):
    for name in KINDS[kind].dimensions:
        ask(kind, group_by=[name])


def test_signals_add_up_what_their_rows_count(ask):
    assert [
        (row["name"], row["team"], row["rows"], row["value"]) for row in ask("signals", group_by=["name", "team"])
    ] == [
        ("policy_violation", "a", 2, 42),
        ("tool_blocked", "b", 1, 1),
    ]
    days = ask("signals", group_by=["day"], since="2w")
    assert [(row["day"], row["value"]) for row in days] == [("2026-03-01", 9), ("2026-03-10", 43)]
    with pytest.raises(BadReport, match="group once by any of name, org"):
        report("signals", group_by=["model"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("spend; DROP TABLE usage", {}),
        ("spend", {"group_by": ["team`, (SELECT 1)"]}),
        ("spend", {"group_by": ["charges"]}),
        ("spend", {"group_by": ["team", "team"]}),
        ("spend", {"since": "7d' OR 1"}),
        ("spend", {"since": "0d"}),
        ("spend", {"since": "yesterday"}),
        ("spend", {"since": "999999w"}),
        ("spend", {"since": ""}),
        ("spend", {"since": "0001-01-01T00:00:00+05:00"}),
        ("spend", {"since": "9999-12-31T23:59:59-05:00"}),
    ],
)
def test_what_is_not_on_the_list_is_refused(kind, options):
    with pytest.raises(BadReport):
        report(kind, **options)
