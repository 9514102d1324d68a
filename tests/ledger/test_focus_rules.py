"""Each rule of FOCUS 1.2 can be broken, and the check then says so; a valid charge breaks none."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import pytest

from ledger import focus_rules
from ledger.focus_columns import COLUMNS as SPECIFIED
from ledger.focus_columns import MANDATORY


def valid() -> dict[str, str]:
    """One charge that uses every column of the specification that a usage charge may fill."""
    return {
        "AvailabilityZone": "z1",
        "BilledCost": "1.5",
        "BillingAccountId": "acme",
        "BillingAccountName": "Acme",
        "BillingAccountType": "Org",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2026-02-01T00:00:00Z",
        "BillingPeriodStart": "2026-01-01T00:00:00Z",
        "CapacityReservationId": "",
        "CapacityReservationStatus": "",
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": "Tokens",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-01-02T00:00:00Z",
        "ChargePeriodStart": "2026-01-01T00:00:00Z",
        "CommitmentDiscountCategory": "",
        "CommitmentDiscountId": "",
        "CommitmentDiscountName": "",
        "CommitmentDiscountStatus": "",
        "ConsumedQuantity": "3",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "1.5",
        "ContractedUnitPrice": "0.5",
        "EffectiveCost": "1.5",
        "InvoiceId": "",
        "InvoiceIssuerName": "Bursar",
        "ListCost": "1.5",
        "ListUnitPrice": "0.5",
        "PricingCategory": "Standard",
        "PricingQuantity": "3",
        "PricingUnit": "Tokens",
        "ProviderName": "Bursar",
        "PublisherName": "Bursar",
        "RegionId": "r",
        "RegionName": "R",
        "ResourceId": "vllm",
        "ResourceName": "V",
        "ResourceType": "Runtime",
        "ServiceCategory": "Compute",
        "ServiceName": "Model inference",
        "ServiceSubcategory": "Containers",
        "SkuId": "s",
        "SkuMeter": "Tokens",
        "SkuPriceDetails": '{"x_A": 1}',
        "SkuPriceId": "s",
        "SubAccountId": "t",
        "SubAccountName": "T",
        "Tags": "{}",
        "x_Anything": "",
    }


def lines(*rows: Mapping[str, str]) -> list[str]:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().splitlines(keepends=True)


CREDIT = {
    "ChargeCategory": "Credit",
    "ConsumedQuantity": "",
    "ConsumedUnit": "",
    "ListUnitPrice": "",
    "PricingUnit": "",
    "PricingQuantity": "",
    "ContractedUnitPrice": "",
    "ChargeFrequency": "One-Time",
}
TAX = {**CREDIT, "ChargeCategory": "Tax", "SkuId": "", "SkuMeter": "", "SkuPriceId": "", "PricingCategory": ""}
TAX["SkuPriceDetails"] = ""
BROKEN: dict[str, list[dict[str, str]]] = {
    "BillingPeriod.order": [{"BillingPeriodEnd": "2026-01-01T00:00:00Z"}],
    "ChargePeriod.order": [{"ChargePeriodEnd": "2025-01-01T00:00:00Z"}],
    **{f"{name}.tax": [{**TAX, name: valid()[name]}] for name in focus_rules._OF_A_PRICE},
    **{f"{name}.priced": [{name: ""}] for name in focus_rules._OF_A_PRICE},
    **{f"{first}.with": [{first: ""}, {second: ""}] for first, second in focus_rules._PAIRS},
    "SkuMeter.without": [{"SkuId": ""}],
    "SkuPriceDetails.without": [{"SkuPriceId": ""}],
    "ResourceName.without": [{"ResourceId": "", "ResourceType": ""}],
    "CommitmentDiscountName.without": [{"CommitmentDiscountName": "c"}],
    "CommitmentDiscountCategory.without": [{"CommitmentDiscountCategory": "Spend"}],
    "CommitmentDiscountStatus.without": [{"CommitmentDiscountStatus": "Used"}],
    "CapacityReservationStatus.without": [{"CapacityReservationStatus": "Used"}],
    "ListCost.product": [{"ListCost": "1.500000000000000000000000000000001"}, {"PricingQuantity": "2.9"}],
    "ContractedCost.product": [{"ContractedUnitPrice": "0.4"}],
    "ListUnitPrice.sign": [{"ListUnitPrice": "-0.5", "ListCost": "-1.5"}],
    "ContractedUnitPrice.sign": [{"ContractedUnitPrice": "-0.5", "ContractedCost": "-1.5"}],
    **{f"{cost}.credit": [{**CREDIT, cost: "2"}] for cost in focus_rules._COSTS},
    "ConsumedQuantity.usage": [{"ConsumedQuantity": "", "ConsumedUnit": ""}, {"ChargeCategory": "Adjustment"}],
    "ChargeFrequency.purchase": [{"ChargeCategory": "Purchase", "ConsumedQuantity": "", "ConsumedUnit": ""}],
    "ServiceSubcategory.parent": [{"ServiceSubcategory": "Generative AI"}],
}


def test_a_valid_charge_breaks_nothing() -> None:
    assert focus_rules.check(lines(valid())).findings == []
    assert focus_rules.check(lines({**valid(), **TAX})).findings == []
    assert focus_rules.check(lines({**valid(), **CREDIT})).findings == []
    correction = {"ChargeClass": "Correction", "ListCost": "-7", "SkuId": "", "SkuMeter": "", "ListUnitPrice": ""}
    assert focus_rules.check(lines({**valid(), **correction})).findings == []


def test_every_rule_has_something_that_breaks_it() -> None:
    assert {rule.id for rule in focus_rules.RULES} == BROKEN.keys()


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_can_fail(rule: str) -> None:
    for change in BROKEN[rule]:
        assert focus_rules.check(lines({**valid(), **change})).broken[rule] == 1, change


@pytest.mark.parametrize("column", SPECIFIED.values(), ids=lambda column: column.name)
def test_each_column_refuses_what_it_cannot_hold(column: Any) -> None:
    def broken(value: str) -> Mapping[str, int]:
        return focus_rules.check(lines({**valid(), column.name: value})).broken

    assert (broken("")[f"{column.name}.null"] == 1) == (not column.nullable)
    kinds = {
        "string": [("placeholder", "N/A"), ("placeholder", "not applicable")],
        "decimal": [("number", value) for value in ("1e3", "+1", "1,000", "$1", ".5", "NaN", "1 USD", "0x1")],
        "date/time": [
            ("time", value)
            for value in ("2026-01-01", "2026-01-01T00:00:00+00:00", "2026-13-01T00:00:00Z", "2026-01-01 00:00:00Z")
        ],
        "key-value": [("json", value) for value in ("x", "[1]", '{"a": {}}', '{"a": 1, "a": 2}')],
    }
    wrong = [("allowed", "Nonsense")] if column.allowed else kinds[column.kind]
    for rule, value in wrong:
        assert broken(value)[f"{column.name}.{rule}"] == 1, value


@pytest.mark.parametrize("name", MANDATORY)
def test_a_mandatory_column_may_not_be_missing(name: str) -> None:
    row = valid()
    del row[name]
    assert focus_rules.check(lines(row)).broken[f"{name}.present"] == 1


def test_what_is_wrong_with_the_file_itself_is_found() -> None:
    text = lines(valid())
    assert focus_rules.check([]).broken["BilledCost.present"] == 1
    assert focus_rules.check([text[0], "only,three,fields\n"]).broken["file.width"] == 1
    assert focus_rules.check([text[0], '"never closed\n']).broken["file.csv"] == 1
    assert focus_rules.check([text[0], "x" * 200_000]).broken["file.csv"] == 1
    assert focus_rules.check([text[0].replace("x_Anything", "Anything"), text[1]]).broken["file.custom"] == 1
    assert focus_rules.check([text[0].replace("x_Anything", "Tags"), text[1]]).broken["file.once"] == 1


def test_a_price_or_a_service_has_one_parent() -> None:
    first, second = (
        valid(),
        {**valid(), "SkuId": "other", "ServiceCategory": "Web", "ServiceSubcategory": "Other (Web)"},
    )
    broken = focus_rules.check(lines(first, second)).broken
    assert dict(broken) == {"SkuPriceId.parent": 1, "ServiceName.parent": 1}


def test_findings_are_counted_in_full_and_kept_in_part() -> None:
    checked = focus_rules.check(lines(*[{**valid(), "BilledCost": "x"}] * 500))
    assert (checked.rows, checked.broken["BilledCost.number"], len(checked.findings)) == (500, 500, 100)
    assert checked.findings[0] == (2, "BilledCost.number", "BilledCost must be a plain decimal number: 'x'")
