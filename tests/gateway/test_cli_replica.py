"""`bursar replica`: who shares the book, and what is freed of one whose home is lost."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from domain.ids import uuid7
from gateway.cli import replica
from ledger.replicas import QUIET_S
from ledger.segments import read
from ledger.shard_names import NAMES
from tests.gateway import gateway_process
from tests.gateway.deployment import closed_port, deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, until
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran
from tests.redis_server import RedisServer

GONE = f"east-{uuid7()}"
NAME = "roomy-day|tokens|total|team=roomy"
STATE, COUNTER = "bursar:{-}:state", f"bursar:{{-}}:counter:{NAME}"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def deployed(server: RedisServer, client: "redis.Redis[str]", tmp_path: Path) -> tuple[Path, Path]:
    """A home and a configuration, and in its Redis a replica that was lost with 1,030 leased and not spent."""
    client.sadd(NAMES, "-")
    client.hset(STATE, mapping={"epoch": "e", f"joined|{GONE}": "1", f"serial|{GONE}": "7:x"})
    client.sadd(f"bursar:{{-}}:replica:{GONE}", NAME)
    client.hset(COUNTER, mapping={"epoch": "e", f"g|0|{GONE}": 1_040, f"s|0|{GONE}": 10})
    age(client, 2 * QUIET_S)
    return tmp_path / "home", deploy(tmp_path, "http://127.0.0.1:9", book={"url": server.url, "replicas": 2})


def age(client: "redis.Redis[str]", unseen_s: int, name: str = GONE) -> None:
    """Let a replica have been seen so long ago by every shard that knows it."""
    for state in list(client.scan_iter("*:state")):
        if client.hexists(state, f"joined|{name}"):
            client.hset(state, f"seen|{name}", int(time.time() - unseen_s) * 1000)


def controls(home: Path) -> list[dict[str, Any]]:
    """The `control` rows of the journals of a home."""
    journals = (path for path in sorted((home / "journal").iterdir()) if path.is_dir())
    return [orjson.loads(record.payload) for path in journals for record in read(path) if record.kind == "control"]


def complaint(code: int, *arguments: str, home: Path, config: Path) -> str:
    """The one line with which a command refuses."""
    done = ran(code, "replica", *arguments, home=home, config=config)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done
    return done.stderr


def test_what_a_lost_replica_had_leased_is_listed_and_freed(
    deployed: tuple[Path, Path], client: "redis.Redis[str]"
) -> None:
    home, config = deployed
    (row,) = answer("replica", "list", "--json", home=home, config=config)
    assert 2 * QUIET_S <= row.pop("unseen_s") < 3 * QUIET_S
    lease = {"budget": "roomy-day", "counter": "team=roomy", "resource": "tokens", "window": "total", "amount": 1_030}
    has = {"counters": 1, "unspent": {"tokens": 1_030}, "leases": [lease]}
    assert row == {"replica": GONE, "here": False, **has}
    assert all(said in ran(DONE, "replica", "list", home=home, config=config).stdout for said in (GONE, "1,030 tokens"))
    said = ran(DONE, "replica", "forget", GONE, home=home, config=config).stdout
    assert said == f"freed what {GONE} had leased: 1,030 tokens, on 1 counters\n"
    assert client.hgetall(COUNTER) == {"epoch": "e", f"g|0|{GONE}": "10", f"s|0|{GONE}": "10"}
    assert answer("replica", "list", "--json", home=home, config=config) == []
    (row,) = controls(home)
    detail = {"counters": 1, "freed": {"tokens": 1_030}}
    assert (row["action"], row["actor"], row["subject"], row["detail"]) == ("replica_forgotten", "cli", GONE, detail)
    assert "has seen no replica" in complaint(WRONG_USAGE, "forget", GONE, home=home, config=config)


def test_a_replica_that_may_be_alive_is_not_forgotten(deployed: tuple[Path, Path], client: "redis.Redis[str]") -> None:
    home, config = deployed
    age(client, QUIET_S - 20)
    before = client.hgetall(COUNTER), client.hgetall(STATE)
    assert "may spend what it holds" in complaint(NO, "forget", GONE, home=home, config=config)
    assert (client.hgetall(COUNTER), client.hgetall(STATE)) == before


def test_a_replica_whose_journal_is_here_is_to_be_started_instead(
    deployed: tuple[Path, Path], client: "redis.Redis[str]"
) -> None:
    home, config = deployed
    (home / "journal" / GONE).mkdir(parents=True)
    before = client.hgetall(COUNTER), client.hgetall(STATE)
    assert "`bursar serve --replica east`" in complaint(NO, "forget", GONE, home=home, config=config)
    assert (client.hgetall(COUNTER), client.hgetall(STATE)) == before
    assert answer("replica", "list", "--json", home=home, config=config)[0]["here"] is True


def test_what_nobody_has_seen_is_wrong_usage(deployed: tuple[Path, Path]) -> None:
    home, config = deployed
    for name in ("nobody", f"../journal/{GONE}", "*"):
        assert f"no replica {name}" in complaint(WRONG_USAGE, "forget", name, home=home, config=config)


def test_a_long_list_is_cut_and_says_so(
    deployed: tuple[Path, Path], client: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    home, config = deployed
    client.hset(STATE, "seen|later", int(time.time() * 1000))
    monkeypatch.setattr(replica, "ROWS_MAX", 1)
    done = ran(DONE, "replica", "list", home=home, config=config)
    assert GONE in done.stdout
    assert "later" not in done.stdout
    assert done.stderr == "bursar: 1 more were seen since\n"


def test_without_a_redis_there_is_nothing_to_list(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for arguments in (("list",), ("forget", GONE)):
        away = deploy(tmp_path, "http://127.0.0.1:9", book={"url": f"redis://127.0.0.1:{closed_port()}"})
        assert "give this command again" in complaint(AWAY, *arguments, home=home, config=away)
        unfit = deploy(tmp_path, "http://127.0.0.1:9", book={"url": "redis://127.0.0.1:x"})
        assert "book.url" in complaint(WRONG_USAGE, *arguments, home=home, config=unfit)
        alone = deploy(tmp_path, "http://127.0.0.1:9")
        assert "is in memory" in complaint(WRONG_USAGE, *arguments, home=home, config=alone)


def test_a_gateway_whose_machine_is_lost_is_forgotten_while_another_serves(
    server: RedisServer, client: "redis.Redis[str]", fake: FakeRuntime, tmp_path: Path
) -> None:
    config = deploy(tmp_path, fake.url, book={"url": server.url, "replicas": 2})
    with gateway_process.running(tmp_path / "home", config) as stays:
        lost = GatewayProcess(tmp_path / "lost", config)
        for gateway in (lost, stays):
            until(lambda: gateway.chat("roomy").status_code == 200, "both to lease")  # noqa: B023 called at once
        assert lost.chat("roomy").status_code == 200
        lost.process.kill()
        lost.stop()
        (journal,) = (path for path in (lost.home / "journal").iterdir() if path.is_dir())
        shutil.rmtree(lost.home)

        def counter() -> dict[str, Any]:
            seen = answer("budget", "show", "roomy-day", "--json", home=stays.home, config=config)
            return dict(seen["counters"][0])

        rows = {row["replica"]: row for row in answer("replica", "list", "--json", home=stays.home)}
        assert [name for name, row in rows.items() if not row["here"]] == [journal.name]
        assert len(rows) == 2
        has = rows[journal.name]["unspent"]
        assert has["tokens"] > 0
        assert "may spend" in complaint(NO, "forget", journal.name, home=stays.home, config=config)
        age(client, QUIET_S + 1, journal.name)
        freed = answer("replica", "forget", journal.name, "--json", home=stays.home)
        assert freed["unspent"] == has
        row = controls(stays.home)[-1]
        assert (row["action"], row["subject"], row["detail"]["freed"]) == ("replica_forgotten", journal.name, has)
        assert row["actor"] not in ("", "cli")
        until(lambda: (counter()["held_elsewhere"], counter()["stranded"]) == (0, 0), "the one that stays to know it")
        assert [row["here"] for row in answer("replica", "list", "--json", home=stays.home)] == [True]
        assert stays.chat("roomy").status_code == 200
