"""The rules of FOCUS 1.2 for a file of charges, as data, and the check that runs them over any CSV.

They are the requirements (MUST) of the specification's columns and attributes that a file alone can show; what needs an
invoice, a price list or an earlier file cannot be told from it. Fields are text; None stands for null.
"""

import csv
import json
import re
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from typing import NamedTuple

from ledger.focus_columns import COLUMNS, MANDATORY, SUBCATEGORIES, Column, Kind

FINDINGS_MAX = 100
KEYS_MAX = 100_000

Row = Mapping[str, str | None]


class Rule(NamedTuple):
    """A requirement on a row; `holds` is asked only where all the columns that it `needs` are in the file."""

    id: str
    needs: tuple[str, ...]
    text: str
    holds: Callable[[Row], bool]


class Finding(NamedTuple):
    """A rule that a row broke; row 1 is the header."""

    row: int
    rule: str
    text: str


_OF_A_PRICE = ("SkuId", "SkuPriceId", "ListUnitPrice", "ContractedUnitPrice", "PricingCategory", "PricingQuantity")
# Of each pair both are null or neither is.
_PAIRS = (
    *(("PricingUnit", "PricingQuantity"), ("ConsumedUnit", "ConsumedQuantity"), ("SubAccountName", "SubAccountId")),
    *(("ResourceType", "ResourceId"), ("RegionName", "RegionId")),
)
# The first is null where the second is.
_DEPENDENT = (
    *(("SkuMeter", "SkuId"), ("SkuPriceDetails", "SkuPriceId"), ("ResourceName", "ResourceId")),
    *(("CommitmentDiscountName", "CommitmentDiscountId"), ("CommitmentDiscountCategory", "CommitmentDiscountId")),
    *(("CommitmentDiscountStatus", "CommitmentDiscountId"), ("CapacityReservationStatus", "CapacityReservationId")),
)
_NOTHING = frozenset({"", "n/a", "null", "not applicable"})
_COSTS = ("ListCost", "ContractedCost", "EffectiveCost")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PRECISE = Context(prec=80)


def _is_priced(row: Row) -> bool:
    return row["ChargeCategory"] in ("Usage", "Purchase") and row["ChargeClass"] != "Correction"


def _before(first: str, second: str) -> Callable[[Row], bool]:
    return lambda row: (row[first] or "") < (row[second] or "")


def _both_or_neither(first: str, second: str) -> Callable[[Row], bool]:
    return lambda row: (row[first] is None) == (row[second] is None)


def _null_without(name: str, other: str) -> Callable[[Row], bool]:
    return lambda row: row[name] is None or row[other] is not None


def _null_for_tax(name: str) -> Callable[[Row], bool]:
    return lambda row: row["ChargeCategory"] != "Tax" or row[name] is None


def _given_where_priced(name: str) -> Callable[[Row], bool]:
    return lambda row: not _is_priced(row) or row[name] is not None


def _not_negative(name: str) -> Callable[[Row], bool]:
    return lambda row: not (row[name] or "").startswith("-")


def _is_product(price: str, cost: str) -> Callable[[Row], bool]:
    def holds(row: Row) -> bool:
        factors = row[price], row["PricingQuantity"]
        if factors[0] is None or factors[1] is None or row["ChargeClass"] == "Correction":
            return True
        return _PRECISE.multiply(Decimal(factors[0]), Decimal(factors[1])) == Decimal(row[cost] or "NaN")

    return holds


def _billed_as_credit(cost: str) -> Callable[[Row], bool]:
    return lambda row: row["ChargeCategory"] != "Credit" or Decimal(row[cost] or 0) == Decimal(row["BilledCost"] or 0)


def _consumed_only_by_usage(row: Row) -> bool:
    is_used = row["ChargeCategory"] == "Usage" and row.get("CommitmentDiscountStatus") != "Unused"
    if not is_used:
        return row["ConsumedQuantity"] is None
    return row["ConsumedQuantity"] is not None or row["ChargeClass"] == "Correction"


def _rules() -> Iterator[Rule]:
    for span in ("BillingPeriod", "ChargePeriod"):
        start, end = f"{span}Start", f"{span}End"
        yield Rule(f"{span}.order", (start, end), f"{start} must be before {end}", _before(start, end))
    for name in _OF_A_PRICE:
        of = (name, "ChargeCategory", "ChargeClass")
        yield Rule(f"{name}.tax", of, f"{name} must be null for Tax", _null_for_tax(name))
        text = f"{name} must not be null for Usage and Purchase, corrections aside"
        yield Rule(f"{name}.priced", of, text, _given_where_priced(name))
    for first, second in _PAIRS:
        text = f"{first} must be null exactly where {second} is"
        yield Rule(f"{first}.with", (first, second), text, _both_or_neither(first, second))
    for name, other in _DEPENDENT:
        text = f"{name} must be null where {other} is"
        yield Rule(f"{name}.without", (name, other), text, _null_without(name, other))
    for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        priced = (price, cost, "PricingQuantity", "ChargeClass")
        text = f"{price} times PricingQuantity must be {cost}, corrections aside"
        yield Rule(f"{cost}.product", priced, text, _is_product(price, cost))
        yield Rule(f"{price}.sign", (price,), f"{price} must not be negative", _not_negative(price))
    for cost in _COSTS:
        text = f"{cost} must be BilledCost for Credit"
        yield Rule(f"{cost}.credit", (cost, "BilledCost", "ChargeCategory"), text, _billed_as_credit(cost))
    yield Rule(
        "ConsumedQuantity.usage",
        ("ConsumedQuantity", "ChargeCategory", "ChargeClass"),
        "ConsumedQuantity must be given for Usage (not of an unused commitment) and must be null for all else",
        _consumed_only_by_usage,
    )
    yield Rule(
        "ChargeFrequency.purchase",
        ("ChargeFrequency", "ChargeCategory"),
        "ChargeFrequency must not be Usage-Based for Purchase",
        lambda row: row["ChargeCategory"] != "Purchase" or row["ChargeFrequency"] != "Usage-Based",
    )
    yield Rule(
        "ServiceSubcategory.parent",
        ("ServiceSubcategory", "ServiceCategory"),
        "ServiceSubcategory must be one of its ServiceCategory",
        lambda row: SUBCATEGORIES.get(row["ServiceSubcategory"] or "") == row["ServiceCategory"],
    )


RULES = tuple(_rules())
# What the first stands for has one value of the second throughout a file.
_ONE_PARENT = (("SkuPriceId", "SkuId"), ("ServiceName", "ServiceCategory"))


@dataclass(slots=True)
class Check:
    """What was found in one file: how often each rule was broken, and the first findings in full."""

    rows: int = 0
    broken: Tally[str] = field(default_factory=Tally)
    findings: list[Finding] = field(default_factory=list)

    def add(self, row: int, rule: str, text: str) -> None:
        """Count a finding, and keep it while there are few."""
        self.broken[rule] += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(row, rule, text))


def check(lines: Iterable[str]) -> Check:
    """Run every rule over the lines of a CSV, a row at a time; only what is broken is kept."""
    found = Check()
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        _check_header(header, found)
        rules = [rule for rule in RULES if set(rule.needs) <= set(header)]
        known = [COLUMNS[name] for name in header if name in COLUMNS]
        parents: dict[tuple[str, str], str] = {}
        for number, fields in enumerate(reader, start=2):
            found.rows += 1
            if len(fields) != len(header):
                found.add(number, "file.width", f"the row has {len(fields)} fields, the header {len(header)}")
                continue
            row = {name: value or None for name, value in zip(header, fields, strict=True)}
            if _check_fields(row, known, number, found):
                _check_row(row, rules, number, found)
                _check_parents(row, parents, number, found)
    except csv.Error as error:
        found.add(found.rows + 2, "file.csv", f"the file cannot be read as CSV from here on: {error}")
    return found


def _check_header(header: list[str], found: Check) -> None:
    for name in MANDATORY:
        if name not in header:
            found.add(1, f"{name}.present", f"the mandatory column {name} is missing")
    for name, count in Tally(header).items():
        if count > 1:
            found.add(1, "file.once", f"the column {name} is there {count} times")
        if name not in COLUMNS and not name.startswith("x_"):
            found.add(1, "file.custom", f"{name!r} is no column of FOCUS 1.2, and custom ones begin with x_")


def _check_fields(row: Row, known: Iterable[Column], number: int, found: Check) -> bool:
    """Whether every field by itself is as its column demands."""
    is_sound = True
    for column in known:
        value = row[column.name]
        wrong = _wrong(column, value)
        if wrong:
            is_sound = False
            rule, text = wrong
            shown = "" if value is None else f": {value[:60]!r}"
            found.add(number, f"{column.name}.{rule}", f"{column.name} {text}{shown}")
    return is_sound


def _wrong(column: Column, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None if column.nullable else ("null", "must not be null")
    if column.allowed is not None and value not in column.allowed:
        return "allowed", "must be one of the allowed values"
    if column.kind is Kind.DECIMAL and not _NUMBER.fullmatch(value):
        return "number", "must be a plain decimal number"
    if column.kind is Kind.TIME and not _is_moment(value):
        return "time", "must be a moment in UTC as YYYY-MM-DDTHH:mm:ssZ"
    if column.kind is Kind.JSON and not _is_flat_object(value):
        return "json", "must be a JSON object of plain values, each key once"
    if column.kind is Kind.STRING and value.strip().lower() in _NOTHING:
        return "placeholder", "must be null where there is nothing to say, not a placeholder"
    return None


def _is_moment(value: str) -> bool:
    if not _MOMENT.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_flat_object(value: str) -> bool:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        read = json.loads(value, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and not any(isinstance(each, dict | list) for each in read.values())


def _check_row(row: Row, rules: Iterable[Rule], number: int, found: Check) -> None:
    for rule in rules:
        if not rule.holds(row):
            found.add(number, rule.id, rule.text)


def _check_parents(row: Row, parents: dict[tuple[str, str], str], number: int, found: Check) -> None:
    for child, parent in _ONE_PARENT:
        value, of = row.get(child), row.get(parent)
        if value is None or of is None:
            continue
        if len(parents) < KEYS_MAX:
            parents.setdefault((child, value), of)
        if parents.get((child, value), of) != of:
            found.add(number, f"{child}.parent", f"{child} {value[:60]!r} has more than one {parent}")
