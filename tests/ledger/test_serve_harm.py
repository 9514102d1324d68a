"""What one key sends, meaning harm, stops neither the process nor its end nor the other keys."""

import asyncio
import threading
import time

import pytest

from ledger.access import Access
from ledger.questions import FIELDS_MAX, BadRequest, Spoken
from ledger.readers import QueryFailed, Question, Readers
from ledger.server import LedgerServer
from ledger.store import Store
from ledger.turns import PER_KEY_MAX

ALL = Access("auditor", None)
OTHER = Access("other", None)
HOME = Access("home", None, is_home=True)
PLENTY_S = 60
# Fills the pipe and then waits for someone to read it.
WIDE = Question("SELECT number, repeat('x', 1000) FROM numbers(900000)")
FORM = b"multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An empty ledger."""
    opened = Store(f"chdb://{tmp_path_factory.mktemp('store')}/ledger")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def readers(store):
    """Its readers."""
    opened = Readers(store)
    yield opened
    opened.close()


class OneKey:
    """Keys of which any secret is the same."""

    def __init__(self, access):
        self.access = access

    def find(self, secrets):
        """Whoever asks."""
        return self.access


class Late:
    """A connection on which a statement with the word `stuck` runs until `may_end`, whatever is asked of it."""

    def __init__(self, session, store):
        self._session = session
        self._store = store

    def query(self, sql, *rest, **options):
        """What the engine says."""
        if "stuck" in sql:
            self._store.begun.release()
            assert self._store.may_end.wait(PLENTY_S)
        return self._session.query(sql, *rest, **options)

    def close(self):
        """As the engine's own."""
        self._session.close()


class LateStore:
    """A store of such connections."""

    def __init__(self, store):
        self._store = store
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()

    def session(self):
        """One of them."""
        return Late(self._store.session(), self)


async def asked(server, send, left, sql="SELECT 1"):
    """One statement to the application, whose client leaves when `left` is set."""
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    bodies = [{"type": "http.request", "body": sql.encode()}]

    async def receive():
        if bodies:
            return bodies.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    await server(scope, receive, send)


async def nothing(message):
    """Takes what comes and does nothing with it."""


def question(body, kind=FORM):
    """What a form asks."""
    return Spoken.of(b"", [(b"content-type", kind)]).question(body)


def test_an_error_with_a_long_run_of_blanks_is_said_and_cut(readers):
    """With a pattern that looks at each run again from each of its blanks this took hours, and stopped every thread."""
    began_s = time.process_time()
    for blank in (" ", "\\n", "\\t "):
        with pytest.raises(QueryFailed) as failed:
            readers.query(Question(f"SELECT throwIf(1, repeat('{blank}', 300000))"), ALL)
        assert failed.value.code == 395
        assert len(str(failed.value)) < 20_000
        assert "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO" in str(failed.value)
    assert time.process_time() - began_s < PLENTY_S


def test_a_client_that_does_not_read_does_not_keep_the_process_from_its_end(store, monkeypatch):
    """It is cancelled twice, as by uvicorn and then by asyncio, while it waits for what it has cancelled itself."""
    server = LedgerServer(store, None, OneKey(ALL), None)
    left, leave = [], server._readers.leave
    monkeypatch.setattr(server._readers, "leave", lambda running: (left.append(running), leave(running)))

    async def scene():
        begun = asyncio.Event()

        async def send(message):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.2)

        task = asyncio.create_task(asked(server, send, asyncio.Event(), WIDE.sql))
        async with asyncio.timeout(PLENTY_S):
            await begun.wait()
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0.05)
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scene())
    assert len(left) == 1
    assert left[0].outcome.exception(PLENTY_S) is not None
    assert server.close()


def test_a_statement_that_nothing_ends_takes_its_own_keys_turn_and_no_other(store):
    """As many clients as the key has turns leave, and as many come after them."""
    late, keys = LateStore(store), OneKey(ALL)
    server = LedgerServer(late, None, keys, None)

    async def scene():
        there, gone = asyncio.Event(), asyncio.Event()
        greedy = [asyncio.create_task(asked(server, nothing, gone, "SELECT 'stuck'")) for _ in range(PER_KEY_MAX)]
        for _ in greedy:
            assert await asyncio.to_thread(late.begun.acquire, timeout=PLENTY_S)
        gone.set()
        greedy += [asyncio.create_task(asked(server, nothing, there, "SELECT 'stuck'")) for _ in range(PER_KEY_MAX)]
        await asyncio.sleep(0.5)
        for access in (OTHER, HOME):
            keys.access = access
            statuses = []

            async def send(message, statuses=statuses):
                statuses.append(message.get("status"))

            async with asyncio.timeout(PLENTY_S / 2):
                await asked(server, send, there)
            assert statuses[0] == 200
        assert not any(task.done() for task in greedy)
        late.may_end.set()
        async with asyncio.timeout(PLENTY_S):
            await asyncio.gather(*greedy)

    try:
        asyncio.run(scene())
    finally:
        late.may_end.set()
    assert server.close()


def test_a_request_that_is_cancelled_at_the_end_waits_for_no_statement(store):
    late = LateStore(store)
    server = LedgerServer(late, None, OneKey(ALL), None)

    async def scene():
        task = asyncio.create_task(asked(server, nothing, asyncio.Event(), "SELECT 'stuck'"))
        assert await asyncio.to_thread(late.begun.acquire, timeout=PLENTY_S)
        task.cancel()
        return await asyncio.wait([task], timeout=PLENTY_S / 4)

    try:
        done, _ = asyncio.run(scene())
        assert done
    finally:
        late.may_end.set()
    assert server.close()


def test_readers_that_are_closed_end_what_nobody_has_left(store):
    readers = Readers(store)
    running = [readers.start(WIDE, ALL) for _ in range(2)]
    assert readers.close(PLENTY_S)
    assert all(one.outcome.exception(0) is not None for one in running)


def test_readers_that_are_closed_do_not_wait_for_a_statement_that_nothing_ends(store):
    late = LateStore(store)
    readers = Readers(late)
    running = readers.start(Question("SELECT 'stuck'"), ALL)
    try:
        assert late.begun.acquire(timeout=PLENTY_S)
        assert not readers.close(0.1)
    finally:
        late.may_end.set()
        running.outcome.exception(PLENTY_S)
    assert readers.close(PLENTY_S)


def test_blocks_of_rows_are_small_so_that_a_statement_ends_soon(readers):
    sql = "SELECT max(rowNumberInBlock()) FROM numbers(100000)"
    assert int(readers.query(Question(sql), ALL)) < 8_192
    with pytest.raises(QueryFailed, match="max_block_size"):
        readers.query(Question(f"{sql} SETTINGS max_block_size = 65536"), ALL)
    assert int(readers.query(Question(sql), HOME)) > 8_192


@pytest.mark.parametrize(
    "name",
    [
        *("editDistance", "levenshteinDistance", "damerauLevenshteinDistance", "jaroSimilarity", "arraySimilarity"),
        *("polygonsUnionCartesian", "countSubstringsCaseInsensitiveUTF8", "mannWhitneyUTestIf", "arrayFold"),
    ],
)
def test_functions_that_take_hours_for_one_row_are_refused(readers, name):
    with pytest.raises(QueryFailed, match=f"the function {name.lower()} is not served"):
        readers.query(Question(f"SELECT {name}('a', 'b')"), ALL)


def test_a_form_says_a_statement_its_parameters_and_its_settings():
    typed = (
        b'--b\r\nContent-Disposition: form-data; name="limit"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n3\r\n'
    )
    value = "it's --b\r\n\r\n\u00fc"
    body = FIELD % (b"query", b"SELECT {x:String}") + FIELD % (b"param_x", value.encode()) + typed + b"--b--\r\n"
    for kind in (FORM, b'Multipart/Form-Data;boundary="b"'):
        asked = question(body, kind)
        assert (asked.sql, asked.parameters, asked.settings) == ("SELECT {x:String}", {"x": value}, {"limit": "3"})
    most = b"".join(FIELD % (b"f%d" % number, b"") for number in range(FIELDS_MAX - 1))
    assert question(most + FIELD % (b"query", b"SELECT 1") + b"--b--").sql == "SELECT 1"


def nested(depth):
    """Forms in forms."""
    return b"".join(
        b"--b%d\r\nContent-Type: multipart/form-data; boundary=b%d\r\n\r\n" % (n, n + 1) for n in range(depth)
    )


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"--b\r\n" + b"A: b\r\n" * 150_000 + b"\r\n\r\n--b--\r\n", FORM, "not a field"),
        (
            b'--b\r\nContent-Disposition: form-data; name="a"' + b"; a=b" * 200_000 + b"\r\n\r\n\r\n--b--",
            FORM,
            "not a field",
        ),
        (b"--b\r\nContent-Disposition: form-data" + b";" * 300_000 + b"\r\n\r\n\r\n--b--", FORM, "not a field"),
        (b"--b\r\nContent-Disposition: " + b" " * 300_000 + b"\r\n\r\n\r\n--b--", FORM, "not a field"),
        (nested(15_000) + b"--b0--", b"multipart/form-data; boundary=b0", "not a field"),
        (FIELD % (b"a", b"") + b"--b\r\n\r\n--b--", FORM, "not a field"),
        ((FIELD % (b"a", b"")) * (FIELDS_MAX + 1) + b"--b--", FORM, "more than 200 fields"),
        (FIELD % (b"a", b""), FORM, "no end"),
        (b"x" + FIELD % (b"a", b"") + b"--b--", FORM, "fields"),
        (b"", FORM, "no end"),
        (FIELD % (b"a", b"") + b"--b--", FORM + b"; a=b" * 10_000, "boundary"),
        (FIELD % (b"a", b"") + b"--b--", b"multipart/form-data", "boundary"),
        (b'--b\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\r\n--b--', FORM, "external tables"),
    ],
)
def test_a_form_of_another_shape_is_refused_without_being_pondered(body, kind, said):
    """Python's reader of mail took half a minute for some, and all of its stack for others."""
    began_s = time.process_time()
    with pytest.raises(BadRequest, match=said):
        question(body, kind)
    assert time.process_time() - began_s < PLENTY_S / 6
