"""Nothing of a stream is released before it has been verified, however it is cut, and all of it once it has been."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.withheld import (
    CHANNELS_MAX,
    OVERLAP_CHARS,
    WINDOW_CHARS,
    Granularity,
    Withheld,
    choices_in,
    spelt_out,
    texts_of,
)
from policy.checks.port import Text
from runtime.port import Garbage

BY_LINE = Granularity(reads_texts=True, is_whole=False, assembles=False)
WHOLE = Granularity(reads_texts=True, is_whole=True, assembles=True)
CALLS_ONLY = Granularity(reads_texts=False, is_whole=False, assembles=True)
LINES_AND_CALLS = Granularity(reads_texts=True, is_whole=False, assembles=True)
MANY = 1 << 24
# Found within a line, or across one line break with any blank lines at it.
MARKER = re.compile(r"SE\s*CRET")
LETTERS = "SECRT \nx"


def chunk(text: str, index: int = 0, field: str = "content") -> bytes:
    body = {"choices": [{"index": index, "delta": {field: text}, "finish_reason": None}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def call(arguments: str, name: str | None = None) -> bytes:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    body = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": function}]}}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


def shown(out: bytes) -> dict[int, str]:
    """What a client has read of each choice."""
    texts: dict[int, str] = {}
    for event in out.split(b"\n\n"):
        if event and event != DONE.strip():
            for choice in json.loads(event[6:])["choices"]:
                text = "".join(value for value in choice["delta"].values() if isinstance(value, str))
                texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


def passes(texts: list[Text]) -> bool:
    return not any(MARKER.search(text.text) for text in texts)


def run(granularity: Granularity, reads: list[bytes]) -> tuple[bytes, bool]:
    """What is released of a stream, and whether it came to its end."""
    withheld, out = Withheld(granularity, MANY), b""
    for read in reads:
        withheld.feed(read)
        if not passes(withheld.due()):
            return out, False
        out += withheld.passed()
    if not passes(withheld.rest()):
        return out, False
    return out + withheld.all_passed(), True


texts = st.lists(st.one_of(st.text(LETTERS, max_size=12), st.just("SECRET"), st.just("SE\n\n CRET")), max_size=8).map(
    "".join
)


@given(contents=st.lists(texts, min_size=1, max_size=3), data=st.data())
@settings(max_examples=400, deadline=None)
@pytest.mark.parametrize("granularity", [BY_LINE, WHOLE])
def test_nothing_unverified_is_released(granularity: Granularity, contents: list[str], data: st.DataObject) -> None:
    events = data.draw(_interleaved(contents))
    reads = data.draw(_batched([*events, USAGE, DONE]))
    out, is_whole = run(granularity, reads)
    assert is_whole == passes([Text("", 1, content) for content in contents])
    if is_whole:
        assert out == b"".join(reads)
        return
    assert b"".join(reads).startswith(out)
    for index, text in shown(out).items():
        assert contents[index].startswith(text)
        marker = MARKER.search(contents[index])
        assert marker is None or len(text) <= marker.start()


@st.composite
def _interleaved(draw: st.DrawFn, contents: list[str]) -> list[bytes]:
    """The chunks of several choices, each cut anywhere, in any order between choices."""
    queues = []
    for index, content in enumerate(contents):
        cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=6)))
        edges = [0, *cuts, len(content)]
        queues.append([chunk(content[a:b], index) for a, b in pairwise(edges)])
    order = draw(st.permutations([index for index, queue in enumerate(queues) for _ in queue]))
    return [queues[index].pop(0) for index in order]


@st.composite
def _batched(draw: st.DrawFn, events: list[bytes]) -> list[bytes]:
    """The same events, several in one read."""
    reads: list[bytes] = []
    for event in events:
        if reads and draw(st.booleans()):
            reads[-1] += event
        else:
            reads.append(event)
    return reads


@given(at=st.integers(0, 3 * WINDOW_CHARS), size=st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_a_line_without_end_is_checked_in_windows_that_overlap(at: int, size: int) -> None:
    line = "x" * at + "SECRET" + "x" * (4 * WINDOW_CHARS - at)
    reads = [chunk(line[start : start + size]) for start in range(0, len(line), size)]
    out, is_whole = run(BY_LINE, [*reads, DONE])
    assert not is_whole
    assert len(shown(out).get(0, "")) <= at
    # It was not held back for longer than it takes to see what is around it.
    assert len(shown(out).get(0, "")) >= at - WINDOW_CHARS - OVERLAP_CHARS - 2 * size


def test_a_clean_line_without_end_takes_bounded_memory() -> None:
    withheld = Withheld(BY_LINE, 64 * 1024)
    for _ in range(10_000):
        withheld.feed(chunk("x" * 64))
        assert passes(withheld.due())
        withheld.passed()
    assert len(withheld.held) < 64 * 1024


def test_what_waits_is_bounded() -> None:
    withheld = Withheld(WHOLE, 4096)
    with pytest.raises(Garbage, match="4096 bytes"):
        withheld.feed(chunk("x" * 64) * 100)
    withheld = Withheld(BY_LINE, MANY)
    with pytest.raises(Garbage, match="texts"):
        withheld.feed(b"".join(chunk("x", index) for index in range(CHANNELS_MAX + 1)))


def test_a_line_is_released_when_the_next_one_has_been_seen() -> None:
    withheld = Withheld(BY_LINE, MANY)
    withheld.feed(chunk("one\n"))
    assert withheld.due() == [Text("choice 0 content", 1, "one\n")]
    assert withheld.passed() == b""
    assert withheld.due() == []
    withheld.feed(chunk("tw"))
    assert withheld.due() == []
    withheld.feed(chunk("o\n"))
    assert withheld.due() == [Text("choice 0 content", 1, "one\ntwo\n")]
    assert shown(withheld.passed()) == {0: "one\n"}
    withheld.feed(chunk("three"))
    assert withheld.rest() == [Text("choice 0 content", 2, "two\nthree")]
    assert shown(withheld.all_passed()) == {0: "two\nthree"}


@pytest.mark.parametrize("line", ["7777\n", "7777\r\n", "7"])
def test_a_number_over_many_lines_is_seen_before_any_of_it_goes(line: str) -> None:
    span = 64
    number = line * (span // len(line))
    for before in range(2 * span):
        lines = ["x" * before + "\n", *re.findall(r".*\n|.+", number), "\n", "and\n", "so\n", "on\n" * span]
        withheld, out = Withheld(BY_LINE._replace(span_chars=span), MANY), b""
        for each in lines:
            withheld.feed(chunk(each))
            if any(number in text.text for text in withheld.due()):
                break
            out += withheld.passed()
        assert any(number in text.text for text in withheld.due())
        assert len(shown(out).get(0, "")) <= before + 1


def test_a_span_holds_back_no_more_than_itself_and_the_last_line() -> None:
    withheld = Withheld(BY_LINE._replace(span_chars=8), MANY)
    withheld.feed(chunk("one\n") + chunk("two\n") + chunk("three\n"))
    assert withheld.due() == [Text("choice 0 content", 1, "one\ntwo\nthree\n")]
    assert shown(withheld.passed()) == {0: "one\n"}
    withheld.feed(chunk("four\n"))
    assert withheld.due() == [Text("choice 0 content", 2, "two\nthree\nfour\n")]
    assert shown(withheld.passed()) == {0: "two\n"}


def test_usage_and_the_end_pass_in_order_and_comments_do_not() -> None:
    withheld = Withheld(BY_LINE, MANY)
    withheld.feed(USAGE + b": SECRET\n\n" + b"event: SECRET\nid: 7\n\n")
    assert withheld.due() == []
    assert withheld.passed() == USAGE
    withheld.feed(chunk("one") + USAGE + DONE)
    assert withheld.due() == []
    assert withheld.passed() == b""
    assert withheld.all_passed() == chunk("one") + USAGE + DONE


def test_an_event_waits_for_every_text_in_it() -> None:
    both = {"choices": [{"index": 0, "delta": {"content": "a\nb\nc"}}, {"index": 1, "delta": {"content": "x"}}]}
    withheld = Withheld(BY_LINE, MANY)
    withheld.feed(b"data: " + json.dumps(both).encode() + b"\n\n")
    assert [text.where for text in withheld.due()] == ["choice 0 content"]
    assert withheld.passed() == b""
    assert [text.where for text in withheld.rest()] == ["choice 0 content", "choice 1 content"]


def test_tool_calls_wait_to_the_end_and_text_goes_on() -> None:
    withheld = Withheld(CALLS_ONLY, MANY)
    withheld.feed(chunk("Let me see.\n"))
    assert withheld.due() == []
    assert withheld.passed() == chunk("Let me see.\n")
    events = call("", "add") + call('{"a":') + call(" 1}") + DONE
    withheld.feed(events)
    assert withheld.due() == []
    assert withheld.passed() == b""
    assert [text.text for text in withheld.rest()] == ["add", '{"a": 1}']
    ((called,),) = [choice.tool_calls for choice in withheld.choices]
    assert (called.name, called.arguments) == ("add", '{"a": 1}')
    assert withheld.all_passed() == events


def test_what_arguments_spell_out_is_checked_too() -> None:
    arguments = '{"password": "\\u0053ECRET", "list": ["\\u0053E\\nCRET"]}'
    withheld = Withheld(LINES_AND_CALLS, MANY)
    withheld.feed(call(arguments, "add"))
    found = {text.where: text.text for text in withheld.rest()}
    assert found["choice 0 tool_calls.0.function.arguments"] == arguments
    spelt = '{"password": "SECRET", "list": ["SE\nCRET"]}'
    assert found["choice 0 tool_calls.0.function.arguments decoded"] == spelt
    body = {"choices": [{"message": {"tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}}]}
    assert texts_of(body)[-1].text == spelt
    assert spelt_out("x", '{"plain": "SECRET"}') == []


def test_what_arguments_cannot_spell_out_is_checked_as_far_as_it_goes() -> None:
    odd = call('{"a": "\\ud800SECRET"}', "add") + call("not json", "add")
    withheld = Withheld(LINES_AND_CALLS, MANY)
    withheld.feed(odd)
    assert {text.where: text.text for text in withheld.rest()} == {
        "choice 0 tool_calls.0.function.name": "addadd",
        "choice 0 tool_calls.0.function.arguments": '{"a": "\\ud800SECRET"}not json',
        "choice 0 tool_calls.0.function.arguments decoded": '{"a": "\ufffdSECRET"}not json',
    }
    body = {"choices": [{"message": {"tool_calls": [{"function": {"arguments": '["\\ud800SECRET"]'}}]}}]}
    assert texts_of(body)[-1].text == '["\ufffdSECRET"]'


@pytest.mark.parametrize(
    "arguments", ['{"\\u0053ECRET": 1}', '{"a": "\\u0053ECRET', '{"a": "\\u0053ECRET", "a": ""}', '"\\u0053ECRET" ' * 9]
)
def test_no_form_of_arguments_hides_what_they_spell_out(arguments: str) -> None:
    """The secret is a name, in JSON that is cut, under a name that comes twice, or beside other values."""
    (spelt,) = spelt_out("here", arguments)
    assert "SECRET" in spelt.text
    assert spelt_out("here", '"\\ud83d\\ude00 \\\\u0053 \\n"') == [Text("here decoded", 1, '"\U0001f600 \\u0053 \n"')]


def test_an_error_event_is_text_too() -> None:
    withheld = Withheld(BY_LINE, MANY)
    withheld.feed(b'data: {"error": {"message": "SECRET"}}\n\n')
    assert withheld.passed() == b""
    assert [text.where for text in withheld.rest()] == ["error.message"]


@pytest.mark.parametrize(
    "odd", [b"data: 7\n\n", b"data: {\n\n", b'data: {"choices": {}}\n\n', b'data: {"choices": [7]}\n\n']
)
def test_what_cannot_be_read_is_not_released(odd: bytes) -> None:
    with pytest.raises(Garbage):
        Withheld(BY_LINE, MANY).feed(odd)


@pytest.mark.parametrize(
    "odd",
    [
        {"delta": {"tool_calls": {"function": {"name": "shell"}}}},
        {"message": {"tool_calls": ["shell"]}},
        {"delta": {"function_call": "shell"}},
        {"tool_calls": [{"function": {"name": "shell"}}], "delta": {}},
    ],
)
def test_tool_calls_that_their_check_would_not_see_are_not_released(odd: dict[str, Any]) -> None:
    with pytest.raises(Garbage, match="tool calls of the answer cannot be read"):
        Withheld(CALLS_ONLY, MANY).feed(b"data: " + json.dumps({"choices": [odd]}).encode() + b"\n\n")
    with pytest.raises(Garbage, match="tool calls of the answer cannot be read"):
        choices_in({"choices": [odd]})


TOKENS = {"content": [{"token": "SEC", "bytes": [83]}, {"token": "RET"}], "refusal": None}


@pytest.mark.parametrize("logprobs", [TOKENS, {"tokens": ["SEC", "RET"], "top_logprobs": [{"x": -1.0}, None]}])
@pytest.mark.parametrize("granularity", [BY_LINE, WHOLE])
def test_tokens_with_their_probabilities_wait_as_the_text_that_they_tell_ahead_of_it(
    granularity: Granularity, logprobs: dict[str, Any]
) -> None:
    """A runtime that holds text back, or leaves reasoning out of it, still sends the tokens."""
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": logprobs}
    out, is_whole = run(granularity, [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n", DONE])
    assert (out, is_whole) == (b"", False)


@pytest.mark.parametrize("beside", [{"choices": []}, {}, {"choices": [{"index": 0, "delta": {}}]}])
def test_text_beside_the_choices_is_verified(beside: dict[str, Any]) -> None:
    chunk = {"id": "c", "model": "m", "usage": None, **beside, "output": [{"text": "SECRET"}]}
    assert run(BY_LINE, [b"data: " + json.dumps(chunk).encode() + b"\n\n", DONE]) == (b"", False)
    assert [text.text for text in texts_of(chunk)] == ["SECRET"]


def test_what_is_nested_too_deep_to_be_looked_through_is_not_released() -> None:
    deep = '{"a":' * 1000 + '"SECRET"' + "}" * 1000
    event = b'data: {"choices":[{"index":0,"delta":{"made_up":%b}}]}\n\n' % deep.encode()
    with pytest.raises(Garbage, match="nested too deep"):
        Withheld(BY_LINE, MANY).feed(event)
    arguments = json.loads('{"a":' * 300 + '"SECRET"' + "}" * 300)
    with pytest.raises(Garbage, match="nested too deep"):
        texts_of({"choices": [{"message": {"tool_calls": [{"function": {"arguments": arguments}}]}}]})


def test_where_a_text_stands_is_told_in_the_words_of_the_api_alone() -> None:
    """A finding is told to the client, and the name of a member may be what is withheld."""
    message = {"content": {"SECRET": "a"}, "tool_calls": [{"function": {"arguments": {"SECRET": "b"}}}]}
    found = texts_of({"choices": [{"message": message}], "SECRET": [{"text": "c"}]})
    assert [(each.where, each.text) for each in found] == [
        ("choice 0 content.*", "a"),
        ("choice 0 tool_calls.0.function.arguments", '{"SECRET":"b"}'),
        ("*.0.text", "c"),
    ]


def test_vectors_are_no_text() -> None:
    vectors = {"object": "list", "data": [{"embedding": "U0VDUkVU"}], "model": "m"}
    assert texts_of(vectors, generates=False) == []
    assert [text.text for text in texts_of(vectors)] == ["U0VDUkVU"]


def test_nothing_goes_before_the_end_where_all_is_to_be_seen_whole() -> None:
    """Neither the role, nor the end of an answer without any text: a client of what is withheld is told so by a 403."""
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    for granularity in (WHOLE, Granularity(reads_texts=False, is_whole=True, assembles=True)):
        withheld = Withheld(granularity, MANY)
        withheld.feed(role + USAGE + DONE)
        assert withheld.due() == []
        assert withheld.passed() == b""
        assert withheld.held == role + USAGE + DONE
        assert withheld.all_passed() == role + USAGE + DONE


@pytest.mark.parametrize("answer", [{}, {"choices": None}, {"choices": "SECRET"}, {"choices": ["SECRET"]}])
def test_a_whole_answer_that_cannot_be_read_is_not_released(answer: dict[str, Any]) -> None:
    with pytest.raises(Garbage, match="cannot be verified"):
        choices_in(answer)
