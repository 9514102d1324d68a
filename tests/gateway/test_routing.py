"""Which of several runtimes serves a request of one model."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.affinity import Affinity
from gateway.config_file import ConfigError, load
from gateway.governance import Governance
from gateway.prompt_blocks import PromptBlocks
from tests.gateway import fake_runtime, gateway_process, one_worker
from tests.gateway.deployment import CONTEXT_TOKENS, PRICE, deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.one_worker import OneWorker, admitted, ask

RUNTIMES = ("a", "b", "c")
MODELS = {"plain": "prefix_affinity", "renamed": "round_robin", "brief": "least_load"}


def sections(*urls: str) -> dict[str, Any]:
    """Three runtimes, and a model for each way to choose among them."""
    runtimes = [
        {"id": name, "owner": "platform", "url": url, "breaker_failures": 1, "breaker_reset_s": 600, "retries_max": 0}
        for name, url in zip(RUNTIMES, urls, strict=True)
    ]
    models = [_model(name, routing=routing, runtimes=RUNTIMES) for name, routing in MODELS.items()]
    alone = _model("capped", routing="prefix_affinity", runtimes=["a"])
    return {"runtimes": runtimes, "models": [*models, alone], "budgets": []}


def _model(name: str, **more: Any) -> dict[str, Any]:
    sizes = {"context_tokens": CONTEXT_TOKENS, "max_output_tokens": 64}
    return {"id": name, "owner": "platform", "endpoints": ["chat"], **sizes, "price": [PRICE], **more}


def talk(name: object, turns: int = 1) -> dict[str, Any]:
    """A conversation of so many turns, which shares its beginning with no other."""
    said = [f"{name} says in turn {turn}: " + "well, " * 100 for turn in range(turns)]
    return {"messages": [{"role": "user", "content": text} for text in said]}


class Served:
    """A gateway before three fake runtimes."""

    def __init__(self, gateway: GatewayProcess, fakes: dict[str, FakeRuntime]) -> None:
        self.gateway, self.fakes = gateway, fakes

    def by(self, team: str = "free", **body: Any) -> str:
        """The runtime that answers a request."""
        answer = self.gateway.chat(team, **body)
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-request-id"]
        (served,) = (name for name, fake in self.fakes.items() if request_id in fake.received)
        return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("routing")
    with ExitStack() as stack:
        fakes = {name: stack.enter_context(fake_runtime.running()) for name in RUNTIMES}
        config = deploy(folder, "", **sections(*(fake.url for fake in fakes.values())))
        yield Served(stack.enter_context(gateway_process.running(folder / "home", config)), fakes)


def test_a_conversation_stays_with_the_runtime_that_has_its_cache(served: Served) -> None:
    """Each is begun while another is under way, so that they do not all begin at the same runtime."""
    script = {"steps": [0.3, fake_runtime.whole(fake_runtime.usage(3))]}
    with ThreadPoolExecutor(len(RUNTIMES)) as clients:
        begun = list(clients.map(lambda name: served.by(**talk(name), script=script), range(3)))
    assert len(set(begun)) > 1
    for turns in (2, 3, 4):
        assert [served.by(**talk(name, turns)) for name in range(3)] == begun


def test_a_beginning_that_all_share_does_not_put_all_on_one_runtime(served: Served) -> None:
    """Fifteen requests at once: none has more than a quarter over its share, rounded up."""
    script = {"steps": [1.5, fake_runtime.whole(fake_runtime.usage(3))]}
    with ThreadPoolExecutor(15) as clients:
        found = Counter(clients.map(lambda _: served.by(**talk("everyone"), script=script), range(15)))
    assert set(found) == set(RUNTIMES)
    assert max(found.values()) <= 7


def test_runtimes_take_turns(served: Served) -> None:
    """Also when each request brings policy something new to decide on, which takes it two tries."""
    found = [
        served.by(model="renamed", tools=tools) for tools in ([], [], [], [_tool("x")], [_tool("y")], [_tool("z")])
    ]
    assert found[:3] == found[3:]
    assert set(found) == set(RUNTIMES)


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {}}}


def test_an_unknown_way_to_route_is_refused(tmp_path: Path) -> None:
    wrong = sections(*["http://127.0.0.1:9"] * 3)
    wrong["models"][0]["routing"] = "fastest"
    with pytest.raises(ConfigError, match=r"models\[0\].routing.*'least_load', 'round_robin' or 'prefix_affinity'"):
        load(deploy(tmp_path, "", **wrong), {})


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections=sections(*["http://127.0.0.1:9"] * 3))
    yield worker
    await worker.close()


async def runtime_of(of: Governance, body: dict[str, Any] | None, **changes: Any) -> str:
    result = await one_worker.flow.admit(of, ask(of, **changes)._replace(body=body))
    return str(result.runtime.spec.id) if isinstance(result, one_worker.Admitted) else result.kind.code


async def test_the_least_loaded_is_chosen_and_who_is_unhealthy_is_not(worker: OneWorker) -> None:
    of = await worker.open()
    loads = worker.clients["a"], worker.clients["b"], worker.clients["c"]
    for client, in_flight in zip(loads, (2, 0, 1), strict=True):
        client.in_flight = in_flight
    assert await runtime_of(of, None, model="brief") == "b"
    worker.clients["b"].breaker.failed(time.monotonic())
    for model in MODELS:
        assert await runtime_of(of, talk("anyone"), model=model) in "ac"
    worker.clients["a"].breaker.failed(time.monotonic())
    worker.clients["c"].breaker.failed(time.monotonic())
    assert await runtime_of(of, talk("anyone")) == "upstream_error"


async def test_a_conversation_moves_when_its_runtime_has_too_much_to_do(worker: OneWorker) -> None:
    of = await worker.open()
    first = await runtime_of(of, talk("one"))
    worker.clients[first].in_flight = 40
    second = await runtime_of(of, talk("one", 2))
    assert second != first
    worker.clients[first].in_flight = 0
    assert await runtime_of(of, talk("one", 3)) == second, "there the longer beginning is"


async def test_only_those_who_share_cache_follow_each_other(worker: OneWorker) -> None:
    """Policy puts apps of one team into one domain, which is known of an app after its first request."""
    of = await worker.open()
    here = ask(of).intent.principal
    for principal in (here, here._replace(app="batch"), here._replace(team="roomy")):
        await admitted(of, principal=principal)
    worker.clients["a"].in_flight = 1
    worker.clients["c"].in_flight = 1
    assert await runtime_of(of, talk("all")) == "b"
    worker.clients["a"].in_flight, worker.clients["b"].in_flight = 0, 2
    assert await runtime_of(of, talk("all"), principal=here._replace(app="batch")) == "b"
    assert await runtime_of(of, talk("all"), principal=here._replace(team="roomy")) == "a"


async def test_what_cannot_matter_is_not_computed(worker: OneWorker) -> None:
    of = await worker.open()
    offers = of.catalogue.offers
    assert offers["capped"].routing is None
    assert [name for name, offer in offers.items() if offer.affinity is not None] == ["plain"]


def test_what_is_known_of_apps_is_bounded() -> None:
    affinity = Affinity(PromptBlocks(b"k"), "m")
    principal = one_worker.Principal("acme", "search", "web", "", "k1")
    for number in range(25_000):
        affinity.learn(principal._replace(app=str(number)), "team")
    assert len(affinity._domains) <= 10_000
