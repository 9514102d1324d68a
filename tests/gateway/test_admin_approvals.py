"""The routes of approvals, gates, headroom and risk, asked of the admin application itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from domain.decision import Decision, Obligations, Reason
from gateway.admin import AdminPlane, admin_app
from gateway.approvals import Approval, Approvals, Person
from gateway.approvals_config import ApprovalRules
from gateway.controls import Controls
from gateway.governance import Governance
from gateway.headroom import UnknownScope
from gateway.keys import KeyStore
from gateway.reconciliation import Result
from gateway.reviews import Asked, person_of
from gateway.risks import Risks
from ledger.book import Book
from ledger.budgets import Budget
from ledger.journal import Journal
from ledger.windows import parse_window
from observability.metrics import Metrics
from policy.port import PolicyUnavailable
from policy.risk import Tracker
from tests.policy.scorings import scoring

NOW_US = 1_772_280_000_000_000
GRANT = {"budget": "day", "amount": 50, "ttl_s": 60, "reason": "launch"}


SAID: dict[str, Any] = {
    "reasons": (Reason("no", "No."),),
    "obligations": Obligations(),
    "revision": "sha256:1",
    "input_digest": "digest",
}


class Decides:
    """Denies whatever it is asked, unless it is away."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.is_away = False

    async def ask(self, entry: str, document: dict[str, Any]) -> Decision:
        if self.is_away:
            raise PolicyUnavailable("it is away")
        self.asked.append((entry, document))
        return Decision("d", allow=False, **SAID)


class Plane:
    """The admin application over a book of one budget, with keys of two people who do not know each other."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.rules = ApprovalRules()
        self.reload_answer: dict[str, Any] = {"applied": True, "changes": []}
        self.asked: list[Asked] = []
        self.risks = Risks()
        self.answers: dict[str, bytes] = {}
        keys = KeyStore(folder / "keys")
        self.root, _ = keys.create("-", "-", "admin", kind="admin")
        self.alice, self.alice_secret = keys.create("-", "-", "admin", kind="admin", made_by=self.root.key_id)
        self.bob, self.bob_secret = keys.create("-", "-", "admin", kind="admin", made_by=self.root.key_id)
        self.book = Book([Budget("day", "o", (), "tokens", 100, parse_window("day"))], NOW_US // 1_000_000)
        journal = cast(Journal, SimpleNamespace(append=lambda table, row: self.rows.append(row)))
        controls = Controls(self.book, journal, keys, lambda: NOW_US)
        self.approvals = Approvals(controls, lambda: NOW_US)
        self.decider = Decides()
        of = SimpleNamespace(book=self.book, metrics=Metrics(), now_us=lambda: NOW_US, decider=self.decider)
        of.catalogue = SimpleNamespace(env_name="test", freeze=True)
        plane = AdminPlane(
            of=cast(Governance, of),
            keys=keys,
            controls=controls,
            reload=self.reload,
            reconcile=self.reconcile,
            approvals=self.approvals,
            rules=lambda: self.rules,
            person=lambda key: person_of(key.key_id, key.user, keys, self.root.key_id),
            withheld=self.answers.get,
            headroom=self.headroom,
            risks=self.risks,
        )
        self.app = admin_app(plane)

    async def reload(self, asked: Asked) -> dict[str, Any]:
        self.asked.append(asked)
        if asked.approval_id and self.reload_answer["applied"]:
            self.approvals.decide(asked.approval_id, asked.by, approve=True, reason=asked.reason)
        return self.reload_answer

    async def reconcile(self, actor: str, mend: bool, rebase: bool) -> Result:
        raise AssertionError("nobody asks for it here")

    async def headroom(self, org: str, team: str, app: str, model: str) -> dict[str, Any]:
        if app == "nobody":
            raise UnknownScope("no application has a key for app=nobody")
        scope = {"org": org, "team": team, "app": app, "model": model}
        return {"scope": scope, "headroom": {"overall": 7}, "slos": []}

    @asynccontextmanager
    async def as_(self, secret: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.app)
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            yield client

    def ask(self, kind: Any = "reload", by: str = "") -> Approval:
        return self.approvals.request(
            kind, "x", requested_by=Person(by or self.alice.key_id), ttl_s=60, detail={}, digest="d"
        )

    def actions(self) -> list[str]:
        return [row["action"] for row in self.rows]


@pytest.fixture
def of(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


async def test_what_waits_is_listed_and_what_ended_only_when_asked_for(of: Plane) -> None:
    waits, ended = of.ask(), of.ask()
    of.approvals.decide(ended.id, Person("k"), approve=False)
    async with of.as_(of.bob_secret) as client:
        assert (await client.get("/admin/approvals")).json() == {"approvals": [waits.view()]}
        found = (await client.get("/admin/approvals", params={"state": "any"})).json()["approvals"]
        assert [each["id"] for each in found] == [ended.id, waits.id]
        assert (await client.get("/admin/approvals", params={"state": "some"})).status_code == 400
        assert (await client.get(f"/admin/approvals/{waits.id}")).json() == waits.view()


async def test_an_answer_that_waits_is_shown_and_who_read_it_is_a_row_without_it(of: Plane) -> None:
    waits = of.ask("answer", by="some-app")
    of.answers[waits.id] = b'{"choices": []}'
    async with of.as_(of.bob_secret) as client:
        assert (await client.get(f"/admin/approvals/{waits.id}")).json()["answer"] == '{"choices": []}'
    row = of.rows[-1]
    assert (row["action"], row["actor"], row["subject"]) == ("answer_read", of.bob.key_id, waits.id)
    assert "choices" not in str(of.rows)


async def test_another_persons_word_on_a_reload_applies_it(of: Plane) -> None:
    waits = of.ask()
    async with of.as_(of.bob_secret) as client:
        said = await client.post(f"/admin/approvals/{waits.id}", json={"approve": True, "reason": "read it"})
    assert said.status_code == 200
    assert said.json()["approval"]["state"] == "approved"
    assert said.json()["result"] == of.reload_answer
    assert (of.asked[0].by.key_id, of.asked[0].approval_id, of.asked[0].reason) == (of.bob.key_id, waits.id, "read it")


async def test_a_reload_that_is_another_one_by_now_is_a_conflict(of: Plane) -> None:
    waits = of.ask()
    of.reload_answer = {"applied": False, "problems": ["it is for another change"]}
    async with of.as_(of.bob_secret) as client:
        said = await client.post(f"/admin/approvals/{waits.id}", json={"approve": True})
    assert (said.status_code, said.json()) == (409, of.reload_answer)


async def test_denying_a_reload_applies_nothing(of: Plane) -> None:
    waits = of.ask()
    async with of.as_(of.bob_secret) as client:
        said = await client.post(f"/admin/approvals/{waits.id}", json={"approve": False})
    assert said.json() == {"approval": of.approvals.get(waits.id).view()}
    assert of.asked == []


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("unknown", 404, "approval_not_found"), ("own", 403, "invalid_request"), ("ended", 409, "invalid_request")],
)
async def test_what_cannot_be_decided_is_refused_in_the_usual_form(
    of: Plane, state: str, status: int, code: str
) -> None:
    waits = of.ask("answer", by=of.bob.key_id if state == "own" else "")
    if state == "ended":
        of.approvals.decide(waits.id, Person("k"), approve=False)
    async with of.as_(of.bob_secret) as client:
        where = "nothing" if state == "unknown" else waits.id
        said = await client.post(f"/admin/approvals/{where}", json={"approve": True})
    assert said.status_code == status
    assert said.json()["error"]["code"] == code
    assert said.json()["error"]["message"].endswith(".")


@pytest.mark.parametrize("body", [{}, {"approve": "yes"}, {"approve": True, "more": 1}, {"approve": 1}])
async def test_a_word_that_is_not_clear_is_refused(of: Plane, body: dict[str, Any]) -> None:
    waits = of.ask()
    async with of.as_(of.bob_secret) as client:
        assert (await client.post(f"/admin/approvals/{waits.id}", json=body)).status_code == 400
    assert of.approvals.every() == [waits]


async def test_a_grant_is_made_at_once_unless_grants_need_a_second_person(of: Plane) -> None:
    async with of.as_(of.alice_secret) as client:
        said = await client.post("/admin/grant", json=GRANT)
        assert (said.status_code, said.json()["amount"]) == (200, 50)
        assert len(of.book.grants) == 1
        of.rules = ApprovalRules(grants=True)
        said = await client.post("/admin/grant", json=GRANT)
        assert said.status_code == 202
        assert said.json()["applied"] is False
        assert len(of.book.grants) == 1
        own = await client.post(f"/admin/approvals/{said.json()['approval']['id']}", json={"approve": True})
        assert own.status_code == 403
    async with of.as_(of.bob_secret) as client:
        done = await client.post(f"/admin/approvals/{said.json()['approval']['id']}", json={"approve": True})
    assert done.json()["result"]["actor"] == of.alice.key_id
    assert len(of.book.grants) == 2
    assert of.actions() == ["grant", "approval_requested", "approval_approved", "grant"]


async def test_a_grant_on_nothing_asks_nobody(of: Plane) -> None:
    of.rules = ApprovalRules(grants=True)
    async with of.as_(of.alice_secret) as client:
        said = await client.post("/admin/grant", json={**GRANT, "budget": "nobody"})
    assert (said.status_code, said.json()["error"]["param"]) == (400, "budget")
    assert of.approvals.every() == []


async def test_a_key_names_the_one_that_it_was_made_with(of: Plane) -> None:
    """So that nobody is a second person by making another key."""
    asked = {"org": "-", "team": "-", "app": "admin", "kind": "admin"}
    waits = of.ask("answer")
    async with of.as_(of.alice_secret) as client:
        made = (await client.post("/admin/keys", json=asked)).json()
    async with of.as_(made["secret"]) as client:
        said = await client.post(f"/admin/approvals/{waits.id}", json={"approve": True})
    assert said.status_code == 403


async def test_a_release_gate_asks_the_policy_in_force_and_what_it_said_is_a_row(of: Plane) -> None:
    asked = {"release": "1.2", "app": "web", "team": "search", "org": "acme", "at_s": 1_772_280_000}
    async with of.as_(of.alice_secret) as client:
        said = (await client.post("/admin/gates/release", json=asked)).json()
        assert (await client.post("/admin/gates/release", json={**asked, "app": "nobody"})).status_code == 400
        assert (await client.post("/admin/gates/release", json={**asked, "more": 1})).status_code == 400
    ((entry, document),) = of.decider.asked
    assert entry == "bursar/release/decision"
    assert document == {
        "release": {"id": "1.2", "team": "search", "app": "web"},
        "env": {"name": "test", "freeze": True},
        "headroom": {"overall": 7},
        "slos": [],
        "risk": {"level": "unknown"},
        "at": {"weekday": 5, "minute": 720, "s": 1_772_280_000},
    }
    assert (said["allow"], said["asked"], said["headroom"]["headroom"]) == (False, document, {"overall": 7})
    (row,) = of.rows
    # It was asked of a time that the caller named, which is no go-ahead now.
    assert (row["action"], row["subject"], row["digest"]) == ("gate_asked", "web@1.2", "sha256:1")
    assert row["detail"]["reasons"] == [{"code": "no", "message": "No."}]


async def test_a_launch_gate_is_of_the_environment_that_is_named_or_else_of_its_own(of: Plane) -> None:
    async with of.as_(of.alice_secret) as client:
        for env in ("", "prod"):
            await client.post("/admin/gates/launch", json={"kind": "tool", "id": "shell", "env": env})
        assert (await client.post("/admin/gates/launch", json={"kind": "pet", "id": "dog"})).status_code == 400
    assert [document["env"]["name"] for _, document in of.decider.asked] == ["test", "prod"]
    assert of.decider.asked[0][1]["target"] == {"kind": "tool", "id": "shell"}
    assert of.decider.asked[0][1]["at"]["s"] == NOW_US // 1_000_000
    assert [row["action"] for row in of.rows] == ["gate_checked", "gate_checked"]


async def test_a_gate_whose_policy_cannot_be_asked_is_503(of: Plane) -> None:
    of.decider.is_away = True
    async with of.as_(of.alice_secret) as client:
        said = await client.post("/admin/gates/launch", json={"kind": "tool", "id": "shell"})
    assert (said.status_code, said.json()["error"]["code"]) == (503, "policy_unavailable")
    assert of.rows == []


async def test_headroom_is_that_of_a_scope_and_an_unknown_one_is_said(of: Plane) -> None:
    async with of.as_(of.alice_secret) as client:
        found = await client.get("/admin/headroom", params={"app": "web", "org": "acme"})
        assert found.json()["scope"] == {"org": "acme", "team": "", "app": "web", "model": ""}
        unknown = await client.get("/admin/headroom", params={"app": "nobody"})
    assert unknown.status_code == 400
    assert "no application has a key" in unknown.json()["error"]["message"]


async def test_risk_is_the_worst_of_a_scope_and_what_is_raised_is_listed(of: Plane) -> None:
    async with of.as_(of.alice_secret) as client:
        assert (await client.get("/admin/risk")).json()["level"] is None
        of.risks.tracker = Tracker(scoring())
        of.risks.tracker.observe("tool_blocked", "acme", "search", "web", "", NOW_US // 1_000_000, 12)
        found = (await client.get("/admin/risk", params={"org": "acme", "team": "search", "app": "web"})).json()
        calm = (await client.get("/admin/risk", params={"org": "acme", "team": "ads", "app": "web"})).json()
    assert (found["level"], calm["level"]) == ("high", "normal")
    assert {each["scope"] for each in found["raised"]} == {"team acme/search", "app acme/search/web"}


@pytest.mark.parametrize("path", ["/admin/approvals", "/admin/approvals/x", "/admin/headroom", "/admin/risk"])
async def test_every_route_asks_for_an_admin_key(of: Plane, path: str) -> None:
    async with of.as_("nonsense") as client:
        assert (await client.get(path)).status_code == 401
        assert (await client.post("/admin/approvals/x", json={"approve": True})).status_code == 401
        assert (await client.post("/admin/gates/launch", json={})).status_code == 401
