"""What was in force before the last reload comes back unasked once, and what was undone does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.approvals import Person
from gateway.config import Policy
from gateway.config_file import LoadedConfig
from gateway.controls import Controls
from gateway.home import Home
from gateway.keys import KeyStore
from gateway.pseudonyms import Pseudonyms
from gateway.reviews import Asked
from gateway.second_person import SecondPerson
from policy.port import Engine
from tests.gateway.test_reviews import NOW_S, Rows, Setup, raised

ALICE = Asked(Person("key-alice"))


class _Revision:
    """All that is asked of an engine where no input was recorded."""

    def __init__(self, revision: str) -> None:
        self.revision = revision


class Desk:
    """A second person's part in the reloads of one worker, whose clock stands."""

    def __init__(self, folder: Path) -> None:
        self.rows = Rows()
        self.now_s = NOW_S
        home = Home(folder / "home")
        keys, controls = KeyStore(home.keys), cast(Controls, self.rows)
        self.second = SecondPerson(home, "gateway", keys, controls, Pseudonyms(b"k"), lambda: self.now_s * 1_000_000)

    async def reloaded(self, loaded: LoadedConfig, revision: str) -> dict[str, Any] | None:
        """A reload as the worker does it, and what is said instead of applying it."""
        held = await self.second.held(loaded, cast(Engine, _Revision(revision)), ALICE, [])
        if held is None:
            await self.second.applied(loaded, revision)
        return held


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., LoadedConfig]:
    of = Setup(tmp_path)
    return lambda *args, **sections: of.applied("", *args, **sections).loaded


async def test_an_undo_is_recorded_with_what_it_loosens(desk: Desk, config: Callable[..., LoadedConfig]) -> None:
    before, tight = config(), config(raised(10))
    await desk.second.started(before, "r1")
    assert await desk.reloaded(tight, "r1") is None
    assert await desk.reloaded(before, "r1") is None
    (row,) = [row for row in desk.rows.rows if row["action"] == "undone"]
    assert row["digest"] == before.digest
    assert (row["detail"]["from_config_digest"], row["detail"]["from_policy_revision"]) == (tight.digest, "r1")
    assert [each["path"] for each in row["detail"]["loosens"]] == ["budgets.quota-day.limit"]


async def test_what_was_undone_does_not_come_back_unasked(desk: Desk, config: Callable[..., LoadedConfig]) -> None:
    """A loosening that two people wanted and one has taken back takes two again."""
    strict, loose = config(), config(raised(500))
    await desk.second.started(strict, "r1")
    await desk.second.applied(loose, "r1")
    assert await desk.reloaded(strict, "r1") is None
    held = await desk.reloaded(loose, "r1")
    assert held is not None
    assert held["applied"] is False


async def test_an_undo_comes_too_late_once_its_time_is_over(desk: Desk, config: Callable[..., LoadedConfig]) -> None:
    before = config(approvals={"undo_s": 60})
    await desk.second.started(before, "r1")
    assert await desk.reloaded(config(raised(10), approvals={"undo_s": 60}), "r1") is None
    desk.now_s += 60
    assert await desk.reloaded(before, "r1") is not None


async def test_under_an_opa_server_the_configuration_of_before_comes_back_whatever_bundle_it_serves_now(
    desk: Desk, config: Callable[..., LoadedConfig]
) -> None:
    """Its bundles come and go without a reload, so a reload that changes nothing does not end an undo either."""

    def remote(loaded: LoadedConfig) -> LoadedConfig:
        policy = Policy(url="http://127.0.0.1:8181")
        return replace(loaded, config=loaded.config.model_copy(update={"policy": policy}))

    before, tight = remote(config()), remote(config(raised(10)))
    await desk.second.started(before, "r1")
    assert await desk.reloaded(tight, "r1") is None
    assert await desk.reloaded(tight, "r2") is None
    assert await desk.reloaded(before, "r2") is None
