"""Commands on a home whose gateways share a book: every journal is looked at, and what is not known is not guessed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from domain.ids import uuid7
from gateway import assembly
from gateway.config_file import load
from gateway.governance import system_now_us
from gateway.home import Home
from gateway.pseudonyms import Pseudonyms
from tests.gateway import gateway_process
from tests.gateway.deployment import closed_port, deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import HELLO, READY_S, ROOT, GatewayProcess, until
from tests.gateway.test_cli_commands import AWAY, DONE, answer, ran
from tests.redis_server import RedisServer

DAY_US = 86_400_000_000
SPENT = {"left": 40, "right": 2}


@pytest.fixture
def rested(tmp_path: Path) -> tuple[Path, Path]:
    """A home in which two gateways have left their journals, and the configuration; their Redis is away."""
    book = {"url": f"redis://127.0.0.1:{closed_port()}", "replicas": 2}
    config, home = deploy(tmp_path, "http://127.0.0.1:9", book=book), Home(tmp_path / "home")
    for name, spent in SPENT.items():
        pseudonyms = Pseudonyms(home.secret("pseudonym"))
        opened = assembly.open_book(home, load(config).config, pseudonyms, system_now_us, name)
        charge = ("roomy-day", "team=roomy", system_now_us() // DAY_US * 86_400, "tokens", spent)
        row = {"request_id": uuid7(), "org": "acme", "certainty": "exact", "status": "adjusted", "charges": [charge]}
        opened.journal.append("usage", row)
        opened.journal.close()
    return home.path, config


@pytest.fixture
def serving(fake: FakeRuntime, tmp_path: Path) -> Iterator[GatewayProcess]:
    """One gateway with a shared book."""
    with RedisServer("none") as redis:
        config = deploy(tmp_path, fake.url, book={"url": redis.url})
        with gateway_process.running(tmp_path / "home", config) as serving:
            yield serving


@contextmanager
def second(first: GatewayProcess) -> Iterator[str]:
    """Another gateway of the same home, by its URL."""
    options = ["--home", str(first.home), "--config", str(first.config), "--port", "0", "--admin-port", "0"]
    log_path, run = first.home.parent / "second.log", first.home / "run" / "gateway-second.json"
    argv = [sys.executable, "-m", "gateway", "serve", "--replica", "second", *options]
    with log_path.open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until(run.exists, f"the second gateway: {log_path}", READY_S)
        where = json.loads(run.read_text())
        yield f"http://{where['host']}:{where['port']}"
    finally:
        process.terminate()
        process.wait(READY_S)


def spent_of(budget: str, gateway: GatewayProcess) -> tuple[int, int]:
    """What a gateway knows to be spent of a budget, by itself and by others."""
    (counter,) = answer("budget", "show", budget, "--json", home=gateway.home, config=gateway.config)["counters"]
    return counter["spent"], counter["spent_elsewhere"]


def gateways(home: Path, config: Path | None = None) -> dict[str, str]:
    """What `bursar doctor` says of each gateway, in a deployment of which a runtime is always away."""
    found = json.loads(ran(AWAY, "doctor", "--json", home=home, config=config).stdout)
    return {each["dependency"]: each["state"] for each in found if each["dependency"].startswith("gateway")}


def writers(home: Path) -> list[str]:
    return sorted(path.name.split("-", 1)[0] for path in (home / "journal").iterdir() if path.is_dir())


def test_offline_commands_take_the_journals_that_are_there_and_make_none(rested: tuple[Path, Path]) -> None:
    home, config = rested
    granted = answer("budget", "grant", "roomy-day", "500", "--reason", "x", "--json", home=home, config=config)
    assert granted["amount"] == 500
    seen = answer("budget", "show", "roomy-day", "--json", home=home, config=config)
    assert [each["id"] for each in seen["budgets"]] == ["roomy-day"]
    assert answer("budget", "list", "--json", home=home, config=config)["shared"] is True
    found = answer("ledger", "reconcile", "--json", home=home, config=config)
    assert [each["writer"].split("-", 1)[0] for each in found] == list(SPENT)
    assert writers(home) == list(SPENT)


def test_what_others_have_is_not_known_offline(rested: tuple[Path, Path]) -> None:
    home, config = rested
    counters = answer("budget", "list", "--json", home=home, config=config)["counters"]
    assert {counter["replica"]: counter["spent"] for counter in counters} == SPENT
    unknown = {"spent_elsewhere", "held_elsewhere", "stranded", "remaining", "band"}
    assert [counter[name] for counter in counters for name in unknown] == [None] * 10
    table = ran(DONE, "budget", "list", home=home, config=config).stdout
    assert all(said in table for said in ("left", "right", "stranded", "is not known"))


def test_doctor_says_of_each_gateway_of_a_home_whether_it_runs(rested: tuple[Path, Path], tmp_path: Path) -> None:
    home, config = rested
    assert gateways(home, config) == {"gateway left": "optional", "gateway right": "optional"}
    assert gateways(Home(tmp_path / "new").path, config) == {"gateway": "optional"}


def test_a_live_gateway_says_what_is_stranded_and_held_elsewhere(serving: GatewayProcess) -> None:
    serving.ended(serving.chat("roomy"))
    seen = answer("budget", "list", "--json", home=serving.home, config=serving.config)
    assert seen["shared"] is True
    spent = {counter["budget"]: counter["spent"] for counter in seen["counters"]}
    assert spent["roomy-day"] == 10
    table = ran(DONE, "budget", "list", home=serving.home, config=serving.config).stdout
    assert all(column in table for column in ("spent_elsewhere", "held_elsewhere", "stranded"))


def test_every_gateway_of_a_home_is_reconciled_and_follows_the_keys(serving: GatewayProcess) -> None:
    headers = serving.headers("roomy")
    with second(serving) as url:
        asked = {"model": "plain", "messages": HELLO}
        for served_by in (serving.url, url):
            answered = httpx.post(f"{served_by}/v1/chat/completions", json=asked, headers=headers, timeout=30)
            assert answered.status_code == 200, answered.text
        until(lambda: spent_of("roomy-day", serving) == (10, 10), "one to know what the other has spent")
        assert gateways(serving.home) == {"gateway": "ok", "gateway second": "ok"}
        found = answer("ledger", "reconcile", "--json", home=serving.home, config=serving.config)
        assert [(each["writer"].split("-")[0], each["drifted"]) for each in found] == [("gateway", 0), ("second", 0)]
        assert all(each["accounts"] > 0 for each in found)
        key = next(key for key in answer("key", "list", "--json", home=serving.home) if key["team"] == "roomy")
        ran(DONE, "key", "revoke", key["key_id"], home=serving.home)
        models = partial(httpx.get, f"{url}/v1/models", headers=headers)
        until(lambda: models().status_code == 401, "the other gateway to refuse the key")


def test_a_book_of_its_own_has_no_such_columns(fake: FakeRuntime, tmp_path: Path) -> None:
    config = deploy(tmp_path, fake.url)
    with gateway_process.running(tmp_path / "home", config) as alone:
        alone.ended(alone.chat("roomy"))
        table = ran(DONE, "budget", "list", home=alone.home, config=config).stdout
        shared = json.loads(alone.admin.get("/admin/budgets").text)["shared"]
    assert shared is False
    assert "stranded" not in table
    assert "roomy-day" in table
