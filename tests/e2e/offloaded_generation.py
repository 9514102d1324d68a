"""Generates with a vLLM on CPU whose KV blocks are offloaded under a policy; runs in `.venv-vllm`.

`offloaded_generation.py MODEL POLICY` prints as JSON what was generated, how many prompt tokens came out of the
caches, and what the policy was asked. POLICY is `none` for no offloading, `lru` or `arc` of vLLM, one of Bursar's
classes, or `refused` for vLLM's spec as it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the policy can be watched from here
os.environ["PYTHONHASHSEED"] = "0"

from vllm import LLM, SamplingParams
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

BLOCK = 32
ENGINE_BLOCKS = 24
OFFLOADED_BLOCKS = 60
TURNS, USERS = 4, 12
HERE = Path(__file__).resolve().parent


def engine(model: str, policy: str) -> LLM:
    """An engine with room for little more than one conversation."""
    more: dict[str, Any] = {}
    if policy != "none":
        extra = {"cpu_bytes_to_use": OFFLOADED_BLOCKS * block_bytes(model), "eviction_policy": policy}
        if policy == "refused":
            extra["eviction_policy"] = "lru"
        else:
            extra |= {"spec_name": "OffloadingOnCpu", "spec_module_path": "offloading_on_cpu"}
        if policy.startswith("Bursar"):
            extra["cache_policy_module_path"] = "bursar_vllm.cache_policy"
        more["kv_transfer_config"] = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
    return LLM(
        model=model,
        enforce_eager=True,
        block_size=BLOCK,
        max_model_len=512,
        max_num_seqs=1,
        num_gpu_blocks_override=ENGINE_BLOCKS,
        disable_log_stats=True,
        **more,
    )


def block_bytes(model: str) -> int:
    """What the KV of a block takes up, rounded as vLLM rounds it."""
    config = json.loads((Path(model) / "config.json").read_text())
    page = 2 * 2 * BLOCK * config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"]
    return -(-page // 4096) * 4096


def watch() -> Counter[str]:
    """Count what the manager is asked and what it answers."""
    counts: Counter[str] = Counter()
    prepare_load, prepare_store = CPUOffloadingManager.prepare_load, CPUOffloadingManager.prepare_store

    def loading(self: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        counts["loaded"] += len(keys)
        counts[type(self._policy).__name__] += 1
        return prepare_load(self, keys, *args, **kwargs)

    def storing(self: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        output = prepare_store(self, keys, *args, **kwargs)
        if output is not None:
            counts["stored"] += len(output.keys_to_store)
            counts["evicted"] += len(output.evicted_keys)
        return output

    CPUOffloadingManager.prepare_load, CPUOffloadingManager.prepare_store = loading, storing
    return counts


def main() -> None:
    model, policy = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    counts = watch()
    llm = engine(model, policy)
    dice, cached, generated = Random(1), 0, []
    said = {user: [dice.randrange(10, 250) for _ in range(96)] for user in range(USERS)}
    for _ in range(TURNS * USERS):
        user = dice.randrange(USERS)
        if len(said[user]) > 400:
            said[user] = said[user][:96]
        parameters = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        [answer] = llm.generate({"prompt_token_ids": said[user]}, parameters, use_tqdm=False)
        cached += answer.num_cached_tokens or 0
        generated.append(list(answer.outputs[0].token_ids))
        said[user] += [*generated[-1], *(dice.randrange(10, 250) for _ in range(40))]
    sys.stdout.write("\n" + json.dumps({"generated": generated, "cached": cached, "counts": counts}) + "\n")


if __name__ == "__main__":
    main()
