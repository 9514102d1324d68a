"""Configuration: the frozen shape of `bursar.yaml`, with the limits and defaults of every value.

A `Config` holds values that are right one by one; `gateway.consistency` finds those that do not fit together. No
secret is a value here: a section names the environment variable or the file that holds one.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from domain.amounts import Resource
from domain.prices import GpuRate, Prices
from gateway.approvals_config import ApprovalRules
from gateway.config_values import (
    DAY_S,
    GIB,
    KIB,
    MIB,
    Count,
    EnvName,
    Id,
    Name,
    Port,
    Ratio,
    Seconds,
    Section,
    Size,
    WebUrl,
    Whole,
    unique,
)
from gateway.objectives import Slos
from gateway.offers import Model, Runtime
from gateway.quality_config import Quality
from gateway.verification_config import Verify
from ledger.client import NOT_LOOPBACK, is_loopback
from ledger.exports import TargetRefused, target_of
from ledger.http_session import server_of
from ledger.windows import parse_window

__all__ = [
    "Book",
    "Budget",
    "Config",
    "Environment",
    "Ledger",
    "Limits",
    "Listen",
    "Model",
    "Policy",
    "Runtime",
    "Scope",
    "Telemetry",
    "Webhook",
]

ROLLING_S_MAX = 366 * DAY_S


class Environment(Section):
    """The environment that policies see; while `freeze` is on they may refuse what is not exempt."""

    name: Id = "dev"
    freeze: bool = False


class Listen(Section):
    """Where the gateway and its admin plane listen; port 0 picks a free one."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Port = 8080
    admin_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    admin_port: Port = 8081
    workers: Annotated[Whole, Field(gt=0, le=256)] = 1


class Limits(Section):
    """What one client, one request and the whole gateway may take up, in bytes, counts and seconds."""

    body_bytes_max: Size = 4 * MIB
    header_bytes_max: Size = 32 * KIB
    headers_max: Count = 100
    url_bytes_max: Size = 8 * KIB
    connections_max: Count = 4096
    in_flight_max: Count = 2048
    queued_max: Count = 1024
    header_timeout_s: Seconds = 10
    body_timeout_s: Seconds = 30
    idle_timeout_s: Seconds = 75
    drain_timeout_s: Seconds = 30
    sse_event_bytes_max: Size = MIB
    response_bytes_max: Size = 64 * MIB
    repeats_max: Count = 10_000
    repeats_bytes_max: Size = 64 * MIB
    repeats_ttl_s: Seconds = 3600


class Book(Section):
    """Where budget counters live, and how long a hold lasts that nobody renews.

    With Redis `replicas` gateways share them; after Redis forgot, nothing is granted until so many have reported.
    """

    url: Annotated[str, Field(max_length=4096)] = "memory://"
    hold_ttl_s: Annotated[Whole, Field(gt=0, le=3600)] = 60
    replicas: Annotated[Whole, Field(gt=0, le=1024)] = 1
    timeout_ms: Annotated[Whole, Field(gt=0, le=60_000)] = 250

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "memory://" and not value.startswith(("redis://", "rediss://")):
            raise ValueError("must be memory://, redis://<host>:<port>/<database> or rediss://…")
        if "@" in value:
            raise ValueError("has a password in it: put that into the environment variable BURSAR_REDIS_PASSWORD")
        return value

    @property
    def is_shared(self) -> bool:
        """Whether several gateways may share the counters."""
        return self.url != "memory://"


class Policy(Section):
    """Where policies are decided; a relative bundle folder is relative to the configuration file.

    `shadow` is a second bundle that decides too and is only recorded; `token_env` names what an OPA server asks for.
    """

    url: Annotated[str, Field(max_length=4096)] = "embedded:"
    cache_max: Count = 10_000
    timeout_ms: Annotated[Whole, Field(gt=0, le=60_000)] = 250
    on_unavailable: Annotated[str, Field(pattern=r"^(deny|last_known_good:[1-9][0-9]{0,4})$")] = "deny"
    shadow: Annotated[str, Field(max_length=4096, pattern=r"^embedded:.")] | None = None
    poll_s: Annotated[Seconds, Field(le=60)] = 1
    token_env: EnvName | None = None

    @property
    def last_known_good_s(self) -> int:
        """For how long after the engine went away what it decided before may serve; 0 is not at all."""
        return int(self.on_unavailable.partition(":")[2] or 0)

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value.startswith(("embedded:", "http://", "https://")):
            raise ValueError("must be embedded:<folder>, embedded: for the shipped bundle, or http://<OPA server>:8181")
        if "@" in value and not value.startswith("embedded:"):
            raise ValueError("has a password in it: name the variable that holds a token in token_env")
        return value

    @property
    def is_remote(self) -> bool:
        """Whether an OPA server decides, and not a bundle of this gateway's own."""
        return not self.url.startswith("embedded:")

    @property
    def folder(self) -> str:
        """The bundle's folder as written; empty means the bundle shipped with Bursar."""
        return self.url.removeprefix("embedded:")


class Ledger(Section):
    """Where the ledger stores, and how its journal is cut, synced and kept."""

    url: Annotated[str, Field(max_length=4096)] = "chdb://ledger"
    journal_bytes_max: Size = 4 * GIB
    segment_bytes: Annotated[Size, Field(ge=MIB, validate_default=True)] = 64 * MIB
    fsync_interval_ms: Annotated[Whole, Field(gt=0, le=10_000)] = 10
    retention_s: Annotated[Whole, Field(gt=0, le=3660 * DAY_S)] = 7 * DAY_S
    listen_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    listen_port: Port = 0
    listen_exposed: Annotated[bool, Field(validate_default=True)] = False
    checkpoint_targets: Annotated[tuple[str, ...], Field(max_length=16), AfterValidator(unique)] = ()
    checkpoint_token_env: EnvName | None = None
    prompt_blocks: bool = False

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if value.startswith(("clickhouse://", "https://")):
            server_of(value)
            return value
        if not value.startswith("chdb://") or not value.removeprefix("chdb://").strip("/."):
            raise ValueError(
                "must be chdb://<folder in the home>, chdb:///<absolute folder> or clickhouse://<host>:<port>/<db>"
            )
        return value

    @field_validator("listen_exposed")
    @classmethod
    def _said_so(cls, value: bool, info: ValidationInfo) -> bool:
        host = info.data.get("listen_host", "localhost")
        if not value and not is_loopback(host):
            raise ValueError(f"{NOT_LOOPBACK.format(host)} with true")
        return value

    @field_validator("segment_bytes")
    @classmethod
    def _two_fit(cls, value: int, info: ValidationInfo) -> int:
        if value * 2 > info.data.get("journal_bytes_max", value * 2):
            raise ValueError("two segments must fit into journal_bytes_max: one being written and one in reserve")
        return value

    @field_validator("checkpoint_targets")
    @classmethod
    def _reachable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            try:
                target_of(url)
            except TargetRefused as refused:
                raise ValueError(str(refused)) from refused
        return value

    @property
    def is_embedded(self) -> bool:
        """Whether the store is a folder, and not a ClickHouse server."""
        return self.url.startswith("chdb://")

    def folder(self, home: Path) -> Path:
        """The folder of an embedded store, under the home unless it is absolute."""
        return home / self.url.removeprefix("chdb://")

    def store_url(self, home: Path) -> str:
        """The URL that the ledger process takes."""
        return f"chdb://{self.folder(home)}" if self.is_embedded else self.url


class Telemetry(Section):
    """How much is traced and where traces go."""

    trace_sample: Ratio = 0.01
    otlp_endpoint: WebUrl | None = None
    console: bool = False


class Webhook(Section):
    """A receiver of events, signed with the secret in the environment variable `secret_env`."""

    id: Id
    url: WebUrl
    secret_env: EnvName | None = None
    timeout_s: Seconds = 5
    events: Annotated[
        tuple[Literal["budget_threshold", "overage"], ...], Field(min_length=1), AfterValidator(unique)
    ] = ("budget_threshold", "overage")


class Scope(Section):
    """What a budget covers: a value or `*` (one counter per value) in each dimension that matters."""

    org: Name | None = None
    team: Name | None = None
    app: Name | None = None
    user: Name | None = None
    key: Name | None = None
    run: Name | None = None
    model: Name | None = None
    runtime: Name | None = None

    def named(self) -> tuple[tuple[str, str], ...]:
        """The dimensions that matter with their values, always in the same order, as `ledger.budgets` takes them."""
        return tuple((dimension, value) for dimension, value in self if value is not None)


# Resources that are metered only once a request has ended: a hold has no estimate of them.
NOT_HELD = ("kv_block_us", "energy_uj")


class Budget(Section):
    """A limit on one resource over a scope and a window, in the resource's unit."""

    id: Id
    owner: Name
    scope: Scope
    resource: Resource
    limit: Annotated[Whole, Field(gt=0, le=1 << 62)]
    window: str
    mode: Literal["hard", "soft"] = "hard"
    thresholds: tuple[Ratio, ...] = (0.8, 0.95)
    on_unavailable: Literal["deny", "lease", "allow"] = "lease"

    @field_validator("resource")
    @classmethod
    def _held(cls, value: str) -> str:
        if value in NOT_HELD:
            raise ValueError(
                f"{value} is metered, but not estimated by a hold, so a budget on it could refuse nothing in time: "
                "limit gpu_us or tokens"
            )
        return value

    @field_validator("window")
    @classmethod
    def _spans(cls, value: str, info: ValidationInfo) -> str:
        window = parse_window(value)
        if window.kind == "rolling" and window.duration_s > ROLLING_S_MAX:
            raise ValueError(f"a rolling window may last {ROLLING_S_MAX // DAY_S} days at most")
        if info.data.get("resource") == "concurrency" and value != "total":
            raise ValueError("concurrency counts what is open now and has no windows: use total")
        return value

    @field_validator("thresholds")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) != 2:
            raise ValueError("must be two ratios: where the band turns warn, and where it turns critical")
        if not 0 < value[0] < value[1] <= 1:
            raise ValueError("must ascend, above 0 and up to 1")
        return value


class Config(Section):
    """The whole of `bursar.yaml`: every value checked on its own, defaults filled in."""

    version: Literal[1]
    env: Environment = Environment()
    listen: Listen = Listen()
    limits: Limits = Limits()
    book: Book = Book()
    policy: Policy = Policy()
    ledger: Ledger = Ledger()
    telemetry: Telemetry = Telemetry()
    webhooks: Annotated[tuple[Webhook, ...], Field(max_length=64)] = ()
    runtimes: Annotated[tuple[Runtime, ...], Field(min_length=1, max_length=256)]
    models: Annotated[tuple[Model, ...], Field(min_length=1, max_length=1024)]
    budgets: Annotated[tuple[Budget, ...], Field(max_length=10_000)] = ()
    slos: Slos = ()
    approvals: ApprovalRules = ApprovalRules()
    verify: Verify = Verify()
    quality: Quality = Quality()

    @cached_property
    def price_tables(self) -> dict[str, tuple[tuple[int, Prices], ...]]:
        """The prices of each model with the Unix second each begins at, newest first."""
        return {model.id: model.price_table() for model in self.models}

    @cached_property
    def gpu_rates(self) -> dict[str, GpuRate]:
        """The accelerator rate of each runtime."""
        return {runtime.id: runtime.rate for runtime in self.runtimes}

    def prices_at(self, model_id: str, now_s: float) -> Prices:
        """The prices of a model at a Unix time; LookupError for an unknown model or a time before its first price."""
        for start_s, prices in self.price_tables[model_id]:
            if start_s <= now_s:
                return prices
        raise LookupError(f"model {model_id} has no price at {now_s}")

    def gpu_rate(self, runtime_id: str) -> GpuRate:
        """What a runtime's accelerator time costs; KeyError for an unknown runtime."""
        return self.gpu_rates[runtime_id]
