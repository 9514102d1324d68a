"""The scorer finds what is wrong with the form of an answer, and leaves good answers alone."""

import json
import random

import pytest

from policy.quality import (
    PENALTIES,
    Answer,
    Expected,
    assess,
    expected_of,
    is_sampled,
    is_unterminated,
    refuses,
    repeats_permille,
)

PROSE = (
    "The budget of a team is counted in tokens and in money. Each request is held against all of them before it is "
    "sent to a runtime, so that what is spent never exceeds what was granted. Afterwards the hold is settled with what "
    "was really used, and the rest is given back."
)
CODE = """Here is a function:

```python
def total(rows):
    found = 0
    for row in rows:
        found += row.amount
    return found
```"""
LIST = "Some fruits, by how much of them is eaten in the whole world and over the whole year, are the following:\n"
LIST += "\n".join(
    f"- {fruit} and their kind" for fruit in ("bananas", "apples", "oranges", "mangoes", "grapes", "pears")
)
ROWS = json.dumps([{"id": number, "name": f"n{number}"} for number in range(90)])
TABLE = "\n".join(f"| {n} | {n * n} | row number {n} of the table |" for n in range(60))


def flags(text: str, finish: str = "stop", expected: Expected = Expected(), **more: bool) -> tuple[str, ...]:  # noqa: B008 frozen
    return assess([Answer(text, finish, **more)], expected).flags


@pytest.mark.parametrize("text", ["Paris", "42", "yes", PROSE, CODE, LIST, TABLE, "今天天气很好。" * 2, "{}"])
def test_a_good_answer_has_no_flags(text: str) -> None:
    assert flags(text) == ()
    assert assess([Answer(text, "stop")], Expected()) == (1000, (), True)


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_an_empty_answer_fails_unless_it_calls_tools(text: str) -> None:
    assert assess([Answer(text, "stop")], Expected()) == (0, ("empty",), False)
    assert flags(text, "tool_calls", calls_tools=True) == ()
    assert assess([], Expected()).flags == ("empty",)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with this request.",
        "As an AI language model, I cannot give legal advice.",
        "I am unable to open links.",
    ],
)
def test_a_refusal_is_found(text: str) -> None:
    assert refuses(text)
    assert flags(text) == ("refusal",)
    assert not assess([Answer(text, "stop")], Expected()).passes


def test_a_text_about_refusing_is_none() -> None:
    assert not refuses(PROSE * 2 + " Then the model says: I can't help with that.")
    assert not refuses(f"The support agent looked at it for a long time. {PROSE[:160]} I cannot help you.")
    assert flags("", refused=True) == ("refusal",)


@pytest.mark.parametrize(
    "text",
    [
        "I think that it is so and " * 40,
        PROSE + " and so on and on, and then again," * 60,
        "ha" * 400,
        "再见" * 300,
        "0" * 3_000,
    ],
)
def test_going_in_circles_is_found(text: str) -> None:
    assert repeats_permille(text) >= 500
    assert "repetition" in flags(text)
    assert not assess([Answer(text, "length")], Expected()).passes


@pytest.mark.parametrize("text", [PROSE * 2, CODE, LIST, TABLE, ROWS])
def test_texts_with_a_pattern_are_not_circles(text: str) -> None:
    assert repeats_permille(text) < 500
    assert "repetition" not in flags(text)


def test_random_words_never_repeat() -> None:
    rng = random.Random(7)
    for _ in range(20):
        words = " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(500))
        assert repeats_permille(words) == 0


def test_a_long_answer_is_looked_at_at_its_end_only() -> None:
    assert repeats_permille("loop and loop again " * 10_000) > 900
    rng = random.Random(3)
    fresh = " ".join(str(rng.random()) for _ in range(2_000))
    assert repeats_permille("loop and loop again " * 10_000 + fresh) < 100


def test_truncation_is_what_the_runtime_says_or_a_text_that_stops_in_the_middle() -> None:
    assert flags(PROSE, "length") == ("truncated",)
    assert assess([Answer(PROSE, "length")], Expected()).passes
    assert flags(PROSE.removesuffix(" is given back.")) == ("unterminated",)
    assert flags(CODE.removesuffix("```")) == ("unterminated",)
    assert not is_unterminated(LIST)
    assert not is_unterminated(TABLE)
    assert is_unterminated(PROSE + " But what is")
    assert flags(PROSE.removesuffix(" is given back."), is_cut=True) == ()


def test_json_is_held_to_what_was_asked() -> None:
    any_object, by_schema = Expected(is_json=True), Expected(is_json=True, schema={"type": "array"})
    assert flags('{"a": 1}', expected=any_object) == ()
    assert flags("[1]", expected=any_object) == ("schema",)
    assert flags("[1]", expected=by_schema) == ()
    assert flags("[1]", expected=by_schema, breaks_schema=True) == ("schema",)
    for broken in ('{"a": 1', "Sure! Here it is: {}", "[" * 100_000, "9" * 10_000 + "x"):
        assert "schema" in flags(broken, expected=by_schema)
    assert flags('{"a": 1', "length", expected=any_object) == ("schema", "truncated")
    assert flags('{"a": 1', expected=any_object, is_cut=True) == ()
    assert flags("calling", expected=any_object, calls_tools=True) == ()


def test_the_worst_choice_counts() -> None:
    found = assess([Answer(PROSE, "stop"), Answer("", "stop"), Answer(PROSE, "length")], Expected())
    assert (found.score_permille, found.flags) == (0, ("empty",))


def test_the_passing_score_is_the_operators() -> None:
    answer = [Answer(PROSE, "length")]
    assert assess(answer, Expected(), 1000 - PENALTIES["truncated"]).passes
    assert not assess(answer, Expected(), 1001 - PENALTIES["truncated"]).passes


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Expected()),
        ({"response_format": {"type": "text"}}, Expected()),
        ({"response_format": {"type": "json_object"}}, Expected(is_json=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            Expected(is_json=True, schema={"type": "object"}),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, Expected(is_json=True)),
        ({"response_format": {"type": "json_schema"}}, Expected()),
        ({"response_format": "json"}, Expected()),
    ],
)
def test_what_was_asked_is_read_from_the_request(body: dict[str, object], expected: Expected) -> None:
    assert expected_of(body) == expected


def test_sampling_is_by_request_and_keeps_to_its_rate() -> None:
    ids = [f"0199-{number}" for number in range(20_000)]
    tenth = {each for each in ids if is_sampled(each, 0.1)}
    assert 1_800 < len(tenth) < 2_200
    assert {each for each in ids if is_sampled(each, 0.1)} == tenth
    assert {each for each in ids if is_sampled(each, 0.05)} < tenth
    assert not any(is_sampled(each, 0) for each in ids)
    assert all(is_sampled(each, 1) for each in ids)
