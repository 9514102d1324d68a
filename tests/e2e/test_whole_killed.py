"""The whole deployment killed with -9 under load, again and again: in the end every account agrees.

`make soak` kills more often: BURSAR_WHOLE_KILLS says how many times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.e2e import records
from tests.e2e.deployment import Deployment, eventually

KILLS = int(os.environ.get("BURSAR_WHOLE_KILLS", "20"))
SECONDS_A_KILL = 20
CONFIG = Path(__file__).with_name("sim.yaml")
TEAMS = ("search", "research")
CLIENTS = 12
LOAD_S_MAX = 1.0
LIMIT_S_MAX = 60.0
# Everything is killed within its start, too, one time in so many.
IN_START_EVERY = 5
START_S_MAX = 3.0
REQUESTS_MAX = 150
HOLD_TTL_S = 3  # of sim.yaml
NOTICE_S = 2.0
CHAT = "/v1/chat/completions"


class Mortal(Deployment):
    """A deployment that can be killed whole: the supervisor first, so that it starts nothing again."""

    def launch(self) -> None:
        """Start it, without waiting until it serves."""
        with self._log.open("ab") as log:
            command = self._command("up", "--port", "0", "--admin-port", "0")
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def kill_all(self) -> None:
        """End every process with SIGKILL and wait until they are gone."""
        assert self._process is not None, "killing follows starting"
        pids = [self._process.pid, *_children(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        eventually(lambda: not any(_is_running(pid) for pid in pids[1:]), "all processes are gone")
        # The next supervisor takes it away as it starts; whoever waits for that one must not read it just then.
        (self.home / "run" / "gateway.json").unlink(missing_ok=True)


class Load:
    """Clients that ask without end, and what they were told: for each request how its answer came out."""

    def __init__(self) -> None:
        self.answered: dict[str, str] = {}
        self.has_refusal = asyncio.Event()
        self.dice = random.Random(KILLS)

    async def ask_on(self, session: aiohttp.ClientSession, url: str, secret: str) -> None:
        """Ask until something breaks."""
        headers = {"authorization": f"Bearer {secret}"}
        while True:
            body = {
                "model": "sim-small",
                "messages": [{"role": "user", "content": "Where do the bolts lie?"}],
                "max_tokens": self.dice.choice((1, 8, 200)),
                "stream": self.dice.random() < 0.5,
            }
            async with session.post(url + CHAT, json=body, headers=headers) as response:
                content = await response.read()
                whole = response.status != 200 or not body["stream"] or b"data: [DONE]" in content
                if whole:
                    self.answered[response.headers["x-request-id"]] = "ok" if response.status == 200 else "refused"
            if response.status != 200:
                self.has_refusal.set()
                await asyncio.sleep(0.02)


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]


def _is_running(pid: int) -> bool:
    """Whether a process is there; one that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The instance of `sim.yaml`, of which one team may ask only so often: the load comes to that limit and beyond."""
    path = tmp_path / "bursar.yaml"
    told = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    scope = {"org": "acme", "team": TEAMS[0]}
    limited = {"id": "few", "owner": "finance", "scope": scope, "resource": "requests", "limit": REQUESTS_MAX}
    told["budgets"] += [{**limited, "window": "total"}]
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    return path


def overspent(deployment: Deployment) -> list[dict[str, Any]]:
    """The hard counters whose limit is passed."""
    counters = deployment.counters()
    return [each for each in counters if each["mode"] == "hard" and each["spent"] + each["held"] > each["limit"]]


async def kill_under_load(deployment: Mortal, secrets: list[str], load: Load, *, is_last: bool) -> None:
    """Let clients ask for a moment, the last time until the limit is reached, and end everything while they do."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        clients = [
            asyncio.create_task(load.ask_on(session, deployment.url, secrets[number % len(secrets)]))
            for number in range(CLIENTS)
        ]
        await asyncio.sleep(load.dice.random() * LOAD_S_MAX)
        if is_last:
            await asyncio.wait_for(load.has_refusal.wait(), LIMIT_S_MAX)
        await asyncio.to_thread(deployment.kill_all)
        broken = await asyncio.gather(*clients, return_exceptions=True)
    assert [each for each in broken if not isinstance(each, aiohttp.ClientError | OSError)] == []


@pytest.mark.timeout(120 + KILLS * SECONDS_A_KILL)
async def test_killed_whole_under_load_nothing_is_overspent_leaked_lost_or_doubled(
    tmp_path: Path, config: Path
) -> None:
    load = Load()
    secrets: list[str] = []
    for number in range(KILLS):
        deployment = Mortal(tmp_path / "home", config)
        deployment.launch()
        is_last = number == KILLS - 1
        if secrets and number % IN_START_EVERY == 0 and not is_last:
            await asyncio.sleep(load.dice.random() * START_S_MAX)
            await asyncio.to_thread(deployment.kill_all)
            continue
        await asyncio.to_thread(deployment.await_gateway)
        secrets = secrets or [deployment.create_key(team) for team in TEAMS]
        assert overspent(deployment) == []
        await kill_under_load(deployment, secrets, load, is_last=is_last)

    with Mortal(tmp_path / "home", config) as deployment:
        eventually(lambda: deployment.ask("/admin/holds")["open"] == 0, "no hold is left", HOLD_TTL_S + NOTICE_S)
        assert overspent(deployment) == []
        ledger = deployment.ledger()
        ledger.flush()
        rows = {row["request_id"]: row for row in records.usage(ledger)}
        assert records.ledger_faults(ledger) == []
        assert records.counter_faults(ledger, deployment.counters, int(time.time())) == []
        counters = deployment.counters()
        opened = records.opened(ledger)
    assert sorted(row["hold_id"] for row in rows.values() if row["hold_id"]) == sorted(opened)
    assert load.answered.keys() - rows.keys() == set()
    ends = {(told, rows[request_id]["status"]) for request_id, told in load.answered.items()}
    # Killed between an answer and its settlement, a hold expires: charged in full, and never lost. And the runtime may
    # be killed a moment before the gateway, which says so.
    usual = {("ok", "ok"), ("refused", "refused")}
    assert usual <= ends <= usual | {("ok", "expired"), ("refused", "failed")}
    assert "expired" in {row["status"] for row in rows.values()}
    few = next(counter for counter in counters if counter["budget"] == "few")
    assert REQUESTS_MAX - CLIENTS < few["spent"] <= REQUESTS_MAX, "the load came to the limit"
