"""`bursar ledger reconcile` over a real gateway, simulator and ledger: drift is seen, and mended by rows alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from gateway.assembly import writer_directory
from gateway.home import Home
from ledger.journal import Journal
from ledger.segments import replay_from_snapshot
from tests.gateway import gateway_process
from tests.gateway.gateway_process import ROOT, GatewayProcess, until
from tests.gateway.test_cli_commands import DONE, NO, Done, ran

CONFIG = ROOT / "tests" / "e2e" / "sim.yaml"


def reconciled(home: Path, code: int, *options: str) -> dict[str, Any]:
    done: Done = ran(code, "ledger", "reconcile", "--json", *options, home=home, config=CONFIG)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def query(home: Path, sql: str) -> list[dict[str, Any]]:
    done = ran(DONE, "ledger", "query", sql, "--format", "json", home=home, config=CONFIG)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def ask(up: GatewayProcess, count: int) -> None:
    for number in range(count):
        body = {"model": "sim-small", "max_tokens": 5 + number, "stream": number % 2 == 1}
        up.ended(up.chat("search", **body))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reconcile") / "home"


@contextmanager
def running(home: Path) -> Iterator[GatewayProcess]:
    with gateway_process.running(home, CONFIG, "up") as up:
        until((home / "run" / "ledger.json").exists, "the ledger process", 30)
        yield up


def runtime_drift(found: dict[str, Any]) -> dict[str, int]:
    return {each["quantity"]: each["drift"] for each in found["drifts"] if each["kind"] == "runtime"}


def test_a_gateway_and_its_runtime_agree_with_the_ledger_until_somebody_else_uses_it(home: Path) -> None:
    with running(home) as up:
        ask(up, 4)
        first = reconciled(home, DONE)
        assert (first["drifted"], first["mended"]) == (0, 0)
        assert len(first["not_compared"]) == 1
        assert "no baseline yet" in first["not_compared"][0]
        ask(up, 5)
        second = reconciled(home, DONE)
        assert (second["drifted"], second["not_compared"]) == (0, [])
        assert second["accounts"] == first["accounts"] + 3, "what the runtime counted is compared from now on"
        assert up.metric("bursar_ledger_drift", kind="runtime") == 0
        assert "kind" in up.client.get("/metrics").text.split("bursar_ledger_drift{", 1)[1][:10]

        sim = json.loads((home / "run" / "sim-sim.json").read_text())
        body = {"model": "sim-small", "prompt": "other words", "max_tokens": 7, "ignore_eos": True}
        used = httpx.post(f"http://127.0.0.1:{sim['port']}/v1/completions", json=body, timeout=30).json()["usage"]
        third = reconciled(home, NO, "--mend")
        expected = {"prompt_tokens": used["prompt_tokens"], "generation_tokens": used["completion_tokens"]}
        assert runtime_drift(third) == expected
        assert third["mended"] == 0, "nobody can be charged for what nobody asked of Bursar"
        assert up.metric("bursar_ledger_drift", kind="runtime", quantity="generation_tokens") == 7
        signals = query(home, "SELECT subject, value FROM signal WHERE name = 'drift' ORDER BY value")
        assert sorted(int(row["value"]) for row in signals) == sorted(expected.values())
        assert runtime_drift(reconciled(home, NO, "--rebase")) == expected
        assert reconciled(home, DONE)["drifted"] == 0
        baselines = query(home, "SELECT detail FROM control WHERE action = 'runtime_baseline' ORDER BY ts")
        assert ["drift set aside" in row["detail"] for row in baselines] == [False, True]
        refused = up.admin.post("/admin/reconcile", json={"mend": "yes"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "mend")
        assert up.client.post("/admin/reconcile", json={}).status_code in (401, 404)


def test_a_counter_and_its_rows_are_brought_together_by_correction_rows(home: Path) -> None:
    with running(home) as up:
        ask(up, 2)
    directory = writer_directory(Home(home))
    charged = next(
        json.loads(record.payload)["charges"]
        for record in replay_from_snapshot(directory)
        if record.kind == "usage" and json.loads(record.payload).get("charges")
    )
    by_budget = {charge[0]: charge for charge in charged}
    tokens, cost = by_budget["team-month-tokens"], by_budget["org-day-cost"]
    with _appending(directory) as journal:
        # A row whose hold nobody knows: the ledger has its charge, the counter has not.
        journal.append("usage", _row(status="ok", charges=[[*tokens[:4], 40]]))
        # And the counter has what no row charged.
        journal.append("usage", _row(status="adjusted", charges=[], counters=[[*cost[:4], 900]]))
    seen = reconciled(home, NO)
    drift = {each["subject"].split(" ")[0]: each["drift"] for each in seen["drifts"]}
    assert drift == {"team-month-tokens": -40, "org-day-cost": 900}
    assert seen["not_compared"] == ["runtimes: the gateway does not run"]
    assert "drift" in ran(NO, "ledger", "reconcile", home=home, config=CONFIG).stdout
    assert reconciled(home, DONE, "--mend")["mended"] == 2
    assert reconciled(home, DONE, "--mend")["mended"] == 0
    with running(home) as up:
        assert reconciled(home, DONE)["drifted"] == 0, "a restart finds what was mended mended"
        ask(up, 1)
        assert reconciled(home, DONE)["drifted"] == 0
    adjusted = query(home, "SELECT charges FROM usage WHERE status = 'adjusted' AND adjusts = '' ORDER BY ts, seq")
    assert sorted(len(row["charges"]) for row in adjusted) == [0, 0, 1]
    (control,) = query(home, "SELECT actor, detail FROM control WHERE action = 'adjusted' AND actor != 'attribution'")
    assert (control["actor"], json.loads(control["detail"])["rows"]) == ("cli", 2)


def _row(**more: Any) -> dict[str, Any]:
    return {"request_id": uuid7(), "org": "acme", "team": "search", "certainty": "exact", **more}


@contextmanager
def _appending(directory: Path) -> Iterator[Journal]:
    """The journal of a gateway that does not run; nothing in these tests turns a segment, so no snapshot is asked."""
    journal = Journal.open(directory, snapshot=lambda: {"spent": []})
    try:
        yield journal
    finally:
        journal.close()
