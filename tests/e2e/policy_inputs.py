"""Inputs of every entry point of a bundle, drawn from a seed: most as a gateway asks, the others wrong in every way.

The names in them come from the bundle's own tables, so that what is asked hits what is written there.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from policy.port import ADMISSION, CHANGE, LAUNCH, RELEASE, SCORING, TOOLS, Document

WRONG_SHARE = 0.4
# Of these nearly every field is the first of what it may be, which is admitted.
CALM_SHARE = 0.6
FIRST_SHARE = 0.97
MUTATIONS_MAX = 3
YES = (True, False)
NO = (False, True)
LEVELS = ("normal", "elevated", "high", "critical")
BANDS = ("ok", "warn", "critical", "exhausted")
CLEARANCES = ("internal", "public", "confidential", "restricted")
ENVIRONMENTS = ("dev", "staging", "prod")
STAGES = ("static", "model", "simulate", "replay", "canary", "deploy")
KINDS = ("config", "compose", "code", "spec", "method")
# What stands where something else should. No fractions: the two engines print them differently, and no policy has one.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1_000, 2**31, 2**53, 2**53 - 1, -(2**53), 2**63 - 1),
    *("", " ", "*", "true", "0", "acme", "Grüße", "数据", "🙂", "a/b", "a.b", "data", "input", "x" * 300),
    *([], {}, [[]], [None], ["shell", "shell"], [1, "1"], {"*": True}, {"allow": True}, [{}], {"": ""}),
)


class Inputs:
    """Draws inputs; the same seed and tables give the same ones."""

    def __init__(self, seed: int, tables: Mapping[str, Any]) -> None:
        self._random = random.Random(seed)
        self._is_calm = False
        self._names = sorted(_strings(tables) | {"acme"})
        self._makers: dict[str, Callable[[], Document]] = {
            ADMISSION: self._admission,
            TOOLS: self._tools,
            CHANGE: self._change,
            LAUNCH: self._launch,
            RELEASE: self._release,
            SCORING: dict,
        }

    def of(self, entry: str) -> Iterator[Document]:
        """Inputs of one entry point, without end."""
        make = self._makers[entry]
        while True:
            self._is_calm = self._random.random() < CALM_SHARE
            document = make()
            if self._random.random() < WRONG_SHARE:
                for _ in range(self._random.randint(1, MUTATIONS_MAX)):
                    self._spoil(document)
            yield document

    def _spoil(self, document: Document) -> None:
        """Take a field out, put something else in its place, or add one, anywhere."""
        at: Any = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                return
            key = self._random.choice(keys)
            if not isinstance(at[key], dict | list) or not at[key] or self._random.random() < 0.3:
                break
            at = at[key]
        what = self._random.random()
        if what < 0.4:
            del at[key]
        elif what < 0.9 or not isinstance(at, dict):
            at[key] = self._odd()
        else:
            at[self._name()] = self._odd()

    def _odd(self) -> Any:
        return copy.deepcopy(self._random.choice((*ODD, self._name())))

    def _name(self) -> str:
        return self._random.choice(self._names)

    def _pick(self, *options: Any) -> Any:
        """One of these, mostly the first where things are calm."""
        if self._is_calm and self._random.random() < FIRST_SHARE:
            return options[0]
        return self._random.choice(options)

    def _one(self, *known: Any) -> Any:
        """One of these, now and then another name of the tables."""
        return self._pick(*known) if self._random.random() < FIRST_SHARE else self._name()

    def _some(self, *known: Any) -> list[Any]:
        return [self._one(*known) for _ in range(self._random.choice((0, 0, 0, 1, 2, 5)))]

    def _permille(self, *first: int) -> int:
        return self._pick(*first, 1_000, 0, 1, 50, 100, 250, 500, 900, self._random.randint(0, 1_000))

    def _level(self) -> dict[str, Any]:
        return {"level": self._pick(*LEVELS)}

    def _environment(self) -> dict[str, Any]:
        return {"name": self._one(*ENVIRONMENTS), "freeze": self._pick(*NO)}

    def _at(self) -> dict[str, Any]:
        minute = self._pick(700, 0, 539, 540, 1_019, 1_020, 1_439)
        at_s = self._random.randint(1_600_000_000, 2_000_000_000)
        return {"weekday": self._pick(2, 0, 1, 3, 4, 5, 6), "minute": minute, "s": at_s}

    def _headroom(self) -> dict[str, Any]:
        return {name: self._permille() for name in ("budget", "risk", "error_budget", "overall")}

    def _principal(self) -> dict[str, Any]:
        return {
            "org": self._one("acme", "globex"),
            "team": self._one("search", "research", "support"),
            "app": self._one("web", "indexer", "batch"),
            "roles": self._some("admin", "developer"),
            "clearance": self._one(*CLEARANCES),
        }

    def _admission(self) -> Document:
        per_resource = {name: self._pick(*BANDS) for name in self._some("tokens", "list_cost_nusd", "requests")}
        return {
            "principal": self._principal(),
            "intent": {
                "model": self._one("sim-small", "sim-large", "sim-embed"),
                "endpoint": self._one("chat", "completions", "embeddings", "responses", "messages"),
                "tools": self._some("search", "shell", "browser", "calculator", "tickets/close"),
                "run": {"depth": self._pick(0, 1, 4, 5, 8, 9), "steps": self._one("none", "few", "many")},
                "stream": self._pick(*NO),
            },
            "budget": {"band": self._one(*BANDS), "worst": self._one("", "tokens"), "per_resource": per_resource},
            "risk": self._level(),
            "env": self._environment(),
        }

    def _tools(self) -> Document:
        is_mcp = self._random.random() < 0.3
        tool = {
            "name": self._one("close", "read") if is_mcp else self._one("search", "shell", "browser", "clock"),
            "server": self._one("tickets", "other") if is_mcp else "",
            "kind": "mcp" if is_mcp else "function",
        }
        return {
            "principal": self._principal(),
            "tool": tool,
            "phase": self._random.choice(("offered", "called")),
            "risk": self._level(),
            "env": self._environment(),
        }

    def _change(self) -> Document:
        at = self._random.randrange(len(STAGES))
        evidence = {
            stage: {
                "passed": self._pick(*YES),
                "samples": self._pick(100_000, 0, 1, 30, 100, 1_000),
                "gain_permille_low": self._pick(100, 0, -1, self._random.randint(-100, 300)),
            }
            for stage in STAGES[: self._pick(at, *range(len(STAGES)))]
        }
        return {
            "change": {
                "id": self._name(),
                "kind": self._one(*KINDS),
                "stage": self._one(STAGES[at], *STAGES),
                "target": self._one("vllm", "runtime", "policy"),
                "reversible": self._pick(*YES),
                "blast_radius": {"requests_permille": self._permille(1), "teams": self._pick(0, 1, 5, 100)},
                "evidence": evidence,
            },
            "loop": {
                "id": self._name(),
                "owner": self._one("acme", "platform"),
                "remaining": {"gpu_us": self._amount(10**15), "list_cost_nusd": self._amount(10**15)},
                "asked": {"gpu_us": self._amount(0), "list_cost_nusd": self._amount(0)},
            },
            "headroom": self._headroom(),
            "risk": self._level(),
            "env": self._environment(),
            "at": self._at(),
        }

    def _amount(self, first: int) -> int:
        return self._pick(first, 0, 1, 10**6, 10**9, self._random.randint(0, 10**12))

    def _launch(self) -> Document:
        kind = self._random.choice(("model", "tool"))
        named = self._one("sim-small", "sim-large") if kind == "model" else self._one("search", "shell", "clock")
        return {"target": {"kind": kind, "id": named}, "env": self._environment(), "at": self._at()}

    def _release(self) -> Document:
        slos = [
            {
                "id": self._name(),
                "remaining_permille": self._permille(),
                "fast_burn_milli": self._pick(0, 500, 1_000, 14_400, 20_000),
                "slow_burn_milli": self._pick(0, 500, 1_000, 6_000, 20_000),
                "state": self._one("ok", "burning", "exhausted", "no_data"),
            }
            for _ in range(self._pick(1, 0, 2, 4))
        ]
        return {
            "release": {"id": self._name(), "team": self._one("search"), "app": self._one("web")},
            "env": self._environment(),
            "headroom": self._headroom(),
            "slos": slos,
            "risk": self._level(),
            "at": self._at(),
        }


def _strings(value: Any) -> set[str]:
    """Every text in a table, keys included."""
    if isinstance(value, Mapping):
        return {str(key) for key in value}.union(*map(_strings, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_strings, value))
    return {value} if isinstance(value, str) else set()
