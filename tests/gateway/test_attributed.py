"""Accelerator time of a real simulator behind a real gateway: it adds up, over disconnects, preemptions and kills."""

import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway import gateway_process
from tests.gateway.gateway_process import GatewayProcess, until, write_config
from tests.gateway.test_cli_commands import DONE, ran
from tests.gateway.told import told

MODEL = {
    "id": "sim-small",
    "owner": "platform",
    "runtimes": ["sim"],
    "endpoints": ["chat", "completions", "embeddings"],
    "context_tokens": 512,
    "max_output_tokens": 400,
    "price": [{"valid_from": "2025-01-01", "input_nusd_per_mtok": 3_000_000, "output_nusd_per_mtok": 9_000_000}],
}
# Too few blocks for all that are seated at once: some are preempted. Estimates are far below what a step takes.
RUNTIME = {
    "id": "sim",
    "owner": "platform",
    "url": "sim://",
    "gpu_nusd_per_hour": 2_500_000_000,
    "gpu_us_per_input_mtok": 25_000_000,
    "gpu_us_per_output_mtok": 500_000_000,
    "power_w": 300,
    "sample_interval_s": 1,
    "sim": {"max_model_len": 512, "num_blocks": 40, "max_num_seqs": 12, "time_scale": 20},
}
# The request whose answers run out of blocks by themselves, however few clients this machine serves at once.
CROWD = 2
TIGHT_US = 300_000
CONFIG = {
    "version": 1,
    "env": {"name": "test"},
    "policy": {"url": "embedded:"},
    "book": {"hold_ttl_s": 5},
    "runtimes": [RUNTIME],
    "models": [MODEL],
    "budgets": [
        {"id": "all", "owner": "o", "scope": {"org": "acme"}, "resource": "gpu_us", "limit": 10**12, "window": "total"},
        {
            "id": "tight",
            "owner": "o",
            "scope": {"org": "acme", "app": "tight"},
            "resource": "gpu_us",
            "limit": TIGHT_US,
            "window": "total",
        },
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attributed")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_config(folder / "bursar.yaml", CONFIG)


@pytest.fixture(scope="module")
def up(folder: Path, config: Path) -> Iterator[GatewayProcess]:
    with gateway_process.running(folder / "home", config, "up") as up:
        yield up


def body(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    words = f"Shelf {number % 3} holds bolts of every kind. " * (1 + number % 4)
    said = [{"role": "user", "content": f"{words} And {number}?"}]
    return {"model": "sim-small", "messages": said, "max_tokens": tokens, "ignore_eos": True, **more}


def ask(up: GatewayProcess, number: int) -> None:
    """One request of a mixed load: whole, streamed, several answers, and two kinds of clients that leave."""
    headers, tokens = up.headers("search"), 20 + number * 37 % 120
    with httpx.Client(base_url=up.url, timeout=60) as client:
        kind = number % 5
        if kind < 3:
            more: dict[str, Any] = ({}, {"stream": True}, {"n": 2})[kind]
            if number == CROWD:
                tokens, more = 380, {"n": 4}
            answer = client.post("/v1/chat/completions", json=body(number, tokens, **more), headers=headers)
            assert answer.status_code == 200, answer.text
        elif kind == 3:
            asked = body(number, tokens, stream=True)
            with client.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as answer:
                for _ in zip(range(4), answer.iter_lines(), strict=False):
                    pass
        else:
            with pytest.raises(httpx.TimeoutException):
                client.post("/v1/chat/completions", json=body(number, 300), headers=headers, timeout=0.02)


def by_request(up: GatewayProcess) -> dict[str, list[dict[str, Any]]]:
    rows = defaultdict(list)
    for row in up.records("usage"):
        if row.get("runtime"):
            rows[row["request_id"]].append(row)
    return rows


def account(up: GatewayProcess, name: str) -> float:
    return up.metric("bursar_accelerator_us_total", account=name)


def settled(up: GatewayProcess, sampled_before_us: float = 0) -> None:
    """Wait until everybody has been settled and attributed, and the samples have it, once."""
    until(lambda: up.open_holds() == 0, "no open hold", 30)
    rest = 0.0

    def at_rest() -> bool:
        nonlocal rest
        before, rest = rest, account(up, "busy")
        time.sleep(0.6)
        return rest == before and up.metric("bursar_attribution_waiting") == 0

    until(at_rest, "all shares posted", 30)
    until(lambda: sampled(up, "busy_us") == sampled_before_us + account(up, "busy"), "a sample of it", 10)


def sampled(up: GatewayProcess, column: str) -> int:
    return sum(row[column] for row in up.records("runtime_sample") if "busy_us" in row)


def shown(up: GatewayProcess, request_id: str) -> Any:
    return up.client.get(f"/v1/usage/{request_id}", headers=up.headers("search")).json()


def query(up: GatewayProcess, config: Path, *arguments: str) -> Any:
    return json.loads(ran(DONE, "ledger", *arguments, "--json", home=up.home, config=config).stdout)


def test_a_mixed_load_adds_up_to_what_the_engine_did(up: GatewayProcess, config: Path) -> None:
    query(up, config, "reconcile")
    with ThreadPoolExecutor(16) as clients:
        list(clients.map(lambda number: ask(up, number), range(80)))

    def is_heard() -> bool:
        """An engine that goes on shows that it has not, and will not, compute those whose clients left early."""
        ask(up, 80)
        settled(up)
        return all(len(found) > 1 for found in by_request(up).values())

    until(is_heard, "a correction of every request", 60)
    rows = by_request(up)
    assert len(rows) > 64, "of those whose clients leave at once, some may not come as far as a runtime"
    attributed = [row for found in rows.values() for row in found if row["status"] == "adjusted"]
    assert {row["certainty"] for row in attributed} == {"exact"}
    assert max(row["preemptions"] for row in up.records("runtime_sample")) > 0
    charged = sum(row["gpu_us"] for found in rows.values() for row in found)
    assert charged == account(up, "busy") == account(up, "claimed") == sampled(up, "attributed_us")
    assert sum(row.get("energy_uj", 0) for row in attributed) == pytest.approx(300 * charged, rel=1e-6)
    assert {row["energy_source"] for row in attributed if row.get("energy_uj")} == {"estimated"}
    assert sum(row["queue_us"] for row in attributed) > 0
    (report,) = query(up, config, "report", "gpu", "--since", "1d")
    assert report["conservation_error_percent"] <= 0.1
    for name in ("busy", "idle", "lost"):
        assert float(report[f"{name}_s"]) == pytest.approx(sampled(up, f"{name}_us") / 1e6)
    assert report["unattributed_s"] == report["foreign_s"] == "0.000000"


def test_tokens_and_cached_tokens_of_what_completed_agree_with_the_runtime(up: GatewayProcess, config: Path) -> None:
    engine = told(up.home / "telemetry" / "sim-sim")
    rows = [row for found in by_request(up).values() for row in found[:1] if row["status"] == "ok"]
    alone = [row for row in rows if engine[row["request_id"]].reasons["finished"] == 1]
    assert len(alone) > 30
    assert [row["request_id"] for row in alone if engine[row["request_id"]].differs_from(row)] == []
    assert sum(row.get("cached_input_tokens", 0) for row in alone) > 0
    for row in rows:
        assert engine[row["request_id"]].output_tokens == row["output_tokens"], "of several answers all together"
    assert up.metric("bursar_telemetry_lost_total") == 0
    found = query(up, config, "reconcile")
    drifts = [each for each in found["drifts"] if each["kind"] != "runtime" or each["quantity"] == "cached_tokens"]
    assert drifts == []
    assert found["not_compared"] == []


def test_tables_of_many_columns_break_none_of_their_names(up: GatewayProcess, config: Path) -> None:
    for command, name in (
        (["report", "gpu"], "conservation_error_percent"),
        (["query", "SELECT * FROM runtime_sample LIMIT 3"], "nvml_busy_permille"),
    ):
        assert name in ran(DONE, "ledger", *command, home=up.home, config=config).stdout.split()


def test_a_caller_is_shown_the_estimate_and_what_corrects_it(up: GatewayProcess) -> None:
    found = [rows for rows in by_request(up).values() if rows[0]["status"] == "ok" and len(rows) > 1]
    first, *parts = found[-1]
    view = shown(up, first["request_id"])
    assert (view["gpu_us"], view["gpu_us_is_estimate"], view["energy_uj"]) == (first["gpu_us"], True, None)
    assert view["adjusted"]["energy_source"] == "estimated"
    for name in ("gpu_us", "gpu_cost_nusd", "kv_block_us", "energy_uj", "queue_us"):
        assert view["adjusted"][name] == sum(part.get(name, 0) for part in parts)


def test_traffic_past_bursar_is_an_account_of_its_own(up: GatewayProcess) -> None:
    before = account(up, "foreign")
    sim = json.loads((up.home / "run" / "sim-sim.json").read_text())
    httpx.post(f"http://127.0.0.1:{sim['port']}/v1/chat/completions", json=body(1, 9), timeout=30).raise_for_status()
    until(lambda: account(up, "foreign") > before, "foreign time")
    settled(up)
    assert account(up, "foreign") + account(up, "claimed") == account(up, "attributed") == account(up, "busy")


def test_a_budget_in_gpu_time_is_overshot_by_what_was_under_way_and_no_more(up: GatewayProcess) -> None:
    """The bound: of what was not attributed when the last request was let in, what it took beyond its charge."""
    key = up.key("search", app="tight")
    refused = threading.Event()

    def spend(number: int) -> None:
        while not refused.is_set():
            with httpx.Client(base_url=up.url, timeout=60) as client:
                headers = {"authorization": f"Bearer {key}"}
                answer = client.post("/v1/chat/completions", json=body(number, 20), headers=headers)
            if answer.status_code == 429:
                refused.set()

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(spend, range(4)))
    settled(up)
    held = {row["request_id"]: row["seq"] for row in up.records("hold") if row["action"] == "opened"}
    tight = {name: found for name, found in by_request(up).items() if found[0]["app"] == "tight"}
    last = max(held[name] for name in tight)
    unattributed = 0
    for found in tight.values():
        parts = found[1:]
        assert parts, "every one of them was attributed"
        if parts[-1]["seq"] > last:
            unattributed += max(0, sum(part["gpu_us"] for part in parts))
    overshoot = sum(row["gpu_us"] for found in tight.values() for row in found) - TIGHT_US
    assert 0 < overshoot <= unattributed
    shown = json.loads(ran(DONE, "budget", "show", "tight", "--json", home=up.home, config=up.config).stdout)
    (peak,) = shown["peaks"]
    assert (peak["peak"], peak["overshoot"]) == (TIGHT_US + overshoot, overshoot)
    (estimates,) = query(up, up.config, "report", "estimates")
    assert estimates["mean_error_percent"] > 0
    assert estimates["over_hold"] > 0


def test_after_a_kill_the_same_shares_are_not_posted_again(up: GatewayProcess) -> None:
    settled(up)
    rows, busy = by_request(up), account(up, "busy")
    corrected = next(name for name, found in rows.items() if found[0]["team"] == "search" and len(found) > 1)
    before = shown(up, corrected)["adjusted"]
    run = json.loads((up.home / "run" / "gateway.json").read_text())
    (up.home / "run" / "gateway.json").unlink()
    os.kill(run["pid"], signal.SIGKILL)
    until((up.home / "run" / "gateway.json").exists, "the gateway again", 30)
    ask(up, 1)
    until(lambda: account(up, "busy") > 0, "time of its own", 20)
    settled(up, sampled_before_us=busy)
    after = by_request(up)
    assert {name: after[name] for name in rows} == rows, "of those before, nothing was posted twice"
    until(lambda: shown(up, corrected).get("adjusted") == before is not None, "the ledger's word of it", 20)
    (new,) = after.keys() - rows.keys()
    assert sum(row["gpu_us"] for row in after[new]) == account(up, "busy") < busy
