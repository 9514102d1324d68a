"""Two gateways of one home on one Redis look like one to applications, and say so when Redis is away."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from observability.probes import WATCHED
from tests.gateway.deployment import document, tables
from tests.gateway.fake_runtime import OUTPUT_TOKENS, FakeRuntime, chunk, sse
from tests.gateway.gateway_process import HELLO, ROOT, bursar, error_of, until, write_bundle, write_config
from tests.redis_server import RedisServer

READY_S = 60.0
BUDGETS = [
    ("few-requests", 4, "requests", {"team": "quota"}),
    ("away-requests", 10, "requests", {"team": "small-minute"}),
]


class Replica:
    """`bursar serve --replica NAME` on free ports."""

    def __init__(self, home: Path, config: Path, name: str) -> None:
        self.home, self.name = home, name
        self.log = home.parent / f"{name}.log"
        serve = ["serve", "--home", str(home), "--config", str(config), "--replica", name]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *serve, "--port", "0", "--admin-port", "0"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        path = home / "run" / f"gateway-{name}.json"
        until(lambda: self._runs(path), f"replica {name} serves", READY_S)
        run = json.loads(path.read_text())
        self.client = httpx.Client(base_url=f"http://{run['host']}:{run['port']}", timeout=30)
        self.admin = httpx.Client(
            base_url=f"http://{run['admin_host']}:{run['admin_port']}",
            headers={"authorization": f"Bearer {(home / 'secrets' / 'admin.key').read_text()}"},
            timeout=30,
        )

    def key(self, team: str, **more: str) -> dict[str, Any]:
        """A new key made here."""
        made = self.admin.post("/admin/keys", json={"org": "acme", "team": team, "app": "web", **more})
        key: dict[str, Any] = made.raise_for_status().json()
        return key

    def chat(self, secret: str, **body: Any) -> httpx.Response:
        """A small request."""
        asked = {"model": "plain", "messages": HELLO, "max_tokens": OUTPUT_TOKENS, **body}
        return self.client.post("/v1/chat/completions", json=asked, headers=bearer(secret))

    def counters(self, budget: str) -> list[dict[str, Any]]:
        """The counters of a budget, as operators see them here."""
        shown = self.admin.get("/admin/budgets", params={"budget": budget}).raise_for_status().json()
        counters: list[dict[str, Any]] = shown["counters"]
        return counters

    def is_away(self) -> bool:
        """Whether it says of itself that the shared book cannot be asked."""
        lines = self.client.get("/metrics").text.splitlines()
        (said,) = [line for line in lines if line.startswith("bursar_book_away")]
        return float(said.rsplit(" ", 1)[1]) == 1

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and wait for it; returns its exit code."""
        self.client.close()
        self.admin.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"replica {self.name} does not end:\n{self.log.read_text()[-4_000:]}") from None

    def _runs(self, path: Path) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return path.exists() and json.loads(path.read_text())["pid"] == self.process.pid


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def configured(folder: Path, fake_url: str, server: RedisServer, **book: Any) -> Path:
    """A deployment on that Redis, with budgets that every test uses up on its own."""
    write_bundle(folder / "rego", tables())
    whole = document(fake_url)
    whole["runtimes"] = [each for each in whole["runtimes"] if each["id"] == "fake"]
    whole["models"] = [each for each in whole["models"] if each["runtimes"] == ["fake"]]
    whole["book"] = {"url": server.url, "replicas": 2, **book}
    whole["budgets"] = [
        {"id": name, "owner": "finance", "scope": scope, "resource": resource, "limit": limit, "window": "total"}
        for name, limit, resource, scope in BUDGETS
    ]
    return write_config(folder / "bursar.yaml", whole)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer("always") as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, fake: FakeRuntime, server: RedisServer) -> Path:
    configured(tmp_path, fake.url, server)
    return tmp_path / "home"


@contextmanager
def both(home: Path) -> Iterator[tuple[Replica, Replica]]:
    """Replicas `a` and `b`, one after the other, as the first makes the home's secrets."""
    with ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            made.append(Replica(home, home.parent / "bursar.yaml", name))
            stack.callback(made[-1].stop)
        yield made[0], made[1]


def test_an_application_has_one_limit_and_one_key_at_both(home: Path) -> None:
    with both(home) as (first, second):
        secret = first.key("quota")["secret"]
        until(lambda: second.chat(secret, model="absent").status_code != 401, "the other knows the key")
        answers = [each.chat(secret).status_code for each in (first, second, second, first)]
        assert answers == [200] * 4
        for each in (first, second):
            error = error_of(each.chat(secret), 429, "insufficient_quota")
            assert error["bursar"]["budget"] == "few-requests"
        own = second.client.get("/v1/budgets", headers=bearer(secret)).raise_for_status().json()
        assert own["is_current"] is True
        assert [each["remaining"] for each in own["data"] if each["budget"] == "few-requests"] == [0]
        seen = [(c["spent"], c["spent_elsewhere"]) for r in (first, second) for c in r.counters("few-requests")]
        assert sorted(map(sum, seen)) == [4, 4]
        shown = {line.split(" ")[0] for line in first.client.get("/metrics").text.splitlines()}
        assert set(WATCHED) - shown == set()


def test_a_key_revoked_at_one_is_refused_by_the_other(home: Path) -> None:
    with both(home) as (first, second):
        key = first.key("roomy")
        until(lambda: second.chat(key["secret"]).status_code == 200, "the other knows the key")
        second.admin.delete(f"/admin/keys/{key['key_id']}").raise_for_status()
        until(lambda: first.chat(key["secret"]).status_code == 401, "the first refuses it")


def test_a_stream_is_refused_by_name_when_redis_is_away_and_the_lease_is_used_up(
    home: Path, server: RedisServer
) -> None:
    with both(home) as (first, second):
        secret = first.key("small-minute")["secret"]
        assert first.chat(secret).status_code == 200
        server.kill()
        until(lambda: first.is_away() and second.is_away(), "both notice")
        for book in (first.admin.get("/admin/budgets"), first.client.get("/v1/budgets", headers=bearer(secret))):
            assert book.raise_for_status().json()["is_current"] is False
        answers = [first.chat(secret, stream=True) for _ in range(10)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused, "a lease has at most what the budget has left"
        error = error_of(refused[-1], 503, "governance_unavailable")
        assert error["bursar"]["budget"] == "away-requests"
        assert "away-requests" in error["message"]
        assert int(refused[-1].headers["retry-after"]) >= 1
        server.start()
        until(lambda: not first.is_away(), "it comes back")
        until(lambda: first.chat(secret, stream=True).status_code == 200, "it serves again")


def test_what_a_dead_replica_had_is_listed_apart_until_it_is_back(home: Path, server: RedisServer) -> None:
    with both(home) as (first, second):
        secret = first.key("quota")["secret"]
        until(lambda: second.chat(secret, model="absent").status_code != 401, "the other knows the key")
        # A replica lists the counters that its own requests fell on.
        assert first.chat(secret).status_code == 200
        slow = {"script": sse(chunk("a"), 30.0), "stream": True}
        with second.client.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "plain", "messages": HELLO, "max_tokens": OUTPUT_TOKENS, **slow},
            headers=bearer(secret),
        ):
            until(lambda: any(c["held_elsewhere"] for c in first.counters("few-requests")), "the first knows of it")
            second.stop(signal.SIGKILL)
        assert first.chat(secret).status_code == 200

        def stranded() -> int:
            return sum(int(each["stranded"]) for each in first.counters("few-requests"))

        until(lambda: stranded() > 0, "it is listed apart", 20)
        back = Replica(home, home.parent / "bursar.yaml", "b")
        try:
            until(lambda: stranded() == 0, "its journal is replayed", 20)
        finally:
            back.stop()


def test_a_second_replica_of_the_same_name_is_refused_in_one_line(home: Path) -> None:
    config = home.parent / "bursar.yaml"
    first = Replica(home, config, "a")
    try:
        done = bursar("serve", "--replica", "a", "--port", "0", "--admin-port", "0", home=home, config=config)
        assert done.returncode == 3
        (line,) = done.stderr.strip().splitlines()
        assert "another process" in line
        assert first.admin.get("/healthz").status_code == 200
    finally:
        assert first.stop() == 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"book": {"url": "redis://:secret@127.0.0.1:1/0"}}, "BURSAR_REDIS_PASSWORD"),
        ({"book": {"url": "memory://", "replicas": 3}}, "memory:// cannot be shared"),
        ({"listen": {"workers": 2}}, "bursar serve --replica"),
        ({"budgets": [{"limit": (1 << 53) + 1}]}, f"counts up to {(1 << 53) - 1}"),
        ({"book": {"url": "http://127.0.0.1"}}, "must be memory://, redis://"),
        ({"book": {"timeout_ms": 0}}, "greater than 0"),
    ],
)
def test_settings_of_a_book_that_cannot_work_are_named(
    section: dict[str, Any], said: str, tmp_path: Path, fake: FakeRuntime
) -> None:
    whole = document(fake.url) | {"book": {"url": "redis://127.0.0.1:1/0", "replicas": 2}}
    write_bundle(tmp_path / "rego", tables())
    for name, change in section.items():
        whole[name] = (
            [whole[name][0] | change[0], *whole[name][1:]]
            if isinstance(change, list)
            else {**whole.get(name, {}), **change}
        )
    path = write_config(tmp_path / "bursar.yaml", whole)
    done = bursar("config", "check", "--config", str(path), home=tmp_path / "home", config=path)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_doctor_says_whether_the_book_answers_and_what_it_forgets(home: Path, server: RedisServer) -> None:
    config = home.parent / "bursar.yaml"
    home.mkdir()

    def finding(code: int) -> dict[str, str]:
        done = bursar("doctor", "--json", home=home, config=config)
        assert done.returncode == code, done.stdout + done.stderr
        (found,) = [each for each in json.loads(done.stdout) if each["dependency"] == "book"]
        return dict(found)

    assert finding(0) == {"dependency": "book", "state": "ok", "detail": f"{server.url}, appendfsync always"}
    server.ask("CONFIG SET appendfsync everysec")
    assert "nothing is granted until all 2 replicas" in finding(0)["detail"]
    server.ask("REPLICAOF 127.0.0.1 1")
    assert finding(3)["state"] == "away"
    server.kill()
    found = finding(3)
    assert (found["state"], "\n" in found["detail"]) == ("away", False)
