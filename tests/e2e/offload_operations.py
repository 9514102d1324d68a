"""Drives vLLM's manager of offloaded blocks with random requests, without a model; runs in `.venv-vllm`.

`offload_operations.py one-by-one POLICY` prints as JSON what each request found, stored and pushed out, each request
ending before the next begins. `… at-once POLICY` has several under way, whose transfers end at any time or fail, holds
the manager to what it may do, and prints how much it did.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

CHUNKS = 24
REQUESTS = 1_500
UNDER_WAY = 4
BUILT_IN = ("lru", "arc")


def manager(policy: str) -> CPUOffloadingManager:
    """vLLM's manager, with its own policy or one of Bursar's."""
    module = None if policy in BUILT_IN else "bursar_vllm.cache_policy"
    return CPUOffloadingManager(CHUNKS, cache_policy=policy, cache_policy_module_path=module)


def chain(dice: Random) -> list[Any]:
    """The keys of a prompt: a path through one tree, whose beginnings some share."""
    path, keys = b"", []
    for _ in range(dice.randint(1, 8)):
        path += bytes([dice.choice((0, 0, 1, 2))])
        keys.append(make_offload_key(path.rjust(32, b"-"), 0))
    return keys


@dataclass
class Request:
    """One request on its way through the manager."""

    cache: CPUOffloadingManager
    context: ReqContext
    keys: list[Any]
    loads: list[Any] = field(default_factory=list)
    stores: list[Any] = field(default_factory=list)
    evicted: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Load what is there, and make room for what is not."""
        for place, key in enumerate(self.keys):
            self.context.set_offload_key_position(key, place)
        self.cache.on_new_request(self.context)
        for key in self.keys:
            if self.cache.lookup(key, self.context) is not LookupResult.HIT:
                break
            self.loads.append(key)
        if self.loads:
            self.cache.prepare_load(self.loads, self.context)
        output = self.cache.prepare_store(self.keys, self.context)
        if output is not None:
            self.stores, self.evicted = list(output.keys_to_store), list(output.evicted_keys)

    def loaded(self) -> None:
        """The load has ended."""
        self.cache.complete_load(self.loads, self.context)

    def stored(self, success: bool = True) -> None:
        """The store has ended."""
        self.cache.complete_store(self.stores, self.context, success)

    def finish(self) -> None:
        """The request has ended."""
        self.cache.on_request_finished(self.context)


def one_by_one(policy: str) -> list[Any]:
    """What becomes of each request."""
    dice, cache, told = Random(1), manager(policy), []
    for index in range(REQUESTS):
        request = Request(cache, ReqContext(str(index)), chain(dice))
        request.begin()
        request.loaded()
        request.stored(success=dice.random() < 0.9)
        request.finish()
        told.append([[key.hex() for key in keys] for keys in (request.loads, request.stores, request.evicted)])
    return told


def at_once(policy: str) -> Counter[str]:
    """How much was done, while nothing that is pinned was given up and nothing was cached beyond the room."""
    dice, cache, counts = Random(2), manager(policy), Counter[str]()
    waiting: list[tuple[Request, list[str]]] = []
    for index in range(REQUESTS):
        pinned = Counter(key for request, left in waiting for key in request.loads if "loaded" in left)
        pinned.update(key for request, left in waiting for key in request.stores if "stored" in left)
        request = Request(cache, ReqContext(str(index)), chain(dice))
        request.begin()
        assert not {key for key in request.evicted if pinned[key]}, "what is pinned was given up"
        assert not set(request.evicted) & set(request.keys), "what the request itself needs was given up"
        counts.update(loaded=len(request.loads), stored=len(request.stores), evicted=len(request.evicted))
        waiting.append((request, dice.sample(["loaded", "stored", "finish"], 3)))
        while waiting and (len(waiting) >= UNDER_WAY or dice.random() < 0.5):
            step(waiting, dice)
        assert len(cache._policy.chunks) <= CHUNKS
    while waiting:
        step(waiting, dice)
    keys = set(cache._policy.chunks)
    given_up = cache._policy.evict(len(keys), set())
    assert given_up is not None
    assert {key for key, _ in given_up} == keys, "all that is left can be given up once nothing is under way"
    assert cache._policy.evict(1, set()) is None
    return counts


def step(waiting: list[tuple[Request, list[str]]], dice: Random) -> None:
    """Let one thing end that is under way."""
    request, left = waiting[dice.randrange(len(waiting))]
    what = left.pop()
    if what == "stored":
        request.stored(success=dice.random() < 0.9)
    else:
        getattr(request, what)()
    if not left:
        waiting.remove((request, left))


def main() -> None:
    mode, policy = sys.argv[1:]
    told = one_by_one(policy) if mode == "one-by-one" else dict(at_once(policy))
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
