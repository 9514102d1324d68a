"""The parts of one gateway worker on a clock that tests set, over a deployment whose runtimes nobody calls."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from domain.ids import uuid7
from domain.intent import Intent, Principal
from gateway import assembly, flow, rows
from gateway.admission import Admitted, Ask
from gateway.assembly import Opened
from gateway.config_file import LoadedConfig, load
from gateway.engines import Engines
from gateway.errors import Refusal
from gateway.governance import Governance
from gateway.home import Home
from gateway.pseudonyms import Pseudonyms
from ledger.segments import read
from observability.metrics import Metrics
from policy.checks.process import CheckProcess
from policy.decider import Decider
from runtime.client import RuntimeClient
from tests.gateway.deployment import KEY_ENV, deploy

US = 1_000_000
NOON_US = 1_772_280_000 * US  # 2026-02-28T12:00:00Z
ENVIRON = {KEY_ENV: "runtime-secret"}


def budget(budget_id: str, limit: int, window: str = "day", resource: str = "tokens", **scope: str) -> dict[str, Any]:
    return {
        "id": budget_id,
        "owner": "finance",
        "scope": scope or {"org": "acme"},
        "resource": resource,
        "limit": limit,
        "window": window,
    }


@dataclass
class OneWorker:
    """A worker that can die and be opened again on the same home; `now_us` is its clock."""

    folder: Path
    now_us: int = NOON_US
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "home")
        self.opened: Opened | None = None
        self.decider: Decider | None = None

    def load(self) -> LoadedConfig:
        return load(deploy(self.folder, "http://127.0.0.1:9", **self.sections), ENVIRON)

    def open_book(self) -> Opened:
        pseudonyms = Pseudonyms(self.home.secret("pseudonym"))
        self.loaded = self.load()
        self.opened = assembly.open_book(self.home, self.loaded.config, pseudonyms, lambda: self.now_us)
        return self.opened

    async def open(self) -> Governance:
        """A book rebuilt from the home, and everything around it."""
        opened, loaded = self.open_book(), self.loaded
        self.clients: dict[str, RuntimeClient] = await assembly.open_clients(loaded, {}, ENVIRON, {})
        self.engines = Engines(ENVIRON)
        self.checks = CheckProcess(2.0, ())
        deciding = await self.engines.open(loaded)
        of = assembly.governance_of(opened, loaded, self.clients, Metrics(), deciding.engine, self.checks)
        of.now_us = lambda: self.now_us
        self.decider = of.decider
        return of

    async def close(self) -> None:
        """Let go of everything, as a kill would, without settling anything."""
        if self.opened is not None:
            self.opened.journal.close()
        for client in getattr(self, "clients", {}).values():
            await client.close()
        if self.decider is not None:
            await self.engines.close(self.decider)
            await self.checks.close()
            self.decider = None

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What the journal holds of one kind, oldest first."""
        found = read(assembly.writer_directory(self.home))
        return [orjson.loads(record.payload) for record in found if record.kind == kind]


def ask(of: Governance, **changes: Any) -> Ask:
    """A chat request of team search for the model `plain`."""
    principal = Principal("acme", "search", "web", "", "k1")
    intent = Intent(
        request_id=uuid7(),
        principal=principal,
        endpoint="chat",
        model="plain",
        stream=False,
        input_bound=40,
        max_output_tokens=60,
    )._replace(**changes)
    return Ask(intent, of.now_us(), rows.identity(intent, ""))


async def admitted(of: Governance, **changes: Any) -> Admitted:
    """Such a request, admitted."""
    result = await flow.admit(of, ask(of, **changes))
    assert not isinstance(result, Refusal), result.message
    return result
