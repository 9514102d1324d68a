"""Every signal that risk weighs can be induced, and is found in a real ledger by the statement that the docs give."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.decision import Decision, Obligations, Reason
from gateway import errors, signal_sources, tool_calls
from gateway.errors import Refusal
from gateway.quality import Sampler
from gateway.quality_config import Quality
from gateway.signals import PRODUCERS, UNWEIGHED, Signals
from gateway.tool_calls import Ruling, ToolLog
from ledger.client import LedgerClient, open_ledger
from ledger.journal import Journal, system_now_us
from ledger.privileges import App, uses
from ledger.reports import report
from policy.scoring import SIGNALS

DOCUMENT = Path(__file__).parents[2] / "docs" / "signals.md"
ROW: dict[str, Any] = {"org": "acme", "team": "search", "app": "web", "key_id": "k1", "run_id": "run-1"}
ROW |= {"model": "plain", "served_model": "plain", "runtime": "gpu-1", "request_id": "first", "decision_id": "d1"}


def violation(of: Signals) -> None:
    reasons = (Reason("clearance_too_low", "Too low."),)
    decision = Decision("d1", False, reasons, Obligations(), "rev", "digest")  # noqa: FBT003 a decision that denies
    for number in range(3):
        signal_sources.refused(of, {**ROW, "request_id": f"r{number}"}, errors.denied(decision))


def blocked(of: Signals) -> None:
    signal_sources.tools_blocked(of, ROW, ("search", "shell"), ("shell",))


def unverified(of: Signals) -> None:
    signal_sources.verified(of)("verification_failed", ROW, 1, {"check": "pii", "kinds": ["EMAIL_ADDRESS"]})


def upstream(of: Signals) -> None:
    signal_sources.settled(of, ROW, "failed", 502, "upstream_error")
    signal_sources.refused(of, ROW, Refusal(errors.UPSTREAM_ERROR, "No runtime is healthy."))


def anomaly(of: Signals) -> None:
    signal_sources.spend_anomaly(of, ROW)


def rollback(of: Signals) -> None:
    revisions = signal_sources.Revisions("sha256:one")
    assert [revisions.loaded(of, each) for each in ("sha256:two", "sha256:one")] == [False, True]


async def score_two(of: Signals) -> None:
    sampler = Sampler(of, Quality(sample=1))
    for text in ("", "42"):
        collector = sampler.collector("first", {}, generates=True, offers_tools=False)
        assert collector is not None
        collector.whole({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]})
        sampler.score(ROW, collector)
    await asyncio.sleep(0)


def bad_answers(of: Signals) -> None:
    asyncio.run(score_two(of))


# Each signal, what induces it, and what the statement of the docs then finds.
INDUCED: dict[str, tuple[Callable[[Signals], None], dict[str, Any]]] = {
    "policy_violation": (violation, {"team": "search", "reason": "clearance_too_low", "requests": 3, "example": "r0"}),
    "tool_blocked": (blocked, {"team": "search", "tool": "shell", "requests": 1, "example": "first"}),
    "verification_failed": (unverified, {"app": "web", "check": "pii", "answers": 1}),
    "upstream_error": (upstream, {"runtime_or_model": "gpu-1", "apps": 1, "requests": 1}),
    "spend_anomaly": (anomaly, {"resource": "list_cost_nusd", "request_id": "first"}),
    "rollback": (rollback, {"what": "policy", "from_revision": "sha256:two", "to_revision": "sha256:one"}),
    "quality_failed": (bad_answers, {"flag": "empty", "answers": 1, "example": "first"}),
    "quality": (lambda of: None, {"model": "plain", "scored": 2, "failed": 1, "percent": 50}),
}


def statements() -> dict[str, str]:
    """The statement under each heading of the docs that names a signal."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return dict(re.findall(r"(?s)### `(\w+)`\n(?:(?!\n### ).)*?```sql\n(.*?)```", text))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerClient]:
    """A ledger process over the journal of a gateway in which everything has happened."""
    home = tmp_path_factory.mktemp("home")
    journal = Journal.open(home / "journal" / "gateway-0", snapshot=dict)
    signals = Signals(journal, lambda: True, system_now_us)
    for induce, _ in INDUCED.values():
        induce(signals)
    signals.flush()
    log = ToolLog(journal, lambda: True, system_now_us)
    log.offered(ROW, ("search", "shell"), tool_calls.blocked(("shell",)))
    log.called(ROW, ["search", "search"], {})
    log.called(ROW, ["shell"], {"shell": Ruling("deny")})
    log.called({**ROW, "org": "other"}, ["close"], {"close": Ruling("verify", server="tickets", kind="mcp")})
    journal.append("usage", {**ROW, "endpoint": "chat", "status": "ok", "event_id": "first"})
    journal.append("usage", {**ROW, "endpoint": "chat", "status": "refused", "served_model": "", "key_id": "k2"})
    journal.append("usage", {**ROW, "endpoint": "chat", "status": "adjusted", "served_model": "other"})
    journal.close()
    with open_ledger(home, f"chdb://{home}/ledger") as client:
        client.flush()
        yield client


def test_every_signal_that_risk_weighs_has_a_producer_a_statement_and_something_that_induces_it() -> None:
    assert set(SIGNALS) == set(PRODUCERS) == set(statements()) - {"quality"} == set(INDUCED) - {"quality"}


def test_the_table_of_the_docs_has_every_signal_with_its_level() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \|.*\| (\w+) \|$", DOCUMENT.read_text(encoding="utf-8"))
    assert dict(rows) == {name: producer.level for name, producer in PRODUCERS.items()}
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in UNWEIGHED if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", INDUCED)
def test_the_statement_of_the_docs_finds_what_was_induced(ledger: LedgerClient, name: str) -> None:
    found, expected = ledger.rows(statements()[name]), INDUCED[name][1]
    assert [row for row in found if expected.items() <= row.items()], found


def test_the_report_adds_signals_up(ledger: LedgerClient) -> None:
    rows = ledger.rows(report("signals", since="1h").sql)
    sums = {(row["name"], row["team"]): row["value"] for row in rows}
    assert sums["policy_violation", "search"] == 3
    assert sums["upstream_error", "search"] == 2
    assert sums["rollback", ""] == 1
    assert set(SIGNALS) <= {name for name, _ in sums}


def test_signals_name_their_run_and_stand_in_the_envelope_with_their_request(ledger: LedgerClient) -> None:
    [row] = ledger.rows("SELECT run_id, request_id, detail FROM signal WHERE name = 'policy_violation'")
    assert (row["run_id"], row["request_id"], json.loads(row["detail"])["model"]) == ("run-1", "r0", "plain")
    assert ledger.rows("SELECT count() AS n FROM events WHERE kind = 'signal' AND request_id = 'r0'") == [{"n": 1}]


def test_the_statement_of_the_docs_counts_tool_calls(ledger: LedgerClient) -> None:
    [sql] = re.findall(r"(?s)```sql\n([^`]*FROM tool_call.*?)```", DOCUMENT.read_text(encoding="utf-8"))
    found = {(row["org"], row["tool"]): (row["calls"], row["refused"]) for row in ledger.rows(sql)}
    assert found == {("acme", "shell"): (1, 2), ("acme", "search"): (2, 0), ("other", "close"): (1, 0)}


def test_what_was_used_is_what_was_served_and_called(ledger: LedgerClient) -> None:
    used = uses(ledger)
    search = App("acme", "search", "web")
    assert [(use.app, use.key_id, use.endpoint, use.model) for use in used.models] == [(search, "k1", "chat", "plain")]
    called = {(use.app.org, use.tool, use.server, use.kind): use.last_s > 0 for use in used.tools}
    assert called == {
        ("acme", "search", "", "function"): True,
        ("acme", "shell", "", "function"): False,
        ("other", "close", "tickets", "mcp"): True,
    }
    assert 0 < used.first_s <= used.models[0].last_s
