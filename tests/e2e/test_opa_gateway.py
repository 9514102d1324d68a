"""A whole Bursar whose policies an OPA decides: reloaded and killed under load, it serves nothing without a policy."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from policy.opa_build import Key, build
from tests import opa_server
from tests.bundle_service import BundleService, serving
from tests.e2e.deployment import Deployment
from tests.e2e.test_opa_engine import SHIPPED, Keys, until

CONFIG = Path(__file__).with_name("sim.yaml")
CLIENTS = 8
ANSWERS_MIN = 40
CHAT = "/v1/chat/completions"
ALLOWED, DENIED = "sim-small", "sim-large"


class Governed:
    """The deployment, its OPA, and the folder that the OPA's bundle is built of."""

    def __init__(self, folder: Path, service: BundleService, keys: Keys) -> None:
        self.root = folder / "rego"
        self._service = service
        self._keys = keys
        self.opa = opa_server.OpaServer(service.configuration(keys.public))
        self.config = folder / "bursar.yaml"
        self.deployment = Deployment(folder / "home", self.config)

    def ship(self) -> str:
        """Build what the folder holds and serve it to the OPA."""
        return build(self.root, self._service.file, str(opa_server.binary()), Key(self._keys.private)).revision

    def configure(self) -> None:
        """Have Bursar ask this OPA, and bridge a minute without it."""
        text = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        text["models"].append({**text["models"][0], "id": DENIED})  # there is one, and the team is not offered it
        text["policy"] = {"url": self.opa.url, "on_unavailable": "last_known_good:60", "timeout_ms": 5_000}
        self.config.write_text(yaml.safe_dump(text), encoding="utf-8")


@pytest.fixture
def governed(tmp_path: Path) -> Iterator[Governed]:
    shutil.copytree(SHIPPED, tmp_path / "rego")
    keys = Keys(tmp_path, "ours")
    with serving(tmp_path / "bundle.tar.gz") as service:
        made = Governed(tmp_path, service, keys)
        made.ship()
        with made.opa:
            made.configure()
            with made.deployment:
                yield made


class Load:
    """Clients that ask without pause for a model that is offered and for one that is not; every answer is counted."""

    def __init__(self, url: str, secret: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {secret}"}
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.odd: list[str] = []

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Ask until cancelled."""
        number = 0
        while True:
            number += 1
            await self._ask(session, ALLOWED if number % 3 else DENIED)

    def seen(self, kind: str) -> int:
        """How many answers of a kind came, whatever their revision."""
        return sum(count for (each, _, _), count in self.counts.items() if each == kind)

    def revisions(self) -> set[str]:
        """Every revision that an answer named."""
        return {revision for (_, _, revision) in self.counts if revision}

    async def _ask(self, session: aiohttp.ClientSession, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        async with session.post(f"{self._url}{CHAT}", json=body, headers=self._headers) as response:
            said = await response.read()
            revision = response.headers.get("x-bursar-policy", "")
            is_marked = "policy" in response.headers.get("x-bursar-degraded", "").split(",")
        code = "" if response.status == 200 else json.loads(said)["error"]["code"]
        kind = {
            (200, ""): "marked" if is_marked else "served",
            (404, "model_not_found"): "denied",  # so that nobody learns which models others have
            (503, "policy_unavailable"): "unavailable",
        }.get((response.status, code), "odd")
        if kind == "odd" or (kind in ("served", "marked", "denied") and not revision):
            self.odd.append(f"{response.status} {revision} {said[:200]!r}")
        if (kind in ("served", "marked")) != (model == ALLOWED) and kind != "unavailable":
            self.odd.append(f"{model}: {kind}")
        self.counts[kind, model, revision] += 1


async def more(load: Load, *kinds: str) -> None:
    """Wait until so many more answers of each of these kinds have come."""
    for kind in kinds:
        before = load.seen(kind)
        await until(_reached(load, kind, before + ANSWERS_MIN))


def _reached(load: Load, kind: str, count: int) -> Callable[[], bool]:
    return lambda: load.seen(kind) >= count


async def test_reloaded_killed_and_restarted_under_load_nothing_is_served_without_a_policy(governed: Governed) -> None:
    secret = governed.deployment.key("--org", "acme", "--team", "research", "--app", "assistant")["secret"]
    load = Load(governed.deployment.url, secret)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        clients = [asyncio.create_task(load.run(session)) for _ in range(CLIENTS)]
        try:
            await more(load, "served", "denied")
            [first] = load.revisions()

            rules = governed.root / "bursar" / "admission" / "admission.rego"
            rules.write_text(rules.read_text(encoding="utf-8") + "\n# reloaded\n", encoding="utf-8")
            second = await asyncio.to_thread(governed.ship)
            await until(lambda: second in load.revisions())
            assert load.seen("unavailable") == 0

            for _ in range(2):
                governed.opa.kill()
                await more(load, "marked")
                await asyncio.to_thread(governed.opa.start)
                await more(load, "served", "denied")
        except TimeoutError as error:
            raise AssertionError(f"{load.counts} {load.odd[:3]}") from error
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    assert load.odd == []
    assert load.revisions() == {first, second}
    rows = await asyncio.to_thread(
        governed.deployment.rows,
        "SELECT status, error_code, policy_revision, degraded, count() AS n FROM usage GROUP BY ALL",
    )
    served = [row for row in rows if row["status"] == "ok"]
    assert {row["policy_revision"] for row in served} == {first, second}
    marked = sum(int(row["n"]) for row in served if "policy" in row["degraded"].split(","))
    assert marked >= load.seen("marked") > 0
