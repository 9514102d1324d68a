"""The deployment's own trace: what came and how prompts begin alike, without text, hashes or names of anyone."""

import json
import random
from collections.abc import Iterable, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import pytest

from domain.intent import Intent, Principal
from gateway.prompt_blocks import PromptBlocks
from gateway.trace_export import BLOCK_TOKENS, TrafficWorkload
from ledger.traffic import Request
from runtime.workload.opening import open_workload
from runtime.workload.port import Arrival
from runtime.workload.rows import blocks_of
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime, usage, whole
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, ran


def arrivals(*requests: Request, remembered_max: int = 1_000) -> list[Arrival]:
    return list(TrafficWorkload("m", lambda: iter(requests), remembered_max))


def request(size: int, *blocks: int, tokens: int = 0, at: int = 0) -> Request:
    """A prompt of so many bytes, four to a token unless it is said."""
    return Request(at, tokens or size // 4, 10, size, blocks)


def shared(one: Arrival, other: Arrival) -> int:
    """How many tokens two prompts begin with alike."""
    return BLOCK_TOKENS * sum(a == b for a, b in zip(one.blocks, other.blocks, strict=False))


def test_ids_are_dense_and_cover_every_token() -> None:
    one, other = arrivals(request(1040, 91, 92, 93, at=500), request(600, 94, 95, at=800))
    assert (one.at_us, other.at_us) == (0, 300)
    assert one.blocks == tuple(range(blocks_of(260, BLOCK_TOKENS)))
    assert other.blocks == tuple(range(17, 17 + blocks_of(150, BLOCK_TOKENS)))


def test_prompts_share_ids_up_to_the_middle_of_the_block_in_which_they_differ() -> None:
    """At 1 KiB and 1.5 KiB there are hashes: what is alike up to the one is taken for alike up to 1.25 KiB."""
    first, second, third = arrivals(
        request(2000, 1, 2, 3, 4), request(2000, 1, 2, 3, 9), request(2000, 1, 2, 3, 9, tokens=512)
    )
    assert shared(first, second) == 320
    assert shared(second, third) == 448
    assert shared(first, third) == 320


def test_prompts_that_differ_in_their_first_block_share_nothing() -> None:
    first, second = arrivals(request(255), request(255))
    assert shared(first, second) == 0


def test_a_prompt_shares_no_more_than_whoever_was_first_had() -> None:
    first, second = arrivals(request(1040, 1, 2, 3), request(2000, 1, 2, 3, 4))
    assert shared(first, second) == 256


def test_another_number_of_bytes_to_a_token_moves_no_beginning() -> None:
    """Where a shared text ends in tokens is settled by whoever had it first."""
    first, second = arrivals(request(2000, 1, 2, 3, tokens=500), request(4000, 1, 2, 3, 5, tokens=4000))
    assert shared(first, second) == 320
    assert len(second.blocks) == 4000 // BLOCK_TOKENS


def test_a_prompt_with_fewer_tokens_than_its_beginning_once_had_shares_all_it_has() -> None:
    first, second, third = arrivals(
        request(1024, 1, 2, 3, tokens=1024), request(1100, 1, 2, 3, tokens=600), request(1024, 1, 2, 3, tokens=1024)
    )
    assert shared(first, second) == 592
    assert shared(first, third) == 1024
    assert len(second.blocks) == blocks_of(600, BLOCK_TOKENS)


def test_a_request_of_which_no_prompt_is_known_shares_nothing() -> None:
    assert arrivals(Request(0, 100, 10, 0, ())) == [Arrival(0, 100, 10)]


def test_what_is_forgotten_is_new_and_the_rest_is_as_it_was() -> None:
    """No more than twice as many hashes are remembered, and no id is ever given to two texts."""
    chains = [(100 * chain + 1, 100 * chain + 2, 100 * chain + 3) for chain in range(9)]
    again = arrivals(*(request(1024, *chain) for chain in (*chains, chains[8], chains[0])), remembered_max=9)
    assert shared(again[8], again[9]) == 256
    assert shared(again[0], again[10]) == 0
    ids = [block for each in (*again[:9], again[10]) for block in each.blocks]
    assert sorted(ids) == list(range(len(ids)))


def hit_ratio(prompts: Iterable[Sequence[object]]) -> float:
    """Of all blocks, those that a cache without end has: each is known by itself and all before it."""
    seen: set[object] = set()
    hits = total = 0
    for prompt in prompts:
        known = list(takewhile(seen.__contains__, prompt))
        hits, total = hits + len(known), total + len(prompt)
        seen.update(prompt)
    return hits / total


@pytest.mark.parametrize(("system_tokens", "turns"), [(400, 1), (2000, 1), (400, 8), (4000, 12)])
def test_an_exported_trace_hits_as_often_as_its_prompts_did(system_tokens: int, turns: int) -> None:
    """Texts of words of one to seven bytes, each a token: what is exported of their hashes hits within 3 points."""
    dice = random.Random(5)
    hashing = PromptBlocks(b"k" * 32)
    asks = Intent(
        "r", Principal("acme", "search", "web", "", "k"), "chat", "m", stream=False, input_bound=1, max_output_tokens=1
    )

    def words(mean: int) -> list[str]:
        return ["".join(dice.choices("abcdefg", k=dice.randrange(7))) + " " for _ in range(dice.randrange(1, 2 * mean))]

    systems = [words(system_tokens) for _ in range(6)]
    requests: list[Request] = []
    prompts: list[list[int]] = []
    while len(requests) < 300:
        said = [dice.choice(systems)]
        for _ in range(turns):
            said.append(words(100))
            tokens = list(chain.from_iterable(("<turn>", *text) for text in said))
            body = {"messages": [{"role": "user", "content": "".join(text)} for text in said]}
            found = hashing.columns(asks, "team", "m", body)
            blocks = tuple(found.get("prompt_blocks", ()))
            requests.append(Request(0, len(tokens), 10, found["prompt_bytes"], blocks))
            prompts.append([hash(tuple(tokens[:end])) for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS)])
            said.append(words(150))
    exported = hit_ratio(
        each.blocks[: each.prompt_tokens // BLOCK_TOKENS] for each in arrivals(*requests, remembered_max=9**9)
    )
    assert hit_ratio(prompts) > 0.5
    assert exported == pytest.approx(hit_ratio(prompts), abs=0.03)


Rested = tuple[Path, Path]
SYSTEM = {"role": "system", "content": "You are a helpful assistant of acme. " * 80}


def said(text: str, tokens: int, output: int = 5) -> dict[str, Any]:
    """A request whose runtime reports these tokens."""
    script = {"steps": [whole(usage(output, prompt=tokens))]}
    return {"messages": [SYSTEM, {"role": "user", "content": text}], "script": script}


@pytest.fixture(scope="module")
def rested(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Rested:
    """A home whose gateway recorded prompts, and has stopped: two requests of one team, one of another, and others."""
    folder = tmp_path_factory.mktemp("trace")
    config = deploy(folder, fake.url, ledger={"prompt_blocks": True})
    with gateway_process.running(folder / "home", config) as gateway:
        gateway.ended(gateway.chat("search", **said("one secret", 800)))
        gateway.ended(gateway.chat("search", **said("two", 799, output=9)))
        gateway.ended(gateway.chat("ads", **said("one secret", 800)))
        gateway.ended(gateway.chat("search", **said("failed", 800) | {"script": {"status": 500, "steps": ["{}"]}}))
        gateway.ended(gateway.chat("search", **said("no usage", 800) | {"script": {"steps": [whole(None)]}}))
        gateway.ended(gateway.chat("search", model="hidden"))
    return folder / "home", config


def test_a_gateways_traffic_reads_back_as_a_workload(rested: Rested, tmp_path: Path) -> None:
    """Of the team's two all blocks of the common system prompt are shared; the other team's share none of them."""
    home, config = rested
    file = tmp_path / "own.jsonl"
    done = ran(DONE, "ledger", "export", "trace", "--model", "plain", "--out", str(file), home=home, config=config)
    assert f"3 requests of plain in {file}; 1 request left out, whose tokens are not known" in done.stdout
    workload = open_workload(file)
    assert (workload.name, workload.block_tokens) == ("plain", BLOCK_TOKENS)
    assert "without prefixes" not in done.stderr
    one, two, foreign = workload
    assert [(each.prompt_tokens, each.output_tokens) for each in (one, two, foreign)] == [(800, 5), (799, 9), (800, 5)]
    assert 0 == one.at_us < two.at_us < foreign.at_us
    # They are alike in all but their last 50 of 3,000 bytes or so, and have hashes up to 2,560.
    assert 800 * 2_560 / 3_040 - BLOCK_TOKENS <= shared(one, two) <= 799
    assert shared(one, foreign) == 0


def test_a_trace_says_nothing_of_text_hashes_or_people(rested: Rested, tmp_path: Path) -> None:
    home, config = rested
    rows = json.loads(
        ran(DONE, "ledger", "query", "SELECT * FROM usage", "--format", "json", home=home, config=config).stdout
    )
    hashes = {str(block) for row in rows for block in row["prompt_blocks"]}
    assert len(hashes) >= 10
    text = ran(DONE, "ledger", "export", "trace", home=home, config=config).stdout
    assert text.count("\n") == 4
    for word in ("secret", "helpful", "acme", "search", "u-", *hashes):
        assert word not in text
    journals = b"".join(path.read_bytes() for path in (home / "journal").rglob("*.seg"))
    assert b"prompt_blocks" in journals
    assert b"helpful" not in journals


def test_rows_have_blocks_only_where_it_is_asked_for(fake: FakeRuntime, tmp_path: Path) -> None:
    config = deploy(tmp_path, fake.url)
    with gateway_process.running(tmp_path / "home", config) as gateway:
        row = gateway.ended(gateway.chat("search", **said("one", 800)))
        (record,) = gateway.records("usage")
    assert not {"prompt_blocks", "prompt_bytes"} & record.keys()
    assert (row["prompt_blocks"], row["prompt_bytes"]) == ((), 0)
    file = tmp_path / "own.jsonl"
    done = ran(DONE, "ledger", "export", "trace", "--out", str(file), home=tmp_path / "home", config=config)
    assert "1 request without prefixes, as where ledger.prompt_blocks is off" in done.stderr
    assert list(open_workload(file)) == [Arrival(0, 800, 5)]


def test_what_cannot_be_exported_is_said_in_a_line(rested: Rested, tmp_path: Path) -> None:
    home, config = rested
    for code, options, told in (
        (NO, ["--model", "nobody"], "no chat or completion of model nobody was served in that time: there are plain"),
        (NO, ["--since", "2020-01-01", "--until", "2020-02-01"], "no chat or completion was served in that time"),
        (WRONG_USAGE, ["--since", "yesterday"], "cannot read the time 'yesterday'"),
        (AWAY, ["--out", str(tmp_path / "missing" / "x.jsonl")], "cannot be written"),
    ):
        done = ran(code, "ledger", "export", "trace", *options, home=home, config=config)
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
