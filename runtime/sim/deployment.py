"""What is simulated: engines behind a router, and what time is spent outside their steps."""

from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.eviction.lru import LruEviction
from runtime.eviction.port import EvictionPolicy
from runtime.routing.port import RoutingPolicy
from runtime.sim.config import EngineConfig
from runtime.step_time import StepTime


def lru(num_blocks: int) -> EvictionPolicy:
    """vLLM's own policy, the same for any number of blocks."""
    return LruEviction()


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time that passes outside the engine's steps, for each replica.

    A request reaches the engine `arrival_us` and `arrival_token_ns` for each prompt token after it came: reading,
    templates, tokens. Between two steps `gap_us` pass, and `gap_token_ns` for each token that the first put out. What a
    step puts out goes through one serial front end, which takes `output_us` a step and `output_token_ns` a token, and
    queues what it is not through with.
    """

    arrival_us: int = 0
    arrival_token_ns: int = 0
    gap_us: int = 0
    gap_token_ns: int = 0
    output_us: int = 0
    output_token_ns: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative")

    def arrival_delay_us(self, prompt_tokens: int) -> int:
        """From a request's coming to its being queued in the engine, rounded up."""
        return self.arrival_us - (-prompt_tokens * self.arrival_token_ns // 1_000)

    def gap_after_us(self, tokens: int) -> int:
        """From the end of a step that put out so many tokens to the begin of the next, rounded up."""
        return self.gap_us - (-tokens * self.gap_token_ns // 1_000)

    def output_delay_us(self, tokens: int) -> int:
        """What the front end takes for what a step put out, rounded up."""
        return self.output_us - (-tokens * self.output_token_ns // 1_000)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Equal replicas; `eviction` makes the policy of each for its number of blocks, `routing` the one for all of them.

    Raises ValueError for more than one replica without routing. `accelerators` are those of one replica.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    step_time: StepTime = field(default_factory=StepTime)
    overhead: Overhead = field(default_factory=Overhead)
    eviction: Callable[[int], EvictionPolicy] = lru
    routing: Callable[[], RoutingPolicy] | None = None
    replicas: int = 1
    accelerators: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.accelerators < 1:
            raise ValueError("replicas and accelerators must be at least 1")
        if self.replicas > 1 and self.routing is None:
            raise ValueError("several replicas need a routing policy: say which")
