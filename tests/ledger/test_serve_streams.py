"""A result leaves as fast as it is taken, and one that is not taken is given up."""

import asyncio

import pytest

from ledger.access import Access
from ledger.readers import Question, Readers
from ledger.store import Store
from ledger.streams import Meta, Stream

HOME = Access("home", None, is_home=True)
META = Meta("id", "UTC", "")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """The readers of an empty ledger."""
    store = Store(f"chdb://{tmp_path_factory.mktemp('store')}/ledger")
    opened = Readers(store)
    yield opened
    opened.close()
    store.close()


async def sent(readers, sql, send, stall_s=30.0):
    """Streams the result of a statement into `send`, and gives the reader back."""
    running = readers.start(Question(sql), HOME)
    try:
        await Stream(running, META, stall_s=stall_s).answer(send)
    finally:
        readers.leave(running)
    return running


def test_a_short_result_goes_out_at_once_with_its_length(readers):
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(sent(readers, "SELECT 1", send))
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert (b"content-length", b"2") in messages[0]["headers"]
    assert messages[1]["body"] == b"1\n"


def test_a_long_result_goes_out_while_it_is_made(readers):
    begun = asyncio.Event()

    async def send(message):
        begun.set()
        await asyncio.sleep(0)

    async def scene():
        task = asyncio.create_task(sent(readers, "SELECT number FROM numbers(100000000000)", send))
        async with asyncio.timeout(60):
            await begun.wait()
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scene())


def test_a_result_that_nobody_takes_is_given_up(readers):
    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(sent(readers, "SELECT number FROM numbers(100000000000)", send, stall_s=0.1))
