"""Answers are put together from any chunks as from a whole, and every text in them is found."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime.openai.answers import LEGACY_CALL, Assembly, Choice, ToolCall, choices_of, is_call, leaves, tool_calls_of

CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def whole(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


def test_a_whole_answer_is_read() -> None:
    answer = whole(content=None, tool_calls=[CALL, {**CALL, "index": 1, "function": {"name": "now"}}])
    calls = (ToolCall(0, "function", "add", '{"a": 1}'), ToolCall(1, "function", "now", ""))
    assert choices_of(answer) == (Choice(0, None, "", "stop", calls),)
    assert tool_calls_of(answer) == calls


def test_what_is_older_or_rarer_is_read_too() -> None:
    legacy = whole(content=None, function_call={"name": "add", "arguments": "{}"})
    assert tool_calls_of(legacy) == (ToolCall(LEGACY_CALL, "function", "add", "{}"),)
    custom = whole(tool_calls=[{"type": "custom", "custom": {"name": "note", "input": "text"}}])
    assert tool_calls_of(custom) == (ToolCall(0, "custom", "note", "text"),)
    assert choices_of({"choices": [{"index": 3, "text": "plain"}]}) == (Choice(3, "plain", "", "", ()),)
    parts = whole(content=[{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}])
    assert choices_of(parts)[0].content == "one two"
    assert choices_of(whole(content=None, refusal="no"))[0].refusal == "no"


def test_arguments_that_come_as_an_object_are_read_as_their_json() -> None:
    asked = {"function": {"name": "add", "arguments": {"SECRET": ["a", "b"]}}}
    assert tool_calls_of(whole(tool_calls=[asked])) == (ToolCall(0, "function", "add", '{"SECRET":["a","b"]}'),)
    (name, arguments) = leaves(whole(tool_calls=[asked])["choices"][0])
    assert (name.text, arguments.text) == ("add", '{"SECRET":["a","b"]}')
    assert "SECRET" not in (*name.path, *arguments.path)
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    (call,) = tool_calls_of(whole(tool_calls=[{"function": {"name": "add", "arguments": deep}}]))
    assert call.arguments == "nested too deep to be written"


def test_no_part_of_a_choice_hides_a_call_in_another() -> None:
    """A choice with both a delta and a message, and a call with both a function and a custom tool."""
    both = {"index": 0, "delta": {"content": "one "}, "message": {"tool_calls": [CALL]}, "text": "two"}
    assert choices_of({"choices": [both]}) == (
        Choice(0, "one two", "", "", (ToolCall(0, "function", "add", '{"a": 1}'),)),
    )
    twice = whole(tool_calls=[{**CALL, "custom": {"name": "rm", "input": "-rf"}}])
    assert [call.name for call in tool_calls_of(twice)] == ["addrm"]


def test_what_is_no_answer_has_no_choices() -> None:
    for odd in (None, 7, [], {}, {"choices": None}, {"choices": {}}, {"choices": [7, "x", None]}):
        assert choices_of(odd) == ()
    assert choices_of(whole(tool_calls=["x", 7, None])) == (Choice(0, None, "", "stop", ()),)
    assert choices_of(whole(tool_calls="x", function_call=7, content=7))[0] == Choice(0, None, "", "stop", ())


@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=3),
    arguments=st.lists(st.text(max_size=30), max_size=2),
    data=st.data(),
)
def test_a_stream_is_the_answer_however_it_is_cut(texts: list[str], arguments: list[str], data: st.DataObject) -> None:
    """Choices and tool calls come interleaved, each in pieces of any size."""
    parts: list[tuple[int, dict[str, Any]]] = []
    queues = []
    for number, text in enumerate(texts):
        queues.append([(number, {"content": piece}) for piece in _pieces(text, data)])
        for place, each in enumerate(arguments):
            first = {"index": place, "type": "function", "function": {"name": f"tool{place}", "arguments": ""}}
            rest = [{"index": place, "function": {"arguments": piece}} for piece in _pieces(each, data)]
            queues.append([(number, {"tool_calls": [call]}) for call in (first, *rest)])
    while queues:
        queue = data.draw(st.sampled_from(queues))
        if queue:
            parts.append(queue.pop(0))
        if not queue:
            queues = [each for each in queues if each]
    assembly = Assembly()
    for number, delta in parts:
        assembly.feed({"choices": [{"index": number, "delta": delta}]})
    assembly.feed({"choices": [], "usage": {}})
    found = assembly.choices()
    assert [choice.content or "" for choice in found] == texts
    for choice in found:
        assert [call.arguments for call in choice.tool_calls] == arguments
        assert [call.name for call in choice.tool_calls] == [f"tool{place}" for place in range(len(arguments))]
    assert assembly.size_chars == sum(map(len, texts)) + len(texts) * sum(
        map(len, (*arguments, *("tool0",) * len(arguments)))
    )


def _pieces(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    edges = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def test_every_text_of_a_choice_is_found_whatever_its_field_is_called() -> None:
    delta = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "b",
        "made_up": {"deep": ["c", {"text": "d"}], "id": "e", "type": "f"},
        "tool_calls": [{**CALL, "index": 4}],
        "empty": "",
    }
    choice = {"index": 0, "delta": delta, "finish_reason": "stop", "logprobs": {"content": [{"token": "a"}]}}
    found = {leaf.path: leaf.text for leaf in leaves(choice)}
    assert found == {
        ("content",): "a",
        ("reasoning_content",): "b",
        ("made_up", "deep", 0): "c",
        ("made_up", "deep", 1, "text"): "d",
        ("made_up", "id"): "e",
        ("made_up", "type"): "f",
        ("tool_calls", 4, "function", "name"): "add",
        ("tool_calls", 4, "function", "arguments"): '{"a": 1}',
        ("logprobs",): "a",
    }
    assert [is_call(path) for path in found] == [False] * 6 + [True] * 2 + [False]
    assert list(leaves("no choice")) == []
