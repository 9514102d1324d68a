"""Offers: the runtimes there are, the models they serve, and what both cost."""

from datetime import UTC, date, datetime, time
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from domain.prices import GpuRate, Prices
from gateway.config_values import (
    Count,
    EnvName,
    Id,
    Name,
    Number,
    PathText,
    Rate,
    Seconds,
    Section,
    Tokens,
    Whole,
    unique,
    web_url,
)
from runtime.attribution.weights import Weights
from runtime.sim.config import EngineConfig
from runtime.step_time import StepTime

OUTPUT_TOKENS_DEFAULT = 1024
_MODEL = StepTime()


class Sim(Section):
    """Knobs of the embedded simulator; those not given keep the simulator's own defaults."""

    max_model_len: Tokens | None = None
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    num_blocks: Annotated[Whole, Field(gt=0, le=100_000_000)] | None = None
    block_size: Annotated[Whole, Field(gt=0, le=4096)] | None = None
    max_waiting: Count | None = None
    time_scale: Annotated[Number, Field(gt=0, le=1000)] = 1.0

    @property
    def engine(self) -> EngineConfig:
        """The engine's own configuration; raises ValueError where the knobs do not fit together."""
        return EngineConfig(**self.model_dump(exclude={"time_scale"}, exclude_none=True))

    @model_validator(mode="after")
    def _fits(self) -> "Sim":
        assert self.engine
        return self


class Work(Section):
    """What a unit of work weighs when a step's time is shared: the variable coefficients of the step-time model.

    Those not given are the model's own; `bursar runtime calibrate` measures them.
    """

    prefill_request_ns: Rate = _MODEL.prefill_request_ns
    prefill_token_ns: Rate = _MODEL.prefill_token_ns
    prefill_context_ps: Rate = _MODEL.prefill_context_ps
    decode_request_ns: Rate = _MODEL.decode_request_ns
    decode_context_ps: Rate = _MODEL.decode_context_ps

    @property
    def weights(self) -> Weights:
        """The weights as attribution takes them."""
        return Weights.of(StepTime(_MODEL.base_us, **self.model_dump()))

    @model_validator(mode="after")
    def _weighs(self) -> "Work":
        assert self.weights
        return self


class Runtime(Section):
    """An inference runtime: where it is, what its accelerators cost, and how patient the gateway is with it.

    The rate is nano-USD per accelerator-hour; the coefficients are accelerator microseconds per million tokens.
    """

    id: Id
    owner: Name
    url: Annotated[str, Field(max_length=2048)]
    gpus: Annotated[Whole, Field(gt=0, le=100_000)] = 1
    gpu_nusd_per_hour: Rate = 0
    gpu_us_per_input_mtok: Rate = 0
    gpu_us_per_output_mtok: Rate = 0
    api_key_env: EnvName | None = None
    api_key_file: PathText | None = None
    connections_max: Count = 1024
    connect_timeout_s: Seconds = 5
    first_byte_timeout_s: Seconds = 120
    idle_timeout_s: Seconds = 60
    retries_max: Annotated[Whole, Field(ge=0, le=10)] = 1
    breaker_failures: Annotated[Whole, Field(gt=0, le=10_000)] = 5
    breaker_reset_s: Seconds = 10
    vllm: bool = True
    telemetry: PathText | None = None
    work: Work = Work()
    power_w: Annotated[Number, Field(ge=0, le=100_000)] = 0
    nvml_devices: Annotated[
        tuple[Annotated[Whole, Field(ge=0, le=1023)], ...], Field(max_length=1024), AfterValidator(unique)
    ] = ()
    sample_interval_s: Annotated[Seconds, Field(ge=1, le=3600)] = 10
    hold_factor: Annotated[Number, Field(ge=1, le=100)] = 1
    sim: Sim | None = None

    @property
    def rate(self) -> GpuRate:
        """What its accelerator time costs and how much of it tokens take."""
        return GpuRate(self.gpu_nusd_per_hour, self.gpu_us_per_input_mtok, self.gpu_us_per_output_mtok)

    @property
    def hold_rate(self) -> GpuRate:
        """What a hold sets aside: the rate, with so many times the time."""
        factor = Fraction(self.hold_factor)
        per_mtok = self.gpu_us_per_input_mtok, self.gpu_us_per_output_mtok
        return GpuRate(self.gpu_nusd_per_hour, *[ceil(us * factor) for us in per_mtok])

    @property
    def is_sim(self) -> bool:
        return self.url == "sim://"

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == "sim://":
            return value
        if urlsplit(web_url(value)).query or "#" in value:
            raise ValueError("must be sim://, http://host… or https://host…, without a query")
        return value

    @field_validator("api_key_file")
    @classmethod
    def _one_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("api_key_env") is not None:
            raise ValueError("name either api_key_env or api_key_file, not both")
        return value

    @field_validator("telemetry")
    @classmethod
    def _told(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("url") == "sim://":
            raise ValueError("an embedded runtime tells into its home: leave it out")
        return value

    @field_validator("sim")
    @classmethod
    def _simulated(cls, value: Sim | None, info: ValidationInfo) -> Sim | None:
        if value is not None and info.data.get("url", "sim://") != "sim://":
            raise ValueError("belongs to a runtime whose url is sim://")
        return value


class Price(Section):
    """Nano-USD per million tokens from a day on (UTC); cached input costs as much as other input unless said."""

    valid_from: date
    input_nusd_per_mtok: Rate
    cached_input_nusd_per_mtok: Rate = Field(default_factory=lambda data: data["input_nusd_per_mtok"])
    output_nusd_per_mtok: Rate

    @property
    def start_s(self) -> int:
        """The Unix second at which the price begins."""
        return int(datetime.combine(self.valid_from, time.min, UTC).timestamp())

    def prices(self, model_id: str) -> Prices:
        """The price as the arithmetic takes it, under the version that every charge names."""
        return Prices(
            f"{model_id}@{self.valid_from}",
            self.input_nusd_per_mtok,
            self.cached_input_nusd_per_mtok,
            self.output_nusd_per_mtok,
        )


def _priced(value: Any) -> Any:
    if value is None:
        raise ValueError("a model without a price is refused: list dated prices, or write `price: free`")
    if not isinstance(value, str | list | tuple):
        raise ValueError("must be `free` or a list of dated prices")  # noqa: TRY004  # pydantic reports ValueError by field
    return value


Dated = Annotated[tuple[Price, ...], Field(min_length=1, max_length=256)]
Pricing = Annotated[
    Annotated[Literal["free"], Tag("free")] | Annotated[Dated, Tag("dated")],
    Discriminator(lambda value: "free" if isinstance(value, str) else "dated"),
    BeforeValidator(_priced),
]


class Model(Section):
    """A model as callers name it: who serves it, how large it is, and what it costs."""

    id: Id
    owner: Name
    runtimes: Annotated[tuple[Id, ...], Field(min_length=1, max_length=16), AfterValidator(unique)]
    routing: Literal["least_load", "round_robin", "prefix_affinity"] = "least_load"
    upstream_model: Annotated[str, Field(min_length=1, max_length=256)] = Field(default_factory=lambda data: data["id"])
    endpoints: Annotated[
        tuple[Literal["chat", "completions", "embeddings"], ...], Field(min_length=1), AfterValidator(unique)
    ]
    context_tokens: Tokens
    max_output_tokens: Tokens = Field(default_factory=lambda data: min(OUTPUT_TOKENS_DEFAULT, data["context_tokens"]))
    template_tokens_per_message: Annotated[Whole, Field(ge=0, le=1_000_000)] = 8
    template_tokens_fixed: Annotated[Whole, Field(ge=0, le=1_000_000)] = 16
    tokenizer: PathText | None = None
    price: Pricing = Field(default=None, validate_default=True)

    @field_validator("upstream_model", mode="before")
    @classmethod
    def _own_name(cls, value: Any, info: ValidationInfo) -> Any:
        return info.data.get("id") if value is None else value

    @field_validator("max_output_tokens")
    @classmethod
    def _in_context(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("context_tokens", value):
            raise ValueError("must not exceed context_tokens")
        return value

    @field_validator("price")
    @classmethod
    def _ascending(cls, value: Any) -> Any:
        days = [] if value == "free" else [row.valid_from for row in value]
        for earlier, later in pairwise(days):
            if later <= earlier:
                raise ValueError(f"must be sorted by valid_from: {later} follows {earlier}")
        return value

    def price_table(self) -> tuple[tuple[int, Prices], ...]:
        """Each price with the Unix second it begins at, newest first."""
        if self.price == "free":
            return ((0, Prices("free")),)
        return tuple((row.start_s, row.prices(self.id)) for row in reversed(self.price))
