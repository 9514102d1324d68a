"""A key opens what its line says, from the moment it is written until the moment it is revoked."""

import asyncio
import hashlib
import json
import os

import pytest

from ledger.access import Access, Keys
from ledger.turns import PER_KEY_MAX, WAITING_PER_KEY_MAX, Busy, Turns

TOKEN = "the-home's-own"
NOW_S = 1_000


@pytest.fixture
def path(tmp_path):
    """An empty key file."""
    file = tmp_path / "keys"
    file.touch(0o600)
    return file


@pytest.fixture
def keys(path):
    """The keys of that file, at a known time."""
    return Keys(TOKEN, path, clock=lambda: NOW_S)


def line(secret, orgs=("acme",), **values):
    """One line of the file."""
    known = {"key_id": f"id-{secret}", "kind": "ledger", "orgs": list(orgs), "expires_at": None, "revoked_at": None}
    return json.dumps({**known, "digest": hashlib.sha256(secret.encode()).hexdigest()} | values) + "\n"


def write(path, *lines):
    """Replaces the file, as the gateway does."""
    draft = path.with_suffix(".draft")
    draft.write_text("".join(lines))
    draft.chmod(0o600)
    draft.replace(path)


def test_a_key_opens_its_organisations_and_the_token_opens_all(path, keys):
    write(path, line("one"), line("two", ("acme", "beta")), line("all", ("*",)))
    assert keys.find([b"one"]) == Access("id-one", ("acme",))
    assert keys.find([b"two"]) == Access("id-two", ("acme", "beta"))
    assert keys.find([b"all"]) == Access("id-all", None)
    assert keys.find([TOKEN.encode()]) == Access("home", None, is_home=True)
    assert keys.find([b"wrong", b"one"]) == Access("id-one", ("acme",))
    for nobody in ([], [b"wrong"], [b"id-one"], [b"o"], [b"one "]):
        assert keys.find(nobody) is None


def test_keys_come_and_go_as_the_file_changes(path, keys):
    assert keys.find([b"new"]) is None
    write(path, line("new"))
    assert keys.find([b"new"]) is not None
    write(path, line("new", revoked_at=999))
    assert keys.find([b"new"]) is None
    write(path, line("new"))
    assert keys.find([b"new"]) is not None
    path.unlink()
    assert keys.find([b"new"]) is None
    assert keys.find([TOKEN.encode()]) is not None


def test_an_expired_key_and_one_of_another_kind_open_nothing(path, keys):
    write(
        path,
        line("old", expires_at=NOW_S),
        line("young", expires_at=NOW_S + 1),
        line("app", kind="app", orgs=[]),
        line("admin", kind="admin", orgs=["*"]),
    )
    assert keys.find([b"young"]) is not None
    assert [keys.find([secret]) for secret in (b"old", b"app", b"admin")] == [None, None, None]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]\n",
        line("bad", ()),
        line("bad", ("",)),
        line("bad", (1,)),
        line("bad", ["o"] * 65),
        line("bad", digest="x"),
    ],
)
def test_a_damaged_file_opens_nothing_until_it_is_mended(path, keys, content, caplog):
    write(path, line("good"))
    assert keys.find([b"good"]) is not None
    write(path, line("good"), content)
    assert [keys.find([secret]) for secret in (b"good", b"bad")] == [None, None]
    assert str(path) in caplog.text
    assert keys.find([TOKEN.encode()]) is not None
    write(path, line("good"))
    assert keys.find([b"good"]) is not None


def test_a_file_that_others_can_write_opens_nothing(path, keys):
    write(path, line("good"))
    os.chmod(path, 0o620)
    assert keys.find([b"good"]) is None


def test_closed_tables_stand_first_and_open_ones_have_no_condition():
    tables = [
        *(("default", "usage"), ("default", "control"), ("default", "unheard_of"), ("elsewhere", "usage")),
        *(("system", "one"), ("system", "parts"), ("system", "tables"), ("served", "tables")),
    ]
    filters = Access("k", ("it's",)).filters(tables, "default")
    closed = ["default.control", "default.unheard_of", "elsewhere.usage", "system.parts"]
    assert list(filters.items()) == [
        *((name, "0") for name in closed),
        ("default.usage", "org IN ('it\\'s')"),
        ("system.tables", "database = currentDatabase()"),
    ]
    assert Access("k", ("elsewhere",)).filters(tables, "elsewhere")["default.usage"] == "0"
    assert Access("k", None).filters(tables, "default").keys() == {"elsewhere.usage", "system.parts", "system.tables"}


async def holding(turns, access, seconds):
    """Takes a turn for so long."""
    async with turns.turn(access):
        await asyncio.sleep(seconds)


def test_a_key_has_its_share_of_turns_and_no_more():
    async def scene():
        turns = Turns(PER_KEY_MAX + 1)
        greedy = [asyncio.create_task(holding(turns, Access("greedy", None), 60)) for _ in range(PER_KEY_MAX + 2)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10), turns.turn(Access("modest", None)):
            assert not any(task.done() for task in greedy)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        async with asyncio.timeout(10), turns.turn(Access("greedy", None)):
            pass

    asyncio.run(scene())


def test_who_waits_too_long_is_turned_away():
    async def scene():
        turns = Turns(1, wait_s=0.05)
        home = Access("home", None, is_home=True)
        async with turns.turn(home):
            with pytest.raises(Busy):
                await holding(turns, home, 0)

    asyncio.run(scene())


def test_a_key_with_too_many_waiting_is_turned_away_and_others_and_the_home_are_not():
    async def scene():
        turns = Turns(1, wait_s=60)
        many, other, home = Access("many", None), Access("other", None), Access("home", None, is_home=True)
        async with turns.turn(other):
            most = PER_KEY_MAX + WAITING_PER_KEY_MAX
            waiting = [asyncio.create_task(holding(turns, many, 0)) for _ in range(most)]
            waiting += [asyncio.create_task(holding(turns, home, 0)) for _ in range(10 * most)]
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await holding(turns, many, 0)
            waiting.append(asyncio.create_task(holding(turns, other, 0)))
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.gather(*waiting)

    asyncio.run(scene())
