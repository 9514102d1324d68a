"""Clients that leave a real vLLM: what it computed until then is charged."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.configuration import CHAT_MODEL
from tests.e2e.conftest import SEATS
from tests.e2e.governed import Governed
from tests.e2e.traffic import asked, give_up, leave_after, occupied, until_state

LONG_OUTPUT_TOKENS = 800  # some seconds of answer, so that every client leaves in the middle of it


@pytest.mark.parametrize("chunks", [1, 2, 7, 40, 150])
async def test_a_client_that_leaves_mid_stream_is_charged_its_last_report_and_the_steps_in_flight(
    governed: Governed, chunks: int
) -> None:
    episode = governed.episode(f"left-after-{chunks}")
    async with governed.client() as client:
        body = asked("Tell me everything.", LONG_OUTPUT_TOKENS)
        request_id = await leave_after(client, chunks, body, episode.headers())
    counted = episode.end()
    [row] = counted.rows
    assert row["request_id"] == request_id
    assert (row["status"], row["certainty"], row["error_code"]) == ("cut", "at_least", "client_left")
    assert row["input_tokens"] == row["held_tokens"] - row["held_output_tokens"] == counted.prompt
    assert chunks - 1 <= row["output_tokens"] < LONG_OUTPUT_TOKENS, "vLLM stopped when its client left"
    assert counted.agrees, counted


async def test_a_client_that_leaves_two_choices_is_charged_for_both(governed: Governed) -> None:
    episode = governed.episode("left-two-choices")
    async with governed.client() as client:
        body = asked("Tell me it twice.", LONG_OUTPUT_TOKENS, n=2, temperature=1.0)
        await leave_after(client, 30, body, episode.headers(choices=2))
    counted = episode.end()
    [row] = counted.rows
    assert (row["status"], row["certainty"]) == ("cut", "at_least")
    assert counted.agrees, counted


async def test_a_client_that_leaves_while_it_waits_for_a_seat_is_charged_its_prompt(governed: Governed) -> None:
    episode = governed.episode("left-waiting")
    async with governed.client() as client, occupied(governed, episode, SEATS):
        body = asked("Is there a seat?", 20, stream=True)
        request = asyncio.create_task(client.chat.completions.create(**body, extra_headers=episode.headers()))
        await until_state(governed, running=SEATS, waiting=1)
        await give_up(request)
        await until_state(governed, running=SEATS, waiting=0)
    counted = episode.end()
    seated, left = counted.rows[:SEATS], counted.rows[SEATS]
    assert {row["certainty"] for row in seated} == {"at_least"}
    assert (left["status"], left["certainty"], left["ttft_us"]) == ("cut", "at_most", 0)
    assert left["input_tokens"] == left["held_tokens"] - left["held_output_tokens"] > 0
    assert left["output_tokens"] == 0
    assert counted.prompt == sum(row["input_tokens"] for row in seated), "vLLM never took the prompt up"
    assert counted.agrees, counted


async def test_a_client_that_leaves_an_unstreamed_answer_is_charged_all_it_may_have_cost(governed: Governed) -> None:
    episode = governed.episode("left-unstreamed")
    async with governed.client() as client:
        ask = client.completions.create(
            model=CHAT_MODEL,
            prompt="Once upon a shelf",
            max_tokens=LONG_OUTPUT_TOKENS,
            extra_body={"ignore_eos": True},
            extra_headers=episode.headers(),
        )
        request = asyncio.create_task(ask)
        await until_state(governed, running=1, waiting=0)
        await give_up(request)
    counted = episode.end()
    [row] = counted.rows
    assert (row["status"], row["certainty"], row["output_tokens"]) == ("cut", "at_most", LONG_OUTPUT_TOKENS)
    assert counted.generation < LONG_OUTPUT_TOKENS, "vLLM stopped when its client left"
    assert counted.agrees, counted
