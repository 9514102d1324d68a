"""The columns of FOCUS 1.2: which must be there, what they hold, and the values that are allowed in them."""

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """Whether a column must be there."""

    MANDATORY = "mandatory"
    CONDITIONAL = "conditional"
    RECOMMENDED = "recommended"


class Kind(StrEnum):
    """What a field holds when it is not null."""

    STRING = "string"
    DECIMAL = "decimal"
    TIME = "date/time"
    JSON = "key-value"


class Column(NamedTuple):
    """A column of the specification: `allowed` names its values where there is a list of them."""

    name: str
    level: Level
    kind: Kind = Kind.STRING
    nullable: bool = False
    allowed: frozenset[str] | None = None


CHARGE_CATEGORIES = frozenset({"Usage", "Purchase", "Tax", "Credit", "Adjustment"})
CHARGE_FREQUENCIES = frozenset({"One-Time", "Recurring", "Usage-Based"})
PRICING_CATEGORIES = frozenset({"Standard", "Dynamic", "Committed", "Other"})
# The subcategories of each service category.
SERVICES = {
    "AI and Machine Learning": (
        *("AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing"),
    ),
    "Analytics": ("Analytics Platforms", "Business Intelligence", "Data Processing", "Search", "Streaming Analytics"),
    "Business Applications": ("Productivity and Collaboration",),
    "Compute": ("Containers", "End User Computing", "Quantum Compute", "Serverless Compute", "Virtual Machines"),
    "Databases": (
        *("Caching", "Data Warehouses", "Ledger Databases", "NoSQL Databases", "Relational Databases"),
        "Time Series Databases",
    ),
    "Developer Tools": (
        *("Developer Platforms", "Continuous Integration and Deployment", "Development Environments"),
        *("Source Code Management", "Quality Assurance"),
    ),
    "Identity": ("Identity and Access Management",),
    "Integration": ("API Management", "Messaging", "Workflow Orchestration"),
    "Internet of Things": ("IoT Analytics", "IoT Platforms"),
    "Management and Governance": (
        *("Architecture", "Compliance", "Cost Management", "Data Governance", "Disaster Recovery"),
        *("Endpoint Management", "Observability", "Support"),
    ),
    "Media": ("Content Creation", "Gaming", "Media Streaming", "Mixed Reality"),
    "Migration": ("Data Migration", "Resource Migration"),
    "Mobile": (),
    "Multicloud": ("Multicloud Integration",),
    "Networking": (
        *("Application Networking", "Content Delivery", "Network Connectivity", "Network Infrastructure"),
        *("Network Routing", "Network Security"),
    ),
    "Security": ("Secret Management", "Security Posture Management", "Threat Detection and Response"),
    "Storage": ("Backup Storage", "Block Storage", "File Storage", "Object Storage", "Storage Platforms"),
    "Web": ("Application Platforms",),
    "Other": (),
}
SUBCATEGORIES = {
    subcategory: category for category, named in SERVICES.items() for subcategory in (*named, f"Other ({category})")
}
_ISO_4217 = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF "
    "CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF "
    "GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD "
    "LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP "
    "PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP "
    "TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG"
)
CURRENCIES = frozenset(_ISO_4217.split())

_M, _C, _R = Level.MANDATORY, Level.CONDITIONAL, Level.RECOMMENDED
_DECIMAL, _TIME, _JSON = Kind.DECIMAL, Kind.TIME, Kind.JSON
_USED = frozenset({"Used", "Unused"})
COLUMNS = {
    column.name: column
    for column in (
        Column("AvailabilityZone", _R, nullable=True),
        Column("BilledCost", _M, _DECIMAL),
        Column("BillingAccountId", _M),
        Column("BillingAccountName", _M, nullable=True),
        Column("BillingAccountType", _C, nullable=True),
        Column("BillingCurrency", _M, allowed=CURRENCIES),
        Column("BillingPeriodEnd", _M, _TIME),
        Column("BillingPeriodStart", _M, _TIME),
        Column("CapacityReservationId", _C, nullable=True),
        Column("CapacityReservationStatus", _C, nullable=True, allowed=_USED),
        Column("ChargeCategory", _M, allowed=CHARGE_CATEGORIES),
        Column("ChargeClass", _M, nullable=True, allowed=frozenset({"Correction"})),
        Column("ChargeDescription", _M, nullable=True),
        Column("ChargeFrequency", _R, allowed=CHARGE_FREQUENCIES),
        Column("ChargePeriodEnd", _M, _TIME),
        Column("ChargePeriodStart", _M, _TIME),
        Column("CommitmentDiscountCategory", _C, nullable=True, allowed=frozenset({"Spend", "Usage"})),
        Column("CommitmentDiscountId", _C, nullable=True),
        Column("CommitmentDiscountName", _C, nullable=True),
        Column("CommitmentDiscountQuantity", _C, _DECIMAL, nullable=True),
        Column("CommitmentDiscountStatus", _C, nullable=True, allowed=_USED),
        Column("CommitmentDiscountType", _C, nullable=True),
        Column("CommitmentDiscountUnit", _C, nullable=True),
        Column("ConsumedQuantity", _C, _DECIMAL, nullable=True),
        Column("ConsumedUnit", _C, nullable=True),
        Column("ContractedCost", _M, _DECIMAL),
        Column("ContractedUnitPrice", _C, _DECIMAL, nullable=True),
        Column("EffectiveCost", _M, _DECIMAL),
        Column("InvoiceId", _R, nullable=True),
        Column("InvoiceIssuerName", _M),
        Column("ListCost", _M, _DECIMAL),
        Column("ListUnitPrice", _C, _DECIMAL, nullable=True),
        Column("PricingCategory", _C, nullable=True, allowed=PRICING_CATEGORIES),
        Column("PricingCurrency", _C),
        Column("PricingCurrencyContractedUnitPrice", _C, _DECIMAL, nullable=True),
        Column("PricingCurrencyEffectiveCost", _C, _DECIMAL),
        Column("PricingCurrencyListUnitPrice", _C, _DECIMAL, nullable=True),
        Column("PricingQuantity", _M, _DECIMAL, nullable=True),
        Column("PricingUnit", _M, nullable=True),
        Column("ProviderName", _M),
        Column("PublisherName", _M),
        Column("RegionId", _C, nullable=True),
        Column("RegionName", _C, nullable=True),
        Column("ResourceId", _C, nullable=True),
        Column("ResourceName", _C, nullable=True),
        Column("ResourceType", _C, nullable=True),
        Column("ServiceCategory", _M, allowed=frozenset(SERVICES)),
        Column("ServiceName", _M),
        Column("ServiceSubcategory", _R, allowed=frozenset(SUBCATEGORIES)),
        Column("SkuId", _C, nullable=True),
        Column("SkuMeter", _C, nullable=True),
        Column("SkuPriceDetails", _C, _JSON, nullable=True),
        Column("SkuPriceId", _C, nullable=True),
        Column("SubAccountId", _C, nullable=True),
        Column("SubAccountName", _C, nullable=True),
        Column("SubAccountType", _C, nullable=True),
        Column("Tags", _C, _JSON, nullable=True),
    )
}
MANDATORY = tuple(name for name, column in COLUMNS.items() if column.level is _M)
