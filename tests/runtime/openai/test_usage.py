"""Usage reports are believed only where they can be true."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.openai.usage import TOKENS_MAX, Report, produced_bytes, read_report

counts = st.integers(0, TOKENS_MAX)


@given(counts, counts, st.data())
def test_a_report_is_read_as_it_was_made(prompt: int, output: int, data: st.DataObject) -> None:
    cached, reasoning = data.draw(st.integers(0, prompt)), data.draw(st.integers(0, output))
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    assert read_report(usage) == Report(prompt, cached, output, reasoning)


@pytest.mark.parametrize(
    "absent", [{}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {"cached_tokens": None}}]
)
def test_details_may_be_absent(absent: dict[str, Any]) -> None:
    assert read_report({"prompt_tokens": 5, "completion_tokens": 2, **absent}) == Report(5, 0, 2, 0)


def test_embeddings_have_no_output() -> None:
    assert read_report({"prompt_tokens": 5, "total_tokens": 5}) == Report(5, 0, 0, 0)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, None, [], TOKENS_MAX + 1])
def test_a_prompt_count_that_cannot_be_is_not_believed(value: Any) -> None:
    assert read_report({"prompt_tokens": value, "completion_tokens": 1}) is None


def test_a_part_is_never_more_than_the_whole() -> None:
    assert read_report({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}) is None
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}}
    assert read_report(usage) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=12), children, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_nothing_a_runtime_sends_breaks_the_reading(value: Any) -> None:
    report = read_report({"prompt_tokens": value, "completion_tokens_details": value, "prompt_tokens_details": value})
    assert report is None or 0 <= report.cached_input_tokens <= report.input_tokens


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        (None, 0),
        ("text", 0),
        ({}, 0),
        ({"text": "abc"}, 3),
        ({"delta": {"role": "assistant", "content": "ü"}}, 2),
        ({"message": {"role": "assistant", "content": None, "reasoning_content": "abcd"}}, 4),
        ({"delta": {"tool_calls": [1, 2]}}, 5),
        ({"delta": [1]}, 0),
    ],
)
def test_output_is_counted_in_bytes(choice: Any, size: int) -> None:
    assert produced_bytes(choice) == size
