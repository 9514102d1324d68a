"""Whether this engine can be metered, and what it says of itself when it begins."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .catalogue import KNOBS, VERSION
from .writer import TelemetryWriter

ENVIRONMENT = "BURSAR_TELEMETRY"
# A child of vLLM's own logger, so that what it says stands in vLLM's log.
LOG = logging.getLogger("vllm.bursar")


class Clock:
    """Unix microseconds that never go back: the wall clock's, carried on by the monotonic one."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        """The time now."""
        return (time.monotonic_ns() + self._offset_ns) // 1000

    def catch_up(self) -> None:
        """Follow the wall clock where it has gone ahead, as after a machine slept; while no step is on its way."""
        self._offset_ns = max(self._offset_ns, time.time_ns() - time.monotonic_ns())


def folder() -> Path | None:
    """Where telemetry goes, or None when it is not asked for."""
    named = os.environ.get(ENVIRONMENT, "")
    return Path(named) if named else None


def why_not(version: str, config: Any) -> str | None:
    """Why an engine of this version and configuration cannot be metered; None when it can."""
    if ".".join(version.split(".")[:2]) != VERSION:
        return f"this plugin knows vLLM {VERSION}, and this is {version}: install the plugin that is made for it"
    if config.speculative_config is not None:
        return "speculative decoding computes more than one token a step for a request"
    if getattr(config, "diffusion_config", None) is not None:
        return "a diffusion model does not decode token by token"
    transfer = config.kv_transfer_config
    if transfer is not None and transfer.kv_connector != "OffloadingConnector":
        return f"the KV connector {transfer.kv_connector} is not vLLM's own offload tier (kv_offloading_backend native)"
    return None


def facts(version: str, config: Any) -> dict[str, Any]:
    """What the `open` line says of an engine."""
    names = config.model_config.served_model_name
    return {
        "engine": f"vllm {version}",
        "model": names if isinstance(names, str) else str(names[0]),
        "accelerators": config.parallel_config.world_size,
        "device": config.device_config.device_type,
        "knobs": {knob.name: value(config, knob.config) for knob in KNOBS.values() if knob.config},
    }


def value(config: Any, path: str) -> Any:
    """The value at a dotted path of vLLM's configuration, as JSON has it; None where there is no such thing."""
    found = config
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if found is None or isinstance(found, bool | int | float | str) else str(found).removeprefix("torch.")


def open_writer(source: str, version: str, config: Any, more: Callable[[], dict[str, Any]] = dict) -> Any:
    """The writer of a source, with `more` facts; None, and a line in vLLM's log, when this engine cannot be metered.

    A refusal is written as a segment too, whose facts say with `off` why nothing follows.
    """
    place = folder()
    if place is None:
        return None
    reason = why_not(version, config)
    if reason is None:
        return TelemetryWriter(place, source, facts(version, config) | more())
    refuse(source, {"engine": f"vllm {version}"}, reason)
    return None


def refuse(source: str, known: dict[str, Any], reason: str) -> None:
    """Say in the log and in the telemetry's folder why there is no telemetry; the engine serves on."""
    LOG.warning("bursar: no telemetry from here on, and vLLM serves as without it: %s", reason)
    place = folder()
    if place is not None:
        TelemetryWriter(place, source, {**known, "off": reason}).close()
