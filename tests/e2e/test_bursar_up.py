"""`bursar up` as it is run: it shows itself, outlives the death of its parts, and stops without losing anything."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from gateway.home import Home
from tests.e2e.deployment import Deployment, eventually
from tests.load.accounts import Scrape

CONFIG = Path(__file__).with_name("sim.yaml")
DEMO_TIMEOUT_S = 120
HOLD_TTL_S = 3
NOTICE_S = 1.0  # from its time being up to a hold being charged
STREAMS = 6
LONG_OUTPUT_TOKENS = 500  # some three seconds of answer
ROWS_SQL = "SELECT * FROM usage WHERE status != 'adjusted' ORDER BY request_id"
CORRECTED_SQL = "SELECT request_id FROM usage WHERE status = 'adjusted'"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("up") / "home", CONFIG) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def secret(deployment: Deployment) -> str:
    """The key of an application, which outlives every process."""
    return deployment.key("--org", "acme", "--team", "search", "--app", "assistant")["secret"]


def test_the_demo_shows_everything_once_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "up", "--demo", "--once", "--port", "0", "--admin-port", "0"]
    files = ["--home", str(tmp_path / "home"), "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=DEMO_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    for title in ("Demo traffic", "Spend by team", "Cache by team", "GPU by runtime", "Denials by team"):
        assert title in shown
    for code in ("200:", "404 model_not_found", "429 rate_limit_exceeded", "degraded: max_tokens", "256 cached"):
        assert code in shown
    home = Home(tmp_path / "home")
    assert [part for part in ("gateway", "ledger", "sim-sim") if home.alive(part)] == []


async def test_the_gateway_killed_mid_stream_comes_back_with_every_hold_charged(
    deployment: Deployment, secret: str
) -> None:
    async with _client(deployment, secret) as client:
        streams = [await _started(client, f"killed/{number}") for number in range(STREAMS)]
        killed_s = time.monotonic()
        pid = deployment.kill("gateway")
        for stream in streams:
            with pytest.raises((openai.APIError, OSError)):
                assert [chunk async for chunk in stream]
    await asyncio.to_thread(deployment.wait_until_revived, "gateway", pid)
    left_s = max(killed_s + HOLD_TTL_S, time.monotonic()) + NOTICE_S - time.monotonic()
    await asyncio.to_thread(eventually, lambda: _open_holds(deployment) == 0, "no hold is left", left_s)
    rows = [row for row in deployment.rows(ROWS_SQL) if row["client_request_id"].startswith("killed/")]
    assert len(rows) == STREAMS
    for row in rows:
        assert (row["status"], row["certainty"]) == ("expired", "at_most")
        assert row["output_tokens"] == LONG_OUTPUT_TOKENS, "what nobody saw is charged in full"
    assert deployment.disagreements() == []
    assert _answer(deployment, secret, "after-kill").usage is not None, "the same key is served again"


def test_a_killed_ledger_loses_and_doubles_nothing(deployment: Deployment, secret: str) -> None:
    sent = [f"shipped/{number:02}" for number in range(20)]
    for name in sent[:10]:
        _answer(deployment, secret, name)
    pid = deployment.kill("ledger")
    for name in sent[10:]:
        _answer(deployment, secret, name)
    deployment.wait_until_revived("ledger", pid)
    rows = [row for row in deployment.rows(ROWS_SQL) if row["client_request_id"].startswith("shipped/")]
    assert sorted(row["client_request_id"] for row in rows) == sent
    assert deployment.disagreements() == []


def test_a_killed_runtime_is_served_from_again(deployment: Deployment, secret: str) -> None:
    pid = deployment.kill("sim-sim")
    deployment.wait_until_revived("sim-sim", pid)
    assert _answer(deployment, secret, "after-runtime").usage.completion_tokens == 8
    assert deployment.disagreements() == []


async def test_sigterm_lets_a_stream_end_and_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    with Deployment(tmp_path / "home", CONFIG) as deployment:
        secret = deployment.create_key("search")
        for number in range(5):
            _answer(deployment, secret, f"before/{number}")
        before = deployment.rows(ROWS_SQL)
        async with _client(deployment, secret) as client:
            stream = await _started(client, "drained")
            deployment.request_stop()
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert await asyncio.to_thread(deployment.wait_until_stopped) == 0
        after = deployment.rows(ROWS_SQL)
    assert len(before) == 5
    assert after[:5] == before
    [drained] = after[5:]
    assert (drained["status"], drained["certainty"], drained["output_tokens"]) == ("ok", "exact", LONG_OUTPUT_TOKENS)


def test_a_lost_journal_is_made_up_for_by_the_ledger(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Deployment(home, CONFIG) as before:
        secret = before.create_key("search")
        for number in range(5):
            _answer(before, secret, f"kept/{number}")
        assert len(before.flushed_rows(ROWS_SQL)) == 5
        # What attribution corrects after the counters were read is spent as well.
        eventually(lambda: len(before.flushed_rows(CORRECTED_SQL)) == 5, "each is corrected")
        spent = _lasting(before)
    shutil.rmtree(home / "journal")
    with Deployment(home, CONFIG) as after:
        assert spent, "something is spent in a window that has not ended"
        assert _lasting(after) == spent
        _answer(after, secret, "after-the-loss")
        assert len(after.rows(ROWS_SQL)) == 6
        assert after.disagreements() == []


def _lasting(deployment: Deployment) -> dict[tuple[str, str], int]:
    """What is spent on counters whose window does not end within the test."""
    counters = [counter for counter in deployment.counters() if counter["window"] != "minute" and counter["spent"]]
    return {(counter["budget"], counter["counter"]): counter["spent"] for counter in counters}


def _client(deployment: Deployment, secret: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{deployment.url}/v1", api_key=secret, max_retries=0, timeout=30)


async def _started(client: AsyncOpenAI, name: str) -> Any:
    """A stream of which the first chunk has been read, so that its hold is open and its answer on the way."""
    stream = await client.chat.completions.create(
        model="sim-small",
        messages=[{"role": "user", "content": "Tell me everything."}],
        max_tokens=LONG_OUTPUT_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"x-request-id": name},
    )
    await anext(aiter(stream))
    return stream


def _answer(deployment: Deployment, secret: str, name: str) -> Any:
    with OpenAI(base_url=f"{deployment.url}/v1", api_key=secret, max_retries=0, timeout=30) as client:
        return client.chat.completions.create(
            model="sim-small",
            messages=[{"role": "user", "content": "Where do the bolts lie?"}],
            max_tokens=8,
            extra_headers={"x-request-id": name},
        )


def _open_holds(deployment: Deployment) -> int:
    return Scrape(deployment.page(f"{deployment.url}/metrics").decode()).gauge("bursar_holds_open")
