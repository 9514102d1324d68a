"""What Redis and its clients say is cut into whole replies and commands, however it arrives."""

import pytest

from tests.resp import Frame, NotFramed, Resp

COMMAND = b"*3\r\n$3\r\nset\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n"
REPLIES = (
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-1\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n:1\r\n$4\r\n\r\n\r\n\r\n",
    b"%1\r\n+a\r\n*2\r\n_\r\n#t\r\n",
    b"~1\r\n,1.5\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nERR x\r\n",
    b"(12345678901234567890\r\n",
    b"|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_replies_are_cut_where_they_end_however_they_come(step: int) -> None:
    whole, frames = b"".join(REPLIES), Resp()
    cut = [frame.data for at in range(0, len(whole), step) for frame in frames.feed(whole[at : at + step])]
    assert cut == [*REPLIES]
    assert frames.rest() == b""


def test_commands_have_words_and_pushes_are_told_from_replies() -> None:
    frames = Resp()
    assert frames.feed(COMMAND) == [Frame(COMMAND, ("SET", "k", "a\r\nb"))]
    assert frames.feed(b"ping  all\r\n")[0].words == ("PING", "all")
    assert frames.feed(b">2\r\n+invalidate\r\n*0\r\n")[0].is_push
    assert frames.feed(COMMAND[:-3]) == []
    assert frames.rest() == COMMAND[:-3]


def test_what_is_no_resp_is_said_to_be_none() -> None:
    with pytest.raises(NotFramed, match="not a count"):
        Resp().feed(b"$many\r\n")
