"""Privileges: what the policy grants to the keys that there are, held against what the ledger has seen used.

The policy itself is asked, as for requests of each key, so that any bundle is understood: a grant is what it allows at
normal risk, with budgets left and outside of a freeze.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gateway.keys import Key
from ledger.privileges import App, Uses
from ledger.reports import BadReport
from policy.port import ADMISSION, TOOLS, PolicyInput, canonical

QUESTIONS_MAX = 200_000
# From the least to the most; a key with a clearance of another name is left alone.
CLEARANCES = ("public", "internal", "confidential", "restricted")


class Outcome(Protocol):
    """What the policy answers to one input."""

    @property
    def value(self) -> Any: ...


class Engine(Protocol):
    """What the report needs of an engine: the answers to many inputs, in order."""

    @property
    def entries(self) -> tuple[str, ...]: ...

    def outcomes(self, entry: str, inputs: Iterable[bytes], /) -> Iterator[Outcome]:
        """The outcome of each input; raises EngineAway where the engine ends."""
        ...


class Model(NamedTuple):
    """A model that is configured, on one of its endpoints."""

    endpoint: str
    model: str


class Tool(NamedTuple):
    """A tool that is registered, or that requests have offered."""

    name: str
    server: str
    kind: str


class Unused(NamedTuple):
    """A grant that nobody used: of which kind, to whom, what, when it was last used and since when it can have been.

    Times are Unix seconds; 0 in `last_s` is never, as far as the ledger knows.
    """

    kind: str
    org: str
    team: str
    app: str
    what: str
    last_s: int
    since_s: int
    suggestion: str


class _Who(NamedTuple):
    """All that policy sees of a key."""

    app: App
    roles: tuple[str, ...]
    clearance: str


@dataclass
class _Asker:
    """Asks the policy, each question once and no more than there may be."""

    engine: Engine
    env_name: str
    allowed: dict[bytes, tuple[bool, Mapping[str, Any]]] = field(default_factory=dict)

    def ask(self, entry: str, inputs: Sequence[bytes]) -> list[tuple[bool, Mapping[str, Any]]]:
        """Whether each is allowed, and the obligations of that; what has no proper answer is not allowed."""
        new = [each for each in dict.fromkeys(inputs) if each not in self.allowed]
        if len(self.allowed) + len(new) > QUESTIONS_MAX:
            raise BadReport(f"the policy would be asked more than {QUESTIONS_MAX} questions: narrow it with --team")
        for each, outcome in zip(new, self.engine.outcomes(entry, new), strict=True):
            self.allowed[each] = _read(outcome.value)
        return [self.allowed[each] for each in inputs]

    def admits(self, who: _Who, models: Sequence[Model]) -> list[bool]:
        """Which of these models it admits."""
        return [allow for allow, _ in self.ask(ADMISSION, [self._admission(who, model) for model in models])]

    def permits(self, who: _Who, model: Model, tools: Sequence[Tool]) -> list[bool]:
        """Which of these tools it permits in requests on a model that it admits."""
        # Requests name functions alone; the tools of a server are decided when they are called.
        names = tuple(dict.fromkeys(tool.name for tool in tools if not tool.server))
        [(_, obligations)] = self.ask(ADMISSION, [self._admission(who, model, names)])
        blocked = obligations.get("blocked_tools", ())
        decided = [True] * len(tools)
        if TOOLS in self.engine.entries:
            decided = [allow for allow, _ in self.ask(TOOLS, [self._tool(who, tool) for tool in tools])]
        return [
            allow and (bool(tool.server) or tool.name not in blocked)
            for allow, tool in zip(decided, tools, strict=True)
        ]

    def _admission(self, who: _Who, model: Model, tools: tuple[str, ...] = ()) -> bytes:
        (org, team, app), roles, clearance = who
        given = PolicyInput(
            org, team, app, roles, clearance, model.endpoint, model.model, tools, env_name=self.env_name
        )
        return canonical(given.document())

    def _tool(self, who: _Who, tool: Tool) -> bytes:
        (org, team, app), roles, clearance = who
        return canonical(
            {
                "principal": {"org": org, "team": team, "app": app, "roles": list(roles), "clearance": clearance},
                "tool": {"name": tool.name, "server": tool.server, "kind": tool.kind},
                "phase": "called",
                "risk": {"level": "normal"},
                "env": {"name": self.env_name, "freeze": False},
            }
        )


@dataclass
class Report:
    """The over-privilege report over one bundle: `keys` are those in force, `since_s` is where the period begins."""

    engine: Engine
    env_name: str
    keys: Sequence[Key]
    models: Sequence[Model]
    tools: Sequence[Tool]
    used: Uses
    since_s: int

    def __post_init__(self) -> None:
        self._asker = _Asker(self.engine, self.env_name)
        self._models_of: dict[str, dict[Model, int]] = {}
        for use in self.used.models:
            last = self._models_of.setdefault(use.key_id, {})
            model = Model(use.endpoint, use.model)
            last[model] = max(use.last_s, last.get(model, 0))

    def unused(self) -> Iterator[Unused]:
        """Every grant that was not used in the period; BadReport where there are too many to ask for."""
        apps: dict[App, list[Key]] = {}
        for key in self.keys:
            apps.setdefault(App(key.org, key.team, key.app), []).append(key)
        for app, keys in sorted(apps.items()):
            since_s = max(self.used.first_s, min(key.created_at for key in keys))
            granted = self._granted(app, keys)
            yield from self._unused_models(app, granted, since_s)
            yield from self._unused_tools(app, granted, since_s)
            for key in keys:
                yield from self._unused_of_key(app, key)

    def _granted(self, app: App, keys: Iterable[Key]) -> dict[Model, _Who]:
        """The models that some key of an app is admitted to, with what the first such key is."""
        granted: dict[Model, _Who] = {}
        for who in dict.fromkeys(_who(app, key) for key in keys):
            for model, admitted in zip(self.models, self._asker.admits(who, self.models), strict=True):
                if admitted:
                    granted.setdefault(model, who)
        return granted

    def _unused_models(self, app: App, granted: Iterable[Model], since_s: int) -> Iterator[Unused]:
        last: dict[Model, int] = {}
        for use in self.used.models:
            if use.app == app:
                model = Model(use.endpoint, use.model)
                last[model] = max(use.last_s, last.get(model, 0))
        for model in granted:
            last_s = last.get(model, 0)
            if last_s < self.since_s:
                what, suggestion = f"{model.model} on {model.endpoint}", "do not offer it to this app"
                yield Unused("model", *app, what, last_s, since_s, suggestion)

    def _unused_tools(self, app: App, granted: Mapping[Model, _Who], since_s: int) -> Iterator[Unused]:
        if not granted or not self.tools:
            return
        last = {Tool(use.tool, use.server, use.kind): use.last_s for use in self.used.tools if use.app == app}
        asked = {who: model for model, who in granted.items()}
        permitted = zip(*(self._asker.permits(who, model, self.tools) for who, model in asked.items()), strict=True)
        for tool, by_key in zip(self.tools, permitted, strict=True):
            last_s = last.get(tool, 0)
            if any(by_key) and last_s < self.since_s:
                what = f"{tool.name} of {tool.server}" if tool.server else tool.name
                yield Unused("tool", *app, what, last_s, since_s, "deny it to this app")

    def _unused_of_key(self, app: App, key: Key) -> Iterator[Unused]:
        last = self._models_of.get(key.key_id, {})
        last_s, since_s = max(last.values(), default=0), max(self.used.first_s, key.created_at)
        in_use = [model for model, used_s in last.items() if used_s >= self.since_s]
        if not in_use:
            yield Unused("key", *app, key.key_id, last_s, since_s, f"bursar key revoke {key.key_id}")
            return
        who = _who(app, key)
        if not all(self._asker.admits(who, in_use)):
            return  # policy was another when these were used, so nothing follows of what would still be admitted
        for role in key.roles:
            less = who._replace(roles=tuple(each for each in who.roles if each != role))
            if all(self._asker.admits(less, in_use)):
                suggestion = f"make the key {key.key_id} anew without it"
                yield Unused("role", *app, role, 0, since_s, suggestion)
        lower = CLEARANCES[: CLEARANCES.index(key.clearance)] if key.clearance in CLEARANCES else ()
        for clearance in lower:
            if all(self._asker.admits(who._replace(clearance=clearance), in_use)):
                suggestion = f"make the key {key.key_id} anew with clearance {clearance}"
                yield Unused("clearance", *app, key.clearance, 0, since_s, suggestion)
                return


def registered(data: Mapping[str, Any]) -> list[Tool]:
    """The tools in the registry of a bundle's tables, where a tool of a server stands under `server/name`."""
    registry: Any = data
    for part in ("bursar", "tools", "registry"):
        registry = registry.get(part) if isinstance(registry, dict) else None
    found = []
    for name in registry if isinstance(registry, dict) else ():
        server, is_of_server, tool = name.partition("/")
        found.append(Tool(tool, server, "mcp") if is_of_server else Tool(name, "", "function"))
    return found


def in_force(keys: Iterable[Key], now_s: int) -> list[Key]:
    """The keys that open something to an app now."""
    return [
        key
        for key in keys
        if key.kind == "app" and key.revoked_at is None and (key.expires_at is None or now_s < key.expires_at)
    ]


def _who(app: App, key: Key) -> _Who:
    return _Who(app, key.roles, key.clearance)


def _read(value: object) -> tuple[bool, Mapping[str, Any]]:
    if not isinstance(value, dict) or value.get("allow") is not True:
        return False, {}
    obligations = value.get("obligations")
    return True, obligations if isinstance(obligations, dict) else {}
