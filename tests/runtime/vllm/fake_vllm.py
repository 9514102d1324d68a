"""A scheduler with the names of vLLM's, small enough to be read, and the plugin assembled as its wheel is."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PLUGIN = Path(__file__).resolve().parents[3] / "runtime" / "vllm" / "plugin"


class Request:
    """A request with the attributes of vLLM's that the plugin reads."""

    def __init__(self, request_id: str, prompt: int, output: int, cached: int = 0) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = prompt
        self.output = output
        self.cached = cached
        self.num_computed_tokens = 0
        self.num_output_tokens = 0
        self.placeholders = 0
        self.is_prefill_chunk = False
        self.reason = "length"
        self.resumable = False

    @property
    def num_tokens(self) -> int:
        """What is known of it, prompt and answer."""
        return self.num_prompt_tokens + self.num_output_tokens

    def get_finished_reason(self) -> str:
        """Why it ended."""
        return self.reason


class Scheduler:
    """First come, first served, with chunks, preemption of the last, and as many batches ahead as asked."""

    chunk = 8
    seats = 4
    decoded_per_step = 1

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.block_size = 16
        pool = SimpleNamespace(num_gpu_blocks=11, get_num_free_blocks=lambda: 10 - len(self.running))
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.is_shut = False

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def get_request_counts(self) -> tuple[int, int]:
        return len(self.running), len(self.waiting)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        entered = []
        while self.waiting and len(self.running) < self.seats:
            request = self.waiting.popleft()
            request.num_computed_tokens = min(request.cached, request.num_tokens - 1)
            self.running.append(request)
            entered.append(request)
        chunks = {}
        for request in self.running:
            known = request.num_tokens + request.placeholders
            if request.num_output_tokens + request.placeholders >= request.output:
                continue
            left = known - request.num_computed_tokens
            chunks[request.request_id] = min(left, self.chunk) if left > 1 else left * self.decoded_per_step
        for request_id, tokens in chunks.items():
            request = self.requests[request_id]
            request.num_computed_tokens += tokens
            request.is_prefill_chunk = request.num_computed_tokens < request.num_tokens + request.placeholders
            if not request.is_prefill_chunk:
                request.placeholders += 1
        return SimpleNamespace(
            scheduled_new_reqs=[SimpleNamespace(req_id=request.request_id) for request in entered],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
            num_scheduled_tokens=chunks,
            total_num_scheduled_tokens=sum(chunks.values()),
            sampled=[each for each in chunks if not self.requests[each].is_prefill_chunk],
        )

    def update_from_output(self, output: Any, result: Any = None) -> str:
        for request_id in output.sampled:
            request = self.requests.get(request_id)
            if request is None or not request.placeholders:
                continue
            request.placeholders -= 1
            request.num_output_tokens += 1
            if request.num_output_tokens == request.output:
                self.running.remove(request)
                self._free_request(request)
        return "outputs"

    def finish_requests(self, request_id: str) -> None:
        request = self.requests.get(request_id)
        if request is not None:
            request.reason = "abort"
            (self.running if request in self.running else self.waiting).remove(request)
            self._free_request(request)

    def preempt(self) -> None:
        if self.running:
            self._preempt_request(self.running.pop(), 0.0)

    def _preempt_request(self, request: Request, timestamp: float) -> None:
        request.num_computed_tokens = request.placeholders = 0
        self.waiting.appendleft(request)

    def _free_request(self, request: Request) -> None:
        del self.requests[request.request_id]

    def shutdown(self) -> None:
        self.is_shut = True


class AsyncScheduler(Scheduler):
    """The kind that is scheduled ahead."""


class DiffusionScheduler(Scheduler):
    """The kind that vLLM chooses itself for a diffusion model, where no class is named."""


class DiffusionAsyncScheduler(DiffusionScheduler, AsyncScheduler):
    """The same, scheduled ahead."""


class StatLoggerBase:
    """What vLLM's loggers derive from."""


class DType:
    """A precision, which says its name as torch's do."""

    def __str__(self) -> str:
        return "torch.float32"


def configuration(*, ahead: bool = False, **changed: Any) -> SimpleNamespace:
    """As much of vLLM's configuration as the plugin reads."""
    whole: dict[str, Any] = {
        "model_config": SimpleNamespace(served_model_name=["tiny", "alias"], max_model_len=64, dtype=DType()),
        "scheduler_config": SimpleNamespace(async_scheduling=ahead, max_num_seqs=4, policy="fcfs"),
        "cache_config": SimpleNamespace(cache_dtype="auto"),
        "parallel_config": SimpleNamespace(world_size=2, data_parallel_index=3),
        "device_config": SimpleNamespace(device_type="cuda"),
        "speculative_config": None,
        "kv_transfer_config": None,
    }
    return SimpleNamespace(**{**whole, **changed})


@contextmanager
def plugin(folder: Path, version: str = "0.32.0", without: str = "") -> Iterator[ModuleType]:
    """The plugin's package beside a vLLM of some version, which may lack one of its modules."""
    kinds = {
        "v1.core.sched.scheduler": (Scheduler,),
        "v1.core.sched.async_scheduler": (AsyncScheduler,),
        "v1.core.sched.diffusion_scheduler": (DiffusionScheduler, DiffusionAsyncScheduler),
        "v1.metrics.loggers": (StatLoggerBase,),
    }
    fakes: dict[str, dict[str, Any]] = {
        f"vllm.{path}": {kind.__name__: kind for kind in named}
        for path, named in kinds.items()
        if path.rsplit(".", 1)[1] != without
    }
    fakes["vllm.version"] = {"__version__": version}
    before = dict(sys.modules)
    for path, content in fakes.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), ModuleType(parts[end - 1]))
        vars(sys.modules[path]).update(content)
    sys.path.insert(0, str(assembled(folder)))
    try:
        yield __import__("bursar_vllm")
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("vllm", "bursar_vllm"):
                del sys.modules[name]


def assembled(folder: Path) -> Path:
    """A folder with the package as its wheel has it, by the word of the plugin's own pyproject.toml."""
    with (PLUGIN / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    [package] = wheel["packages"]
    shutil.copytree(PLUGIN / package, folder / "bursar_vllm", dirs_exist_ok=True)
    for source, target in wheel["force-include"].items():
        path = PLUGIN / source
        if path.is_dir():
            shutil.copytree(path, folder / target, dirs_exist_ok=True)
        else:
            shutil.copy(path, folder / target)
    return folder
