"""The deployment that a calibration stands for, with some of its knobs changed, as the simulator takes it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from runtime.calibration.engine import CalibratedEngine
from runtime.calibration.stored import Calibration
from runtime.eviction.port import EvictionPolicy
from runtime.routing.port import RoutingPolicy
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment, lru
from runtime.vllm.catalogue import KNOBS, KnobValue
from runtime.vllm.couplings import NULL_BLOCKS, EngineFacts, KnobError, require

# Those that the simulator's engine has under the same name.
_SAME: Final = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "long_prefill_token_threshold",
    "watermark",
    "scheduler_reserve_full_isl",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "async_scheduling",
    "scheduling_policy",
)
_SIZING: Final = ("block_size", "num_gpu_blocks_override", "kv_cache_memory_bytes")
_QUEUE_MAX: Final = 1 << 20
"""vLLM bounds its queue only when it is told to; a simulation has to end."""
MODELLED: Final = (*_SAME, *_SIZING)


def deployment_of(
    calibration: Calibration | None = None,
    knobs: Mapping[str, KnobValue] | None = None,
    *,
    replicas: int = 1,
    routing: Callable[[], RoutingPolicy] | None = None,
    eviction: Callable[[int], EvictionPolicy] = lru,
) -> Deployment:
    """What is simulated; without a calibration, the simulator's own engine and its worked-out step time.

    KnobError for knobs that do not go together, and for those that the simulator does not model.
    """
    changed = dict(knobs or {})
    strangers = [name for name in changed if name not in MODELLED]
    if strangers:
        raise KnobError(f"the simulator does not model {', '.join(strangers)}: it has {', '.join(MODELLED)}")
    if calibration is None:
        engine = _uncalibrated(EngineConfig(max_waiting=_QUEUE_MAX), changed)
        return Deployment(engine, routing=routing, replicas=replicas, eviction=eviction)
    return Deployment(
        _changed(_config(calibration.engine), _checked(calibration.engine, changed)),
        calibration.step_time,
        calibration.overhead,
        eviction,
        routing,
        replicas,
        calibration.engine.accelerators,
    )


def _uncalibrated(config: EngineConfig, changed: Mapping[str, KnobValue]) -> EngineConfig:
    """The simulator's own engine with other knobs, judged as those of a real one are."""
    if changed.get("kv_cache_memory_bytes") is not None:
        raise KnobError(
            "how many blocks kv_cache_memory_bytes makes only a calibration knows: set num_gpu_blocks_override"
        )
    now: dict[str, KnobValue] = {name: getattr(config, name) for name in ("block_size", *_SAME)}
    require({**now, **changed}, EngineFacts(device="cuda", cache_tokens=config.num_blocks * config.block_size))
    return _changed(config, changed)


def _config(engine: CalibratedEngine) -> EngineConfig:
    """The engine as it was when it was calibrated."""
    same = {name: engine.knobs[name] for name in _SAME if engine.knobs.get(name) is not None}
    return EngineConfig(block_size=engine.block_size, num_blocks=engine.num_blocks, max_waiting=_QUEUE_MAX, **same)


def _checked(engine: CalibratedEngine, changed: dict[str, KnobValue]) -> dict[str, KnobValue]:
    """The changes, once the whole set was found to go together on that engine."""
    now = {name: value for name, value in engine.knobs.items() if name in KNOBS}
    tokens = engine.num_blocks * engine.block_size
    require(
        {**now, "block_size": engine.block_size, **changed},
        EngineFacts(engine.device or "cuda", cache_tokens=tokens, knobs=now),
    )
    memory, before = changed.get("kv_cache_memory_bytes"), engine.knobs.get("kv_cache_memory_bytes")
    if memory is None:
        return changed
    if type(before) is not int or type(memory) is not int:
        raise KnobError("kv_cache_memory_bytes was not set when the engine was calibrated: set num_gpu_blocks_override")
    size = changed.get("block_size", engine.block_size)
    assert isinstance(size, int)
    blocks = (engine.num_blocks + NULL_BLOCKS) * engine.block_size * memory // before // size
    return {**changed, "num_gpu_blocks_override": blocks}


def _changed(config: EngineConfig, knobs: Mapping[str, KnobValue]) -> EngineConfig:
    """The configuration with other knobs; another size of blocks keeps the cache's tokens."""
    values: dict[str, Any] = {name: value for name, value in knobs.items() if name in _SAME and value is not None}
    size = knobs.get("block_size") or config.block_size
    blocks = knobs.get("num_gpu_blocks_override")
    assert isinstance(size, int)
    values["block_size"] = size
    values["num_blocks"] = (
        blocks - NULL_BLOCKS if isinstance(blocks, int) else config.num_blocks * config.block_size // size
    )
    try:
        return replace(config, **values)
    except ValueError as error:
        raise KnobError(str(error)) from error
