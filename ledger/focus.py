"""FOCUS: the ledger as charges of the FinOps Open Cost and Usage Specification 1.2, page by page and to the last digit.

A group of usage rows becomes one charge for each meter it used, of exactly its quantity times its unit price. What the
group cost beyond that (a settlement rounds up once, an expired hold is charged in full) is a charge of its own, in
nanodollars. So the charges of a group add up to what the ledger has, without a float anywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from domain.amounts import MILLION
from domain.prices import Prices

PAGE_ROWS = 5_000
CURRENCY = "USD"

FOCUS_COLUMNS = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ResourceId", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName"),
)
# Of the group; they stand in its first charge only, so that their sums are the ledger's.
_MEASURES = {
    "x_CachedInputTokens": "cached_input_tokens",
    "x_EnergyMicrojoules": "energy_uj",
    "x_GpuMicroseconds": "gpu_us",
    "x_InputTokens": "input_tokens",
    "x_KvBlockMicroseconds": "kv_block_us",
    "x_OutputTokens": "output_tokens",
    "x_QueueMicroseconds": "queue_us",
    "x_ReasoningTokens": "reasoning_tokens",
}
_MONEY = {"x_GpuCost": "gpu_cost_nusd", "x_ListCost": "list_cost_nusd", "x_SavedCost": "saved_cost_nusd"}
_NAMES = {"x_App": "app", "x_Endpoint": "endpoint", "x_Model": "model", "x_PriceVersion": "price_version"}
X_COLUMNS = (*sorted([*_NAMES, *_MEASURES, *_MONEY, "x_IsAdjustment", "x_RequestId", "x_Requests"]),)
COLUMNS = FOCUS_COLUMNS + X_COLUMNS

# Digits behind the point of a dollar in which a charge is exact: tokens times nano-USD per million of them, and
# microseconds times a price per second of 15 digits.
_LIST_DIGITS = 15
_GPU_DIGITS = 21
_NANO_DIGITS = 9
_HOUR_S = 3600

_SUMMED = (*_MEASURES.values(), *_MONEY.values())
_WITHIN = "ts >= fromUnixTimestamp64Second({since_s}, 'UTC') AND ts < fromUnixTimestamp64Second({until_s}, 'UTC')"
_SQL = """
SELECT {keys}, '' AS request_id, countIf(status NOT IN ('refused', 'adjusted')) AS requests, {sums}
FROM usage
WHERE {within} AND ({cut}) AND {after}
GROUP BY {order}
HAVING {has_any_sum}
ORDER BY {order}
LIMIT {limit}
"""
_REQUESTS_SQL = """
SELECT {keys}, request_id, toUInt64(status NOT IN ('refused', 'adjusted')) AS requests, {columns}
FROM usage
WHERE {within} AND ({cut}) AND {after} AND ({has_any})
ORDER BY {order}
LIMIT {limit}
"""
# Events are the last table that a batch reaches, so up to there every table has everything.
WRITERS_SQL = "SELECT writer, max(seq) AS seq FROM events GROUP BY writer ORDER BY writer"
SPAN_SQL = "SELECT count() AS rows, toUnixTimestamp(min(ts)) AS first_s, toUnixTimestamp(max(ts)) AS last_s FROM usage"

# An adjustment of an earlier request says by the time in the request's id when that was.
_CORRECTED = "if(status = 'adjusted', toUnixTimestamp({start}(UUIDv7ToDateTime(toUUIDOrZero(request_id), 'UTC'))), 0)"
_STARTS = {"hour": "toStartOfHour", "day": "toStartOfDay", "request": "toStartOfSecond"}
_SPANS_S = {"hour": 3600, "day": 86_400, "request": 1}


class _Key(NamedTuple):
    """A part of what groups are told apart and ordered by, and how its value is written where it is asked for."""

    expression: str
    kind: str = "String"
    hour: bool = False

    @property
    def shown(self) -> str:
        return f"toUnixTimestamp({self.expression})" if self.hour else self.expression

    @property
    def value(self) -> str:
        return "toDateTime({{{name}:UInt32}}, 'UTC')" if self.hour else f"{{{{{{name}}:{self.kind}}}}}"


# The order in which the table's rows lie.
_ROW_KEYS = {
    **{name: _Key(name) for name in ("org", "model")},
    "hour_s": _Key("toStartOfHour(ts)", hour=True),
    "event_id": _Key("event_id"),
}

Ask = Callable[[str, dict[str, str]], list[dict[str, Any]]]
Charge = dict[str, str | None]


class Granularity(StrEnum):
    """What one group of charges covers."""

    HOUR = "hour"
    DAY = "day"
    REQUEST = "request"


class Basis(StrEnum):
    """Which of the two costs is billed: tokens times price table, or accelerator time times the runtime's rate."""

    LIST = "list"
    GPU = "gpu"


class Terms(NamedTuple):
    """How the charges are to be made: prices by version, and nano-USD per accelerator-hour by runtime."""

    granularity: Granularity
    basis: Basis
    provider: str
    prices: Mapping[str, Prices]
    rates_nusd_per_hour: Mapping[str, int]


class Period(NamedTuple):
    """Unix seconds from `since_s` on and before `until_s`."""

    since_s: int
    until_s: int


class _Meter(NamedTuple):
    """A quantity of a unit and the price of one in dollars, both integers with so many digits behind the point.

    `consumed` says the quantity in a unit that people count in, where that is another one.
    """

    name: str
    quantity: int
    quantity_digits: int
    unit: str
    price: int
    price_digits: int
    consumed: tuple[str, str] | None = None


def charges(ask: Ask, terms: Terms, period: Period, page_rows: int = PAGE_ROWS) -> Iterator[Charge]:
    """Every charge of a period as the ledger now has it, reading at most `page_rows` groups at a time.

    What is shipped meanwhile is left out: all pages show the ledger as it was at the first. Requests that used nothing,
    as those that were refused, are no charges.
    """
    span = ask(SPAN_SQL, {})[0]
    if not int(span["rows"]):
        return
    cut = {str(row["writer"]): int(row["seq"]) for row in ask(WRITERS_SQL, {})}
    since_s, until_s = max(period.since_s, int(span["first_s"])), min(period.until_s, int(span["last_s"]) + 1)
    for month in months(Period(since_s, until_s)):
        within = Period(max(month.since_s, period.since_s), min(month.until_s, period.until_s))
        for group in _groups(ask, terms.granularity, within, cut, page_rows):
            yield from charges_of(group, terms, month, within)


def months(period: Period) -> Iterator[Period]:
    """The calendar months, in UTC, that a period touches: the billing periods."""
    at = datetime.fromtimestamp(period.since_s, UTC).replace(day=1, hour=0, minute=0, second=0)
    while at.timestamp() < period.until_s:
        following = (at + timedelta(days=32)).replace(day=1)
        yield Period(int(at.timestamp()), int(following.timestamp()))
        at = following


def charges_of(group: Mapping[str, Any], terms: Terms, month: Period, within: Period) -> list[Charge]:
    """The charges of one group of usage rows; the first carries the group's own measures."""
    if terms.basis is Basis.LIST:
        digits, cost = _LIST_DIGITS, int(group["list_cost_nusd"])
        meters = _token_meters(group, terms.prices.get(group["price_version"]))
    else:
        digits, cost = _GPU_DIGITS, int(group["gpu_cost_nusd"])
        meters = _gpu_meters(group, terms.rates_nusd_per_hour.get(group["runtime"]))
    rest = cost * 10 ** (digits - _NANO_DIGITS) - sum(meter.quantity * meter.price for meter in meters)
    if rest or not meters:
        meters.append(_difference(rest, digits))
    common = _common(group, terms, month, within)
    found = [{**common, **_priced(meter, group, terms.basis)} for meter in meters]
    found[0].update(_measured(group))
    return found


def _groups(
    ask: Ask, granularity: Granularity, within: Period, cut: Mapping[str, int], page_rows: int
) -> Iterator[dict[str, Any]]:
    """The groups of a period in the order of their keys, page by page."""
    is_by_request = granularity is Granularity.REQUEST
    keys = _keys(_STARTS[granularity])
    order = _ROW_KEYS if is_by_request else keys
    writers = {f"w{index}": writer for index, writer in enumerate(cut)}
    known = [f"(writer = {{{name}:String}} AND seq <= {cut[writer]})" for name, writer in writers.items()]
    parts = {
        "keys": ", ".join(f"{key.shown} AS {name}_" for name, key in {**order, **keys}.items()),
        "order": ", ".join(key.expression for key in order.values()),
        "sums": ", ".join(f"sum({name}) AS {name}_" for name in _SUMMED),
        "columns": ", ".join(f"{name} AS {name}_" for name in _SUMMED),
        "has_any": " OR ".join(f"{name} != 0" for name in _SUMMED),
        "has_any_sum": " OR ".join(f"sum({name}) != 0" for name in _SUMMED),
        "within": _WITHIN.format(**within._asdict()),
        "cut": " OR ".join(known) or "0",
        "limit": page_rows,
    }
    template = _REQUESTS_SQL if is_by_request else _SQL
    after, last = "1", dict[str, str]()
    while True:
        rows = ask(template.format(**parts, after=after), {**writers, **last})
        yield from ({name.removesuffix("_"): value for name, value in row.items()} for row in rows)
        if len(rows) < page_rows:
            return
        after = _behind([(key.expression, key.value.format(name=f"k_{name}")) for name, key in order.items()])
        last = {f"k_{name}": str(rows[-1][f"{name}_"]) for name in order}


def _behind(order: Sequence[tuple[str, str]]) -> str:
    """That a row comes after these values in this order, in a form that lets the engine skip what comes before."""
    (expression, value), *rest = order
    if not rest:
        return f"{expression} > {value}"
    return f"({expression} > {value} OR ({expression} = {value} AND {_behind(rest)}))"


def _keys(start: str) -> dict[str, _Key]:
    """What tells groups apart: first the keys of the table, whose rows lie in their order."""
    return {
        **{name: _Key(name) for name in ("org", "model")},
        "start_s": _Key(f"toUnixTimestamp({start}(ts))", "UInt32"),
        **{name: _Key(name) for name in ("team", "app", "endpoint", "served_model", "runtime", "price_version")},
        "is_adjustment": _Key("toUInt8(status = 'adjusted')", "UInt8"),
        "corrects_s": _Key(_CORRECTED.format(start=start), "UInt32"),
    }


def _common(group: Mapping[str, Any], terms: Terms, month: Period, within: Period) -> Charge:
    """The columns that all charges of a group share."""
    span_s = _SPANS_S[terms.granularity]
    start_s, end_s = int(group["start_s"]), int(group["start_s"]) + span_s
    start_s, end_s = max(start_s, within.since_s), min(end_s, within.until_s)
    corrects_s = int(group["corrects_s"])
    is_correction = bool(group["is_adjustment"]) and 0 < corrects_s < month.since_s
    if is_correction:
        start_s, end_s = corrects_s, corrects_s + span_s
    found: Charge = dict.fromkeys(COLUMNS)
    found |= {
        "BillingAccountId": group["org"] or None,
        "BillingAccountName": group["org"] or None,
        "BillingCurrency": CURRENCY,
        "BillingPeriodStart": _time(month.since_s),
        "BillingPeriodEnd": _time(month.until_s),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if is_correction else None,
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(start_s),
        "ChargePeriodEnd": _time(end_s),
        "InvoiceIssuerName": terms.provider,
        "PricingCategory": "Standard",
        "ProviderName": terms.provider,
        "PublisherName": terms.provider,
        "ResourceId": group["runtime"] or None,
        "ResourceType": "Inference runtime" if group["runtime"] else None,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model inference",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": group["team"] or None,
        "SubAccountName": group["team"] or None,
        "x_IsAdjustment": "true" if group["is_adjustment"] else None,
        "x_RequestId": group["request_id"] or None,
    }
    return found | {column: group[name] or None for column, name in _NAMES.items()}


def _priced(meter: _Meter, group: Mapping[str, Any], basis: Basis) -> Charge:
    """The columns of one meter of a group."""
    of = (group["runtime"] if basis is Basis.GPU else group["served_model"] or group["model"]) or "unnamed"
    sku = f"{of}/{meter.name.lower().replace(' ', '-')}"
    on = f" on {group['runtime']}" if basis is Basis.LIST and group["runtime"] else ""
    cost = scaled(meter.quantity * meter.price, meter.quantity_digits + meter.price_digits)
    quantity = scaled(meter.quantity, meter.quantity_digits)
    consumed, consumed_unit = meter.consumed or (quantity, meter.unit)
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost),
        "ChargeDescription": f"{meter.name} of {of}{on}",
        "ConsumedQuantity": consumed,
        "ConsumedUnit": consumed_unit,
        "ListUnitPrice": scaled(meter.price, meter.price_digits),
        "PricingQuantity": quantity,
        "PricingUnit": meter.unit,
        "SkuId": sku,
        "SkuMeter": meter.name,
        "SkuPriceId": sku,
    }


def _measured(group: Mapping[str, Any]) -> Charge:
    """What the ledger sums over the group."""
    return {
        **{column: str(group[name]) for column, name in _MEASURES.items()},
        **{column: scaled(int(group[name]), _NANO_DIGITS) for column, name in _MONEY.items()},
        "x_Requests": str(group["requests"]),
    }


def _token_meters(group: Mapping[str, Any], prices: Prices | None) -> list[_Meter]:
    """The tokens of a group by how they are billed; none when their price is not known any more."""
    if prices is None:
        return []
    cached = int(group["cached_input_tokens"])
    billed = (
        ("Input Tokens", int(group["input_tokens"]) - cached, prices.input_nusd_per_mtok),
        ("Cached Input Tokens", cached, prices.cached_input_nusd_per_mtok),
        ("Output Tokens", int(group["output_tokens"]), prices.output_nusd_per_mtok),
    )
    unit = f"{MILLION} Tokens"
    return [
        _Meter(name, count, 6, unit, price, _NANO_DIGITS, (str(count), "Tokens"))
        for name, count, price in billed
        if count
    ]


def _gpu_meters(group: Mapping[str, Any], nusd_per_hour: int | None) -> list[_Meter]:
    """The accelerator time of a group, at the rate that its runtime has now; none when that is not known any more."""
    gpu_us = int(group["gpu_us"])
    if not gpu_us or nusd_per_hour is None:
        return []
    price_digits = _GPU_DIGITS - 6
    price = nusd_per_hour * 10 ** (price_digits - _NANO_DIGITS) // _HOUR_S
    return [_Meter("Accelerator Time", gpu_us, 6, "Seconds", price, price_digits)]


def _difference(rest: int, digits: int) -> _Meter:
    """A cost that no quantity explains, of so many digits: in nanodollars at a nanodollar each."""
    return _Meter("Difference", rest, digits - _NANO_DIGITS, "Nanodollars", 1, _NANO_DIGITS)


def scaled(value: int, digits: int) -> str:
    """An integer as a decimal with so many digits behind the point, without the zeros at its end."""
    whole, part = divmod(abs(value), 10**digits)
    text = f"{whole}.{part:0{digits}d}".rstrip("0").rstrip(".") if digits else str(whole)
    return f"-{text}" if value < 0 else text


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
