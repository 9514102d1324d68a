"""The FOCUS export adds up to the ledger to the last digit, and keeps the rules of the specification."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from domain.ids import uuid7
from domain.prices import GpuRate, Prices
from domain.usage import Usage
from ledger import focus, focus_rules
from ledger.client import LedgerClient, open_ledger
from ledger.focus import COLUMNS, Basis, Charge, Granularity, Period, Terms
from ledger.focus_columns import COLUMNS as SPECIFIED
from ledger.focus_columns import MANDATORY
from ledger.journal import Journal

JANUARY_S = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
FEBRUARY_S = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp())
MARCH_S = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
ALL = Period(0, 1 << 32)
SMALL = Prices("small@2026-01-01", 150_000_001, 15_000_007, 600_000_003)
LARGE = Prices("large@2026-01-01", 3_000_000_000, 300_000_000, 15_000_000_000)
RATE = GpuRate(2_500_000_000, 25_000_000, 500_000_000)
NAMES = ("search", "ads", "it's", "back\\slash", "tab\tbed", "comma,ed", '"quoted"', "ünïcode")


def at_us(start_s: int, days: float) -> int:
    return int((start_s + days * 86_400) * 1_000_000)


def settled(prices: Prices, ts_us: int, number: int, **more: Any) -> dict[str, Any]:
    """A usage row as the gateway makes it: its list cost rounded up once."""
    usage = Usage(100 + 37 * number, 32 * (number % 4), 0, 10 + number)
    gpu_us = RATE.gpu_us(usage.input_tokens - usage.cached_input_tokens, usage.output_tokens)
    request_id = uuid7(ts_us // 1000)
    return {
        "ts_us": ts_us,
        "event_id": request_id,
        "request_id": request_id,
        "org": "acme",
        "team": NAMES[number % len(NAMES)],
        "app": "web",
        "endpoint": "chat",
        "model": prices.version.split("@")[0],
        "served_model": prices.version.split("@")[0],
        "runtime": "vllm",
        "price_version": prices.version,
        "status": "ok",
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "gpu_us": gpu_us,
        "list_cost_nusd": prices.list_cost_nusd(usage),
        "gpu_cost_nusd": RATE.gpu_cost_nusd(gpu_us),
        "saved_cost_nusd": prices.saved_cost_nusd(usage),
        **more,
    }


def varied() -> list[dict[str, Any]]:
    """Two months of requests of every end, one under a price that nobody knows any more, and adjustments."""
    rows = [settled(SMALL, at_us(JANUARY_S, number / 7), number) for number in range(200)]
    rows += [settled(LARGE, at_us(FEBRUARY_S, number / 9), number, team="search") for number in range(60)]
    first = rows[0]
    forgotten = settled(LARGE, at_us(JANUARY_S, 3), 5, price_version="large@2020-01-01")
    free = settled(Prices("free"), at_us(JANUARY_S, 4), 6)
    expired = settled(SMALL, at_us(JANUARY_S, 5), 7, status="expired", list_cost_nusd=999_999_999)
    refused = {**settled(SMALL, at_us(JANUARY_S, 6), 8), "status": "refused"}
    for name in ("input_tokens", "cached_input_tokens", "output_tokens", "gpu_us", "list_cost_nusd", "gpu_cost_nusd"):
        refused[name] = 0
    refused["saved_cost_nusd"] = 0
    adjusted = {**first, "status": "adjusted", "event_id": uuid7(), "input_tokens": 0, "cached_input_tokens": 0}
    adjusted |= {"output_tokens": -3, "list_cost_nusd": -1_800, "gpu_us": 12_345, "gpu_cost_nusd": 8_573}
    same_month = {**adjusted, "event_id": uuid7(), "ts_us": at_us(JANUARY_S, 20)}
    later = {**adjusted, "event_id": uuid7(), "ts_us": at_us(FEBRUARY_S, 2)}
    only_gpu = {**later, "event_id": uuid7(), "output_tokens": 0, "list_cost_nusd": 0, "saved_cost_nusd": 0}
    return [*rows, forgotten, free, expired, refused, same_month, later, only_gpu]


class Ledger(NamedTuple):
    """A ledger process that serves these rows."""

    client: LedgerClient
    rows: list[dict[str, Any]]
    journal: Journal


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A real ledger of varied rows."""
    home = tmp_path_factory.mktemp("home")
    rows = varied()
    with served(home) as (client, journal):
        for row in rows:
            journal.append("usage", row)
        client.flush()
        yield Ledger(client, rows, journal)


@contextmanager
def served(home: Path) -> Iterator[tuple[LedgerClient, Journal]]:
    """The ledger process of a home with one journal."""
    journal = Journal.open(home / "journal" / "w", snapshot=dict)
    try:
        with open_ledger(home, f"chdb://{home}/ledger") as client:
            yield client, journal
    finally:
        journal.close()


def asker(client: LedgerClient, seen: list[int] | None = None) -> focus.Ask:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        rows = client.rows(sql, **parameters)
        if seen is not None:
            seen.append(len(rows))
        return rows

    return ask


def terms(granularity: Granularity = Granularity.DAY, basis: Basis = Basis.LIST) -> Terms:
    prices = {each.version: each for each in (SMALL, LARGE, Prices("free"))}
    return Terms(granularity, basis, "Bursar", prices, {"vllm": RATE.nusd_per_hour})


def exported(
    client: LedgerClient, granularity: Granularity = Granularity.DAY, basis: Basis = Basis.LIST, period: Period = ALL
) -> list[Charge]:
    return list(focus.charges(asker(client), terms(granularity, basis), period, 60))


def as_csv(found: list[Charge]) -> io.StringIO:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([charge[column] for column in COLUMNS] for charge in found)
    file.seek(0)
    return file


def total(found: list[Charge], column: str) -> Decimal:
    return sum((Decimal(charge[column] or 0) for charge in found), Decimal(0))


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("basis", Basis)
def test_charges_add_up_to_the_ledger_exactly(ledger: Ledger, granularity: Granularity, basis: Basis) -> None:
    client, rows, _ = ledger
    found = exported(client, granularity, basis)
    billed = {Basis.LIST: "list_cost_nusd", Basis.GPU: "gpu_cost_nusd"}[basis]
    assert total(found, "BilledCost") * 10**9 == sum(row[billed] for row in rows)
    for column, name in (("x_ListCost", "list_cost_nusd"), ("x_GpuCost", "gpu_cost_nusd")):
        assert total(found, column) * 10**9 == sum(row[name] for row in rows)
    for column, name in (
        ("x_InputTokens", "input_tokens"),
        ("x_OutputTokens", "output_tokens"),
        ("x_GpuMicroseconds", "gpu_us"),
    ):
        assert total(found, column) == sum(row[name] for row in rows)
    assert total(found, "x_Requests") == sum(row["status"] not in ("refused", "adjusted") for row in rows)
    by_team = {team: total([each for each in found if each["SubAccountId"] == team], "BilledCost") for team in NAMES}
    for team, cost in by_team.items():
        assert cost * 10**9 == sum(row[billed] for row in rows if row["team"] == team), team


def test_a_charge_of_nothing_is_there_for_its_measures(ledger: Ledger) -> None:
    found = exported(ledger[0], Granularity.REQUEST)
    nothing = [charge for charge in found if charge["SkuMeter"] == "Difference" and charge["BilledCost"] == "0"]
    assert [(charge["x_IsAdjustment"], charge["x_GpuMicroseconds"]) for charge in nothing] == [("true", "12345")]


def test_accelerator_time_whose_rate_is_not_known_is_not_given_away(ledger: Ledger) -> None:
    client, rows, _ = ledger
    without = terms(basis=Basis.GPU)._replace(rates_nusd_per_hour={})
    found = list(focus.charges(asker(client), without, ALL, 60))
    assert {charge["SkuMeter"] for charge in found} == {"Difference"}, "no second is sold for 0"
    assert total(found, "BilledCost") * 10**9 == sum(row["gpu_cost_nusd"] for row in rows)
    assert total(found, "x_GpuMicroseconds") == sum(row["gpu_us"] for row in rows)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("basis", Basis)
def test_an_export_keeps_every_rule_of_the_specification(
    ledger: Ledger, granularity: Granularity, basis: Basis
) -> None:
    found = exported(ledger[0], granularity, basis)
    checked = focus_rules.check(as_csv(found))
    assert checked.findings == []
    assert checked.rows == len(found) > 50


def test_the_21_mandatory_columns_come_before_our_own() -> None:
    assert len(MANDATORY) == 21
    assert set(MANDATORY) <= set(focus.FOCUS_COLUMNS) <= set(SPECIFIED)
    assert list(focus.FOCUS_COLUMNS) == sorted(focus.FOCUS_COLUMNS)
    assert (*focus.FOCUS_COLUMNS, *focus.X_COLUMNS) == COLUMNS
    assert all(column.startswith("x_") for column in focus.X_COLUMNS)


def test_tokens_are_charged_by_meter_and_rounding_apart(ledger: Ledger) -> None:
    found = exported(ledger[0], Granularity.REQUEST)
    one = [each for each in found if each["x_RequestId"] == ledger[1][9]["request_id"]]
    assert [each["SkuId"] for each in one] == [
        "small/input-tokens",
        "small/cached-input-tokens",
        "small/output-tokens",
        "small/difference",
    ]
    usage = ledger[1][9]
    fresh = usage["input_tokens"] - usage["cached_input_tokens"]
    assert (one[0]["ConsumedQuantity"], one[0]["ConsumedUnit"]) == (str(fresh), "Tokens")
    assert (one[0]["PricingQuantity"], one[0]["PricingUnit"]) == (focus.scaled(fresh, 6), "1000000 Tokens")
    assert one[0]["ListUnitPrice"] == "0.150000001"
    assert Decimal(one[0]["BilledCost"] or 0) == Decimal("0.150000001") * fresh / 10**6
    assert 0 < total(one[3:], "BilledCost") < Decimal("0.000000001"), "what rounding up once added"
    assert [each["x_Requests"] for each in one] == ["1", None, None, None]


def test_a_price_that_is_not_known_is_a_charge_in_nanodollars(
    ledger: Ledger,
) -> None:
    found = [each for each in exported(ledger[0]) if each["x_PriceVersion"] == "large@2020-01-01"]
    (only,) = found
    assert (only["SkuMeter"], only["PricingUnit"], only["ListUnitPrice"]) == (
        "Difference",
        "Nanodollars",
        "0.000000001",
    )
    assert only["x_InputTokens"] == "285"


def test_a_refused_request_is_no_charge(ledger: Ledger) -> None:
    refused = next(row for row in ledger[1] if row["status"] == "refused")
    found = exported(ledger[0], Granularity.REQUEST)
    assert [each for each in found if each["x_RequestId"] == refused["request_id"]] == []


def test_only_an_adjustment_of_an_earlier_month_is_a_correction(
    ledger: Ledger,
) -> None:
    adjusted = [each for each in exported(ledger[0], Granularity.REQUEST) if each["x_IsAdjustment"]]
    by_month = {(each["BillingPeriodStart"], each["ChargeClass"], each["ChargePeriodStart"]) for each in adjusted}
    assert by_month == {
        ("2026-01-01T00:00:00Z", None, "2026-01-21T00:00:00Z"),
        ("2026-02-01T00:00:00Z", "Correction", "2026-01-01T00:00:00Z"),
    }
    assert {each["x_Requests"] for each in adjusted} == {"0", None}


def test_a_period_begins_and_ends_where_it_is_told(ledger: Ledger) -> None:
    client, rows, _ = ledger
    since_s, until_s = JANUARY_S + 86_400 * 27 + 1_000, FEBRUARY_S + 86_400 * 2 + 77
    found = exported(client, Granularity.DAY, Basis.LIST, Period(since_s, until_s))
    within = [row for row in rows if since_s * 10**6 <= row["ts_us"] < until_s * 10**6]
    assert total(found, "BilledCost") * 10**9 == sum(row["list_cost_nusd"] for row in within)
    starts = sorted({each["ChargePeriodStart"] or "" for each in found if each["ChargeClass"] is None})
    ends = sorted({each["ChargePeriodEnd"] or "" for each in found if each["ChargeClass"] is None})
    assert starts[0] == datetime.fromtimestamp(since_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert ends[-1] == datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert focus_rules.check(as_csv(found)).findings == []


def test_pages_are_small_and_change_nothing(ledger: Ledger) -> None:
    seen: list[int] = []
    found = list(focus.charges(asker(ledger[0], seen), terms(Granularity.REQUEST), ALL, 3))
    assert max(seen) == 3
    assert found == list(focus.charges(asker(ledger[0]), terms(Granularity.REQUEST), ALL, 100_000))
    assert found == exported(ledger[0], Granularity.REQUEST)


def test_what_is_shipped_meanwhile_is_left_out(tmp_path: Path) -> None:
    with served(tmp_path) as (client, journal):
        client.flush()
        assert list(focus.charges(asker(client), terms(), ALL)) == [], "a ledger of nothing has no charges"
        for number in range(10):
            journal.append("usage", settled(SMALL, at_us(JANUARY_S, 1), number))
        client.flush()
        before = list(focus.charges(asker(client), terms(Granularity.REQUEST), ALL, 4))
        pages = focus.charges(asker(client), terms(Granularity.REQUEST), ALL, 4)
        begun = [next(pages)]
        for number in range(10, 40):
            journal.append("usage", settled(SMALL, at_us(JANUARY_S, 1), number))
        client.flush()
        assert [*begun, *pages] == before
        assert len(list(focus.charges(asker(client), terms(Granularity.REQUEST), ALL, 4))) > len(before)


def test_months_are_calendar_months() -> None:
    december = int(datetime(2025, 12, 31, 23, tzinfo=UTC).timestamp())
    assert list(focus.months(Period(december, FEBRUARY_S + 1))) == [
        Period(int(datetime(2025, 12, 1, tzinfo=UTC).timestamp()), JANUARY_S),
        Period(JANUARY_S, FEBRUARY_S),
        Period(FEBRUARY_S, MARCH_S),
    ]
    assert list(focus.months(Period(JANUARY_S, FEBRUARY_S))) == [Period(JANUARY_S, FEBRUARY_S)]


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0, 9, "0"),
        (1, 9, "0.000000001"),
        (-1_500, 3, "-1.5"),
        (10**20, 9, "100000000000"),
        (7, 0, "7"),
        (-1, 21, f"-0.{'0' * 20}1"),
    ],
)
def test_integers_are_written_as_plain_decimals(value: int, digits: int, shown: str) -> None:
    assert focus.scaled(value, digits) == shown
