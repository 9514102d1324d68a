"""The books of the whole session: the ledger against vLLM's own counters, after everything that was sent."""

from __future__ import annotations

import asyncio
import sys
from random import Random

from openai import AsyncOpenAI

from tests.e2e.books import Books
from tests.e2e.governed import Counted, Episode, Governed
from tests.e2e.traffic import asked, leave_after, send_and_leave
from tests.e2e.vllm_environment import ROOT

REPORT = ROOT / "build" / "e2e-report.txt"
SEED = 20260102
REQUESTS = 60
AT_ONCE = 12  # more than vLLM has seats, so that some wait
PATIENCE_S_MAX = 0.15


async def test_after_a_concurrent_mix_the_ledger_agrees_with_vllm(governed: Governed) -> None:
    mixed = await _mix(governed)
    books = Books.of(governed)
    REPORT.write_text(books.text, encoding="utf-8")
    sys.stdout.write(f"\n{books.text}")
    assert {"ok", "cut"} == {row["status"] for row in mixed.rows}
    assert [counted for counted in governed.counted if not counted.agrees] == []
    assert books.disagreements == []
    assert governed.deployment.disagreements() == []


async def _mix(governed: Governed) -> Counted:
    """Send requests of every kind at once, some of whose clients leave."""
    episode, random, seats = governed.episode("mix"), Random(SEED), asyncio.Semaphore(AT_ONCE)
    async with governed.client() as client, asyncio.TaskGroup() as group:
        for number in range(REQUESTS):
            group.create_task(_request(governed, client, episode, seats, number % 5, random.random()))
    return episode.end()


async def _request(
    governed: Governed, client: AsyncOpenAI, episode: Episode, seats: asyncio.Semaphore, kind: int, chance: float
) -> None:
    """One request of five kinds; of the last two the client leaves, sooner or later as `chance` has it."""
    body = asked(f"Shelf {chance:.3f}, please.", 20 + int(chance * 200))
    async with seats:
        if kind == 0:
            await client.chat.completions.create(**body, extra_headers=episode.headers())
        elif kind == 1:
            stream = await client.chat.completions.create(**body, stream=True, extra_headers=episode.headers())
            assert [chunk async for chunk in stream]
        elif kind == 2:
            answer = await client.chat.completions.create(
                **body, n=2, temperature=1.0, extra_headers=episode.headers(choices=2)
            )
            assert len(answer.choices) == 2
        elif kind == 3:
            await leave_after(client, 1 + int(chance * 18), body, episode.headers())
        else:
            await send_and_leave(governed, body, episode.headers(), chance * PATIENCE_S_MAX)
