"""A home with decisions on record, written as a gateway writes them: five inputs in use, some with a shadow."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from domain.decision import Decision
from domain.ids import uuid7
from gateway.assembly import record_decision
from ledger.client import open_ledger
from ledger.journal import Journal
from policy.child import Child
from policy.decider import Recorded
from policy.decision import parse
from policy.port import ADMISSION, PolicyInput, canonical
from tests.gateway.deployment import deploy

DAY_US = 86_400 * 1_000_000
FILE = "bursar/admission/admission.rego"
RULES = """package bursar.admission

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {"max_output_tokens": _cap}} if {
	not denied.team_unknown
	not denied.frozen
} else := {"allow": false, "reasons": reasons, "obligations": {}}

reasons := [{"code": code, "message": denied[code]} | some code in ["team_unknown", "frozen"]]

denied["team_unknown"] := "No cap for this team." if not _cap

denied["frozen"] := "The environment is frozen." if input.env.freeze

_cap := data.bursar.admission.caps[input.principal.team]

unused(team) := upper(team)
"""
OLD_CAPS = {"search": 100, "ads": 100, "spare": 5}
NEW_CAPS = {"search": 50, "research": 10, "spare": 5}


def write_bundle(root: Path, caps: dict[str, Any], rules: str = RULES) -> Path:
    folder = (root / FILE).parent
    folder.mkdir(parents=True)
    (root / FILE).write_text(rules)
    (folder / "data.json").write_text(json.dumps({"caps": caps}, indent=2))
    return root


def an_input(team: str, **more: Any) -> PolicyInput:
    return PolicyInput("acme", team, more.pop("app", "web"), ("dev",), "internal", "chat", "small", **more)


class Recording:
    """A home whose journal is written here as a gateway writes it, with decisions that a bundle makes."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.old = write_bundle(folder / "old", OLD_CAPS)
        self.new = write_bundle(folder / "new", NEW_CAPS)
        self.config = deploy(folder, "http://127.0.0.1:9", policy={"url": f"embedded:{self.old}"})
        self.journal = Journal.open(self.home / "journal" / "gateway-0", segment_bytes=1 << 20, snapshot=dict)
        self.engines = {root: Child.of(root) for root in (self.old, self.new)}

    def decide(self, root: Path, given: PolicyInput) -> Decision:
        engine = self.engines[root]
        input_json = canonical(given.document())
        allow, reasons, obligations = parse(engine.evaluate(ADMISSION, input_json))
        digest = hashlib.sha256(input_json).hexdigest()
        return Decision(uuid7(), allow, reasons, obligations, engine.revision, digest, input_json)

    def record(self, decision: Decision, **more: Any) -> Decision:
        record_decision(self.journal, 0, Recorded(decision, **more))
        return decision

    def used(self, decision: Decision | None, **more: Any) -> str:
        """A usage row that names a decision; returns its request's name."""
        request_id = uuid7()
        row = {
            "event_id": request_id,
            "request_id": request_id,
            "org": "acme",
            "team": "search",
            "app": "web",
            "endpoint": "chat",
            "model": "small",
            "status": "ok",
            "http_status": 200,
            "list_cost_nusd": 1_000,
            "charges": [],
        }
        decided = {} if decision is None else {"decision_id": decision.decision_id}
        self.journal.append("usage", {**row, **decided, **more})
        return request_id

    def long_ago(self, decision: Decision) -> None:
        """Record a decision of thirty days ago."""
        written: list[dict[str, Any]] = []

        class Kept:
            directory = self.journal.directory

            def room_for(self, holds: int) -> bool:
                return True

            def append(self, kind: str, record: dict[str, Any]) -> None:
                written.append(record)

        record_decision(Kept(), 0, Recorded(decision))  # type: ignore[arg-type]
        self.journal.append("decision_inputs", {**written[0], "ts_us": time.time_ns() // 1_000 - 30 * DAY_US})

    def close(self) -> None:
        self.journal.close()
        for engine in self.engines.values():
            engine.close()


class Named:
    """The requests that tests ask for by name."""

    def __init__(self) -> None:
        self.allowed = self.denied = self.undecided = self.undecidable = ""
        self.decision: Decision | None = None


@contextmanager
def recorded(folder: Path) -> Iterator[tuple[Recording, Named]]:
    """Five distinct inputs in use, decided by the old bundle and some in the shadow of it by the new one."""
    of, asked = Recording(folder), Named()
    search = of.record(of.decide(of.old, an_input("search")))
    of.record(replace(of.decide(of.new, an_input("search")), decision_id=search.decision_id), is_shadow=True)
    asked.allowed = of.used(search, client_request_id="the client's own")
    of.used(search)
    # Decided again by another replica: one input, its requests together.
    of.used(of.record(of.decide(of.old, an_input("search"))))
    of.used(search, status="adjusted", decision_id="", adjusts=asked.allowed)
    ads = of.record(of.decide(of.old, an_input("ads")))
    of.record(replace(of.decide(of.new, an_input("ads")), decision_id=ads.decision_id), is_shadow=True)
    of.used(ads, list_cost_nusd=7_000_000_000)
    research = of.record(of.decide(of.old, an_input("research", app="batch")))
    asked.denied = of.used(
        research, status="refused", http_status=403, error_code="policy_denied", list_cost_nusd=0, team="research"
    )
    asked.decision = research
    asked.undecided = of.used(None, status="refused", error_code="overloaded", list_cost_nusd=0)
    asked.undecidable = of.used(None, status="refused", error_code="policy_unavailable", list_cost_nusd=0)
    spare = of.decide(of.old, an_input("spare"))
    of.long_ago(spare)
    of.used(spare)
    of.long_ago(of.decide(of.old, an_input("spare", app="forgotten")))
    # Of another entry point: none of the backtest's.
    of.record(of.decide(of.old, an_input("search", app="tools")), entry="bursar/tools/decision")
    with open_ledger(of.home, f"chdb://{of.home}/ledger") as ledger:
        ledger.flush()
        yield of, asked
        of.close()
