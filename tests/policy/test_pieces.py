"""A text in pieces is the whole text, and whatever is short enough lies whole in one of them."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.checks.pieces import OVERLAP_CHARS, PIECE_CHARS, SPAN_CHARS, pieces
from policy.checks.port import Text

MARKER = re.compile(r"SEC\s*RET")


@given(
    lines=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    at=st.integers(0, 100_000),
    marker=st.sampled_from(["SECRET", "SEC\nRET", "SEC" + " " * (OVERLAP_CHARS - 6) + "RET"]),
)
@settings(max_examples=100, deadline=None)
def test_what_is_short_is_whole_in_one_piece(lines: list[int], at: int, marker: str) -> None:
    text = "\n".join("x" * size for size in lines)
    at = min(at, len(text))
    text = text[:at] + marker + text[at:]
    batches = list(pieces([Text("here", 1, text)]))
    found = [piece for batch in batches for piece in batch]
    assert any(MARKER.search(piece.text) for piece in found)
    assert all(sum(len(piece.text) for piece in batch) <= PIECE_CHARS for batch in batches)
    assert all(piece.text in text for piece in found)


def test_a_number_over_many_lines_is_whole_in_one_piece() -> None:
    number = "7777\n" * (SPAN_CHARS // 5)
    for before in range(PIECE_CHARS - 2 * SPAN_CHARS, PIECE_CHARS + SPAN_CHARS):
        text = "x" * before + "\n" + number + "and\nso\non\n" * 100
        assert any(number in piece.text for batch in pieces([Text("here", 1, text)]) for piece in batch)


def test_lines_keep_their_numbers() -> None:
    text = "".join(f"line {number}\n" for number in range(1, 5001))
    seen = set()
    for batch in pieces([Text("here", 1, text)]):
        for piece in batch:
            for number, line in enumerate(piece.text.splitlines(), start=piece.first_line):
                assert line == f"line {number}"
                seen.add(number)
    assert seen == set(range(1, 5001))


def test_short_texts_go_together_and_no_text_is_no_piece() -> None:
    texts = [Text(str(number), 1, "x" * 5000) for number in range(7)]
    assert [len(batch) for batch in pieces(texts)] == [3, 3, 1]
    assert list(pieces([])) == []
