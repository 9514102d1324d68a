"""A real vLLM behind Bursar: each request is governed as its policy and budgets say, and charged what vLLM counts."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from domain.usage import Usage
from tests.e2e.configuration import CHAT_MODEL, EMBED_MODEL, MIN_OUTPUT_TOKENS, PRICES, SMALL_BUDGET_TOKENS
from tests.e2e.conftest import SEATS
from tests.e2e.governed import Governed
from tests.e2e.traffic import asked, occupied, until_state

BLOCK_TOKENS = 32
LONG_PREFIX = "Corenfi gradel hobar inka lormi nuor peba quari stoba corde. " * 24
LARGE_OUTPUT_TOKENS = 300
AHEAD_OF_ALL = -1000  # vLLM serves lower numbers first


async def test_an_answer_is_charged_exactly_what_vllm_reported(governed: Governed) -> None:
    episode = governed.episode("unary")
    async with governed.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            **asked("Where do the bolts lie?", 24), extra_headers=episode.headers()
        )
    usage = raw.parse().usage
    counted = episode.end()
    [row] = counted.rows
    assert (row["status"], row["certainty"], row["http_status"]) == ("ok", "exact", 200)
    assert (row["input_tokens"], row["output_tokens"]) == (usage.prompt_tokens, 24)
    assert usage.completion_tokens == 24
    assert row["held_tokens"] == usage.total_tokens, "with the model's tokenizer the bound of a chat is exact"
    assert row["list_cost_nusd"] == PRICES.list_cost_nusd(Usage(input_tokens=row["input_tokens"], output_tokens=24))
    assert row["gpu_us"] > 0
    assert row["gpu_cost_nusd"] > 0
    assert raw.headers["x-request-id"] == row["request_id"]
    assert counted.agrees, counted


async def test_several_prompts_and_several_choices_are_charged_together(governed: Governed) -> None:
    episode = governed.episode("many")
    async with governed.client() as client:
        prompts = await client.completions.create(
            model=CHAT_MODEL,
            prompt=["The nuts lie", "The washers and the rivets lie"],
            max_tokens=9,
            extra_body={"ignore_eos": True},
            extra_headers=episode.headers(),
        )
        choices = await client.chat.completions.create(
            **asked("Name a shelf.", 7, n=3, temperature=1.0), extra_headers=episode.headers(choices=3)
        )
    counted = episode.end()
    of_prompts, of_choices = counted.rows
    assert (len(prompts.choices), of_prompts["output_tokens"]) == (2, 18)
    assert (len(choices.choices), of_choices["output_tokens"]) == (3, 21)
    assert of_choices["input_tokens"] == choices.usage.prompt_tokens, "a prompt is charged once for all its choices"
    assert counted.agrees, counted


@pytest.mark.parametrize(
    ("options", "reports"),
    [
        (None, "none"),
        ({"include_usage": False}, "none"),
        ({"include_usage": True}, "last"),
        ({"include_usage": True, "continuous_usage_stats": True}, "all"),
    ],
)
async def test_a_stream_shows_usage_to_a_client_that_asked(
    governed: Governed, options: dict[str, Any] | None, reports: str
) -> None:
    episode = governed.episode(f"stream-{reports}-{options is None}")
    more: dict[str, Any] = {} if options is None else {"stream_options": options}
    async with governed.client() as client:
        stream = await client.chat.completions.create(
            **asked("Tell me of shelves.", 16, **more), stream=True, extra_headers=episode.headers()
        )
        chunks = [chunk async for chunk in stream]
    [row] = episode.end().rows
    shown = [chunk.usage is not None for chunk in chunks]
    assert shown[-1] is (reports != "none")
    assert all(shown[:-1]) is (reports == "all")
    assert any(shown[:-1]) is (reports == "all")
    assert chunks[-1].usage is None or chunks[-1].usage.total_tokens == row["input_tokens"] + row["output_tokens"]
    assert (row["certainty"], row["output_tokens"], row["stream"]) == ("exact", 16, True)
    assert row["ttft_us"] > 0
    assert governed.counted[-1].agrees, governed.counted[-1]


async def test_a_completion_can_be_streamed(governed: Governed) -> None:
    episode = governed.episode("stream-completion")
    async with governed.client() as client:
        stream = await client.completions.create(
            model=CHAT_MODEL,
            prompt="The bolts lie",
            max_tokens=12,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers=episode.headers(),
        )
        chunks = [chunk async for chunk in stream]
    counted = episode.end()
    [row] = counted.rows
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)
    assert (row["certainty"], row["output_tokens"], row["endpoint"]) == ("exact", 12, "completions")
    assert counted.agrees, counted


async def test_a_repeated_prefix_is_cheaper_within_a_team_and_unknown_to_another(governed: Governed) -> None:
    episode, hits_before = governed.episode("prefix"), governed.sample().prefix_cache_hits
    for team, question in (("search", "Nuts?"), ("search", "Washers?"), ("research", "Nuts?")):
        async with governed.client(team) as client:
            await client.chat.completions.create(**asked(LONG_PREFIX + question, 4), extra_headers=episode.headers())
    counted = episode.end()
    first, again, elsewhere = counted.rows
    assert (first["cached_input_tokens"], first["saved_cost_nusd"]) == (0, 0)
    assert again["cached_input_tokens"] > again["input_tokens"] - 2 * BLOCK_TOKENS
    assert again["cached_input_tokens"] % BLOCK_TOKENS == 0
    per_mtok = PRICES.input_nusd_per_mtok - PRICES.cached_input_nusd_per_mtok
    assert again["saved_cost_nusd"] == again["cached_input_tokens"] * per_mtok // 1_000_000 > 0
    assert again["list_cost_nusd"] < first["list_cost_nusd"]
    assert again["gpu_us"] < first["gpu_us"]
    assert elsewhere["cached_input_tokens"] == 0, "what one team has cached cannot be timed by another"
    assert governed.sample().prefix_cache_hits - hits_before == again["cached_input_tokens"]
    assert counted.agrees, counted


async def test_embeddings_are_charged_what_their_runtime_counts(governed: Governed) -> None:
    before = governed.quiet_sample(governed.embed_url)
    async with governed.client() as client:
        answer = await client.embeddings.create(
            model=EMBED_MODEL, input=["a shelf", "a box of nuts"], extra_headers={"x-request-id": "embeddings/1"}
        )
    [row] = governed.rows("embeddings/", 1)
    after = governed.quiet_sample(governed.embed_url)
    assert len(answer.data) == 2
    assert (row["runtime"], row["certainty"], row["output_tokens"]) == ("vllm-embed", "exact", 0)
    assert row["input_tokens"] == answer.usage.prompt_tokens
    assert row["input_tokens"] == after.prompt_tokens_total - before.prompt_tokens_total


async def test_policy_and_not_the_client_says_who_goes_first(governed: Governed) -> None:
    episode = governed.episode("priority")
    order: list[str] = []

    async def ask(team: str, **more: Any) -> None:
        async with governed.client(team) as client:
            stream = await client.chat.completions.create(
                **asked(f"Let {team} pass.", 4, **more), stream=True, extra_headers=episode.headers()
            )
            await anext(aiter(stream))
            order.append(team)
            assert [chunk async for chunk in stream]

    for team in ("bulk", "urgent"):
        governed.secret(team)
    async with asyncio.TaskGroup() as group, occupied(governed, episode, SEATS) as leaving:
        group.create_task(ask("bulk", extra_body={"priority": AHEAD_OF_ALL}))
        await until_state(governed, running=SEATS, waiting=1)
        group.create_task(ask("urgent"))
        await until_state(governed, running=SEATS, waiting=2)
        leaving[0].set()
        await until_state(governed, running=SEATS - 1, waiting=0)
    counted = episode.end()
    assert order == ["urgent", "bulk"]
    assert counted.agrees, counted


async def test_a_budget_shrinks_the_answer_that_vllm_gives_and_then_runs_out(governed: Governed) -> None:
    episode = governed.episode("small")
    body = asked("Write it all down.", LARGE_OUTPUT_TOKENS)
    async with governed.client("small") as client:
        ask = client.chat.completions.with_raw_response.create
        whole = await ask(**body, extra_headers=episode.headers())
        shrunk = await ask(**body, extra_headers=episode.headers())
        with pytest.raises(openai.RateLimitError) as refused:
            await ask(**body, extra_headers=episode.headers())
    first, second, third = episode.end().rows
    left = SMALL_BUDGET_TOKENS - first["input_tokens"] - LARGE_OUTPUT_TOKENS
    fits = left - second["input_tokens"]
    assert MIN_OUTPUT_TOKENS <= fits < LARGE_OUTPUT_TOKENS
    assert "x-bursar-degraded" not in whole.headers
    assert shrunk.headers["x-bursar-degraded"] == "max_tokens"
    assert shrunk.headers["x-bursar-budget"].startswith("small-total-tokens;remaining=0;")
    answer = shrunk.parse()
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", fits)
    assert (second["degraded"], second["output_tokens"]) == ("max_tokens", fits)
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert "small-total-tokens" in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert (third["status"], third["input_tokens"], third["output_tokens"]) == ("refused", 0, 0)
    assert governed.counted[-1].agrees, governed.counted[-1]


async def test_many_requests_at_once_are_counted_as_vllm_counts_them(governed: Governed) -> None:
    episode = governed.episode("at-once")
    async with governed.client() as client, governed.client("research") as other, asyncio.TaskGroup() as group:
        for number in range(24):
            body = asked(f"Request {number} of many.", 8 + 3 * number, stream=number % 3 == 0)
            ask = (client, other)[number % 2].chat.completions.create
            group.create_task(_read(ask(**body, extra_headers=episode.headers())))
    counted = episode.end()
    assert all(row["certainty"] == "exact" for row in counted.rows)
    assert counted.allowed.prompt.is_exact
    assert counted.allowed.generation.is_exact
    assert counted.agrees, counted


async def _read(answer: Any) -> None:
    """Read an answer to its end, streamed or not."""
    answered = await answer
    if isinstance(answered, openai.AsyncStream):
        assert [chunk async for chunk in answered]
