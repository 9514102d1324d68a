"""What the ledger records of prompts: which begin alike within a cache domain, and nothing that has their text."""

import random
from itertools import pairwise
from typing import Any

import pytest

from domain.intent import Intent, Principal
from gateway.prompt_blocks import BLOCK_ENDS_BYTES, PromptBlocks, text_of

KEY = b"k" * 32
HERE = Principal("acme", "search", "web", "u-1", "k1")
ELSEWHERE = Principal("acme", "ads", "web", "u-1", "k1")
SYSTEM = {"role": "system", "content": "You are terse. " * 200}


def intent(principal: Principal = HERE, endpoint: str = "chat", salt: str = "") -> Intent:
    return Intent("r", principal, endpoint, "m", stream=False, input_bound=1, max_output_tokens=1, cache_salt=salt)


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    return {"messages": [SYSTEM, *({"role": "user", "content": text} for text in texts)], **more}


def blocks(
    body: dict[str, Any], of: Intent | None = None, domain: str = "team", model: str = "m", key: bytes = KEY
) -> list[int]:
    found: list[int] = PromptBlocks(key).columns(of or intent(), domain, model, body).get("prompt_blocks", [])
    return found


def filled(size: int) -> int:
    """How many blocks so many bytes fill."""
    return sum(end <= size for end in BLOCK_ENDS_BYTES)


def common(one: list[int], other: list[int]) -> int:
    """How many blocks two prompts begin with alike; behind the first that differs, all must differ."""
    count = sum(a == b for a, b in zip(one, other, strict=False))
    assert one[:count] == other[:count]
    return count


def test_blocks_end_at_the_same_places_in_every_prompt_and_grow_with_what_is_before() -> None:
    assert len(BLOCK_ENDS_BYTES) == 65
    assert BLOCK_ENDS_BYTES[:9] == (256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096)
    assert BLOCK_ENDS_BYTES[-1] == 512 << 10
    for begin, end in pairwise(BLOCK_ENDS_BYTES[8:]):
        assert begin / 16 < end - begin <= begin / 8


def test_a_conversation_that_goes_on_keeps_all_blocks_it_had() -> None:
    first, second = chat("a" * 3000), chat("a" * 3000, "and then?" * 200)
    assert blocks(second)[: len(blocks(first))] == blocks(first)
    assert len(blocks(first)) == filled(len(text_of("chat", first)))


def test_prompts_share_the_blocks_before_their_first_difference_and_none_behind() -> None:
    same = filled(len(text_of("chat", chat())))
    one, other = blocks(chat("x" + "a" * 5000)), blocks(chat("y" + "a" * 5000))
    assert common(one, other) == same > 0
    assert len(one) > same + 5


def test_any_difference_shows_from_its_block_on() -> None:
    """Over random texts with one byte changed: exactly the blocks that end before it are the same."""
    dice = random.Random(1)
    for _ in range(200):
        text = "".join(dice.choices('ab \u00e9\n"', k=dice.randrange(600, 40_000)))
        at = dice.randrange(len(text))
        changed = f"{text[:at]}X{text[at + 1 :]}"
        one, other = ({"prompt": each} for each in (text, changed))
        asked = intent(endpoint="completions")
        differs = next(
            place
            for place, (a, b) in enumerate(
                zip(text_of("completions", one), text_of("completions", other), strict=False)
            )
            if a != b
        )
        assert common(blocks(one, asked), blocks(other, asked)) == filled(differs)


@pytest.mark.parametrize(
    ("domain", "principal", "salt", "model", "key", "is_same"),
    [
        ("team", HERE, "", "m", KEY, True),
        ("team", HERE._replace(app="cron", user="u-2", key_id="k2"), "", "m", KEY, True),
        ("app", HERE._replace(user="u-2", key_id="k2"), "", "m", KEY, True),
        ("app", HERE._replace(app="cron"), "", "m", KEY, False),
        ("team", ELSEWHERE, "", "m", KEY, False),
        ("org", ELSEWHERE, "", "m", KEY, True),
        ("org", ELSEWHERE._replace(org="other"), "", "m", KEY, False),
        ("shared", ELSEWHERE._replace(org="other"), "", "m", KEY, True),
        ("team", HERE, "own", "m", KEY, False),
        ("team", HERE, "", "another", KEY, False),
        ("team", HERE, "", "m", b"q" * 32, False),
    ],
)
def test_equal_texts_are_equal_within_one_cache_domain_model_and_deployment_only(
    domain: str, principal: Principal, salt: str, model: str, key: bytes, is_same: bool
) -> None:
    one = blocks(chat("hello" * 500), intent(), domain)
    other = blocks(chat("hello" * 500), intent(principal, salt=salt), domain, model, key)
    assert len(one) == len(other) > 3
    assert common(one, other) == (len(one) if is_same else 0)


def test_one_object_serves_all_domains() -> None:
    """Whatever it hashed before, and however many domains it knows."""
    hashing = PromptBlocks(KEY)
    found = [hashing.columns(intent(), domain, "m", chat())["prompt_blocks"] for domain in ("app", "team", "app")]
    assert found[0] == found[2] != found[1]
    for number in range(10_001):
        hashing.columns(intent(salt=str(number)), "app", "m", chat())
    assert hashing.columns(intent(), "app", "m", chat())["prompt_blocks"] == found[0]


def test_what_a_template_puts_before_the_messages_is_before_them() -> None:
    tools = [{"type": "function", "function": {"name": "look", "description": "d" * 2000}}]
    one, other = chat("hello", tools=tools), chat("bye", tools=tools)
    assert common(blocks(one), blocks(chat("hello"))) == 0
    assert common(blocks(one), blocks(other)) >= filled(2000)
    assert blocks(chat("hello", temperature=1, max_tokens=4, n=2)) == blocks(chat("hello"))


def test_texts_in_parts_have_blocks_and_pictures_have_none() -> None:
    def parts(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}]}

    text = {"type": "text", "text": "long " * 300}
    assert blocks(parts(text))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    hashing = PromptBlocks(KEY)
    assert hashing.columns(intent(), "team", "m", parts(text, picture)) == {}
    assert hashing.columns(intent(), "team", "m", {"messages": [{"role": "assistant", "content": None}]}) != {}


@pytest.mark.parametrize(
    ("prompt", "has_blocks"),
    [
        ("text " * 500, True),
        (list(range(1000)), True),
        (["text " * 500], False),
        ([[1, 2, 3] * 500], False),
    ],
    ids=["text", "token ids", "texts", "lists of ids"],
)
def test_a_completion_has_blocks_of_its_only_prompt(prompt: Any, has_blocks: bool) -> None:
    assert bool(blocks({"prompt": prompt}, intent(endpoint="completions"))) is has_blocks


def test_embeddings_generate_nothing_and_have_none() -> None:
    assert PromptBlocks(KEY).columns(intent(endpoint="embeddings"), "team", "m", {"input": "text " * 500}) == {}


def test_a_short_prompt_has_its_length_only_and_a_very_long_one_65_blocks() -> None:
    hashing = PromptBlocks(KEY)
    short = hashing.columns(intent(), "team", "m", {"messages": [{"role": "user", "content": "hello"}]})
    assert short == {"prompt_bytes": len(b'[{"role":"user","content":"hello"}]')}
    long = hashing.columns(intent(), "team", "m", chat("a" * (1 << 20)))
    assert len(long["prompt_blocks"]) == 65
    assert long["prompt_bytes"] > 1 << 20
    assert all(0 <= each < 1 << 64 for each in long["prompt_blocks"])
