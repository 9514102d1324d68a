"""Texts in pieces that one turn of a check can be made on: they overlap by a line, or by what a finding may be long.

A finding lies in one line, but for a number with a checksum, which may go over several.
"""

from collections.abc import Iterator

from policy.checks.port import Text

PIECE_CHARS = 16_384
OVERLAP_CHARS = 1024
# No card and no IBAN is longer: 34 characters in groups of four, each on a line of its own.
SPAN_CHARS = 64


def pieces(texts: list[Text]) -> Iterator[list[Text]]:
    """These texts in batches of at most `PIECE_CHARS`, longer ones cut at ends of lines where there are any."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        for piece in _cut(text):
            if batch and size + len(piece.text) > PIECE_CHARS:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += len(piece.text)
    if batch:
        yield batch


def _cut(text: Text) -> Iterator[Text]:
    whole, start, line = text.text, 0, text.first_line
    while len(whole) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        cut = whole.rfind("\n", start + 2 * OVERLAP_CHARS, end) + 1 or end
        yield Text(text.where, line, whole[start:cut])
        again = max(whole.rfind("\n", start, cut - SPAN_CHARS) + 1, cut - OVERLAP_CHARS)
        line += whole.count("\n", start, again)
        start = again
    yield Text(text.where, line, whole[start:])
