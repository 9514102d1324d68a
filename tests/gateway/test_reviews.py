"""A reload that loosens something waits for a second person, who agrees to exactly one step from what is in force."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from gateway.approvals import Approvals, Person, SamePerson, State
from gateway.config import Policy
from gateway.config_file import LoadedConfig, load
from gateway.controls import Controls
from gateway.home import Home
from gateway.keys import Key, KeyStore
from gateway.loosening_bundle import Policies
from gateway.pseudonyms import Pseudonyms
from gateway.reviews import (
    SHOWN_BYTES_MAX,
    Applied,
    Asked,
    Reviews,
    at_machine,
    local_key,
    loosened_since_last,
    person_of,
    policies_of,
    record_start,
    remember,
)
from gateway.second_person import SecondPerson
from policy.bundle import files_of, revision_of
from tests.gateway.deployment import KEY_ENV, deploy, document

NOW_S = 1_772_280_000
ALICE, BOB = Person("key-alice"), Person("key-bob")
RULES = b"package bursar.admission\n\nimport rego.v1\n\nadmits := 1\n"


class Rows:
    """Takes `control` rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def record(self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None) -> None:
        assert len(orjson.dumps(detail, default=str)) < 64 << 10
        self.rows.append({"action": action, "actor": actor, "digest": digest, "detail": detail})

    @property
    def actions(self) -> list[str]:
        return [row["action"] for row in self.rows]


class Setup:
    """Reviews over a configuration file that tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document = document("http://127.0.0.1:9")
        self.now_s = NOW_S
        self.controls = Rows()
        self.approvals = Approvals(self.controls, lambda: self.now_s * 1_000_000)
        self.reviews = Reviews(self.approvals, self.controls, lambda: self.now_s * 1_000_000)
        self.in_force = self.applied()

    def applied(
        self, revision: str = "sha256:1", edit: Callable[[dict[str, Any]], object] = lambda _: None, **sections: Any
    ) -> Applied:
        whole = deepcopy(self.document)
        edit(whole)
        loaded = load(deploy(self.folder, "http://127.0.0.1:9", **{**whole, **sections}), {KEY_ENV: "x"})
        table = f'{{"revision": "{revision}"}}'.encode()
        return Applied(loaded, Policies(revision, {"bursar/a.rego": RULES, "bursar/admission/data.json": table}))

    async def verdict(self, new: Applied, by: Person = ALICE, approval_id: str = "") -> dict[str, Any] | None:
        return (await self.reviews.verdict(self.in_force, new, Asked(by, approval_id), [], _never)).held


def files(table: dict[str, Any]) -> dict[str, bytes]:
    """A bundle with a table that no admission is decided by."""
    return {"bursar/admission/a.rego": RULES, "bursar/x/data.json": orjson.dumps(table)}


async def _never(input_json: bytes) -> object:
    raise AssertionError("nothing is recorded, so nothing is decided again")


def raised(limit: int) -> Callable[[dict[str, Any]], object]:
    def edit(whole: dict[str, Any]) -> None:
        next(each for each in whole["budgets"] if each["id"] == "quota-day")["limit"] = limit

    return edit


@pytest.fixture
def of(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_what_tightens_is_applied_at_once(of: Setup) -> None:
    assert await of.verdict(of.applied(edit=raised(50))) is None
    assert of.controls.rows == []


async def test_what_loosens_waits_and_says_what_and_for_whom(of: Setup) -> None:
    new = of.applied(edit=raised(500))
    held = await of.verdict(new)
    assert held is not None
    assert held["applied"] is False
    assert [(each["path"], each["before"], each["after"]) for each in held["loosens"]] == [
        ("budgets.quota-day.limit", 100, 500)
    ]
    assert held["approval"]["id"] in held["message"]
    assert held["approval"]["detail"]["config_digest"] == new.loaded.digest
    assert held["approval"]["detail"]["changes"] == ["budgets.quota-day.limit"]
    assert of.controls.actions == ["approval_requested"]


async def test_another_person_approves_exactly_that_step(of: Setup) -> None:
    new = of.applied(edit=raised(500))
    held = await of.verdict(new)
    assert held is not None
    assert await of.verdict(new, BOB, held["approval"]["id"]) is None
    assert of.approvals.get(held["approval"]["id"]).state is State.APPROVED
    assert of.controls.actions == ["approval_requested", "approval_approved"]


async def test_whoever_asked_cannot(of: Setup) -> None:
    new = of.applied(edit=raised(500))
    held = await of.verdict(new)
    assert held is not None
    with pytest.raises(SamePerson):
        await of.verdict(new, ALICE, held["approval"]["id"])
    assert of.approvals.get(held["approval"]["id"]).state is State.PENDING


async def test_asking_again_for_the_same_does_not_pile_up(of: Setup) -> None:
    new = of.applied(edit=raised(500))
    first, second = await of.verdict(new), await of.verdict(new, BOB)
    assert first is not None
    assert second is not None
    assert first["approval"] == second["approval"]
    assert of.approvals.get(first["approval"]["id"]).state is State.PENDING


async def test_a_file_or_a_bundle_that_changed_since_is_refused(of: Setup) -> None:
    held = await of.verdict(of.applied(edit=raised(500)))
    assert held is not None
    for other in (of.applied(edit=raised(501)), of.applied("sha256:2", edit=raised(500))):
        said = await of.verdict(other, BOB, held["approval"]["id"])
        assert said is not None
        assert said["applied"] is False
        assert "another change" in said["problems"][0]
    assert of.approvals.get(held["approval"]["id"]).state is State.PENDING


async def test_what_is_in_force_may_not_have_changed_either(of: Setup) -> None:
    """Somebody tightens another budget meanwhile: what was agreed to would undo that."""
    new = of.applied(edit=raised(500))
    held = await of.verdict(new)
    assert held is not None
    of.in_force = of.applied(edit=raised(10))
    said = await of.verdict(new, BOB, held["approval"]["id"])
    assert said is not None
    assert "what is in force" in said["problems"][0]


async def test_a_changed_bundle_waits_where_nothing_was_decided_under_the_old_one(of: Setup) -> None:
    held = await of.verdict(of.applied("sha256:2"))
    assert held is not None
    assert "no recorded inputs" in held["loosens"][0]["why"]
    assert held["approval"]["detail"]["replay"] == {"inputs_decided_again": 0, "looser": 0, "whole": True}


async def test_where_nobody_has_to_agree_it_is_applied_and_recorded(of: Setup) -> None:
    off = {"approvals": {"loosening": False}}
    of.in_force = of.applied(**off)
    assert await of.verdict(of.applied(edit=raised(500), **off)) is None
    (row,) = of.controls.rows
    assert (row["action"], row["actor"]) == ("loosened", "key-alice")
    assert row["detail"][0]["path"] == "budgets.quota-day.limit"


async def test_that_nobody_has_to_agree_any_more_takes_agreement_itself(of: Setup) -> None:
    held = await of.verdict(of.applied(approvals={"loosening": False}))
    assert held is not None
    assert [each["path"] for each in held["loosens"]] == ["approvals.loosening"]


async def test_a_denied_request_may_be_made_anew(of: Setup) -> None:
    new = of.applied(edit=raised(500))
    first = await of.verdict(new)
    assert first is not None
    of.approvals.decide(first["approval"]["id"], BOB, approve=False)
    second = await of.verdict(new)
    assert second is not None
    assert second["approval"]["id"] != first["approval"]["id"]


async def test_very_much_that_loosens_is_shown_in_part_and_counted_whole(of: Setup) -> None:
    def edit(whole: dict[str, Any]) -> None:
        whole["models"] += [{**whole["models"][0], "id": f"{'m' * 100}{number}"} for number in range(900)]

    held = await of.verdict(of.applied(edit=edit))
    assert held is not None
    assert held["loosens_count"] == 900
    assert 0 < len(held["loosens"]) < 900
    assert len(orjson.dumps(held["loosens"])) < 2 * SHOWN_BYTES_MAX


async def test_a_long_name_or_value_hides_nothing_that_comes_after_it(of: Setup) -> None:
    """A table that holds a long note and a key as long, before the limit that is raised."""
    tables = [{"zz_limit": 5}, {"zz_limit": 5_000_000, "aa_note": "x" * 40_000, "b" * 40_000: 1}]
    before, after = (
        replace(of.in_force, policies=Policies(f"sha256:{number}", files(table))) for number, table in enumerate(tables)
    )
    of.in_force = before
    held = await of.verdict(after)
    assert held is not None
    assert (held["loosens_count"], len(held["loosens"])) == (3, 3)
    note, limit = held["loosens"][0], held["loosens"][-1]
    assert note["after"] == f"{'x' * 100}…[40,000 characters]…{'x' * 100}"
    assert (limit["path"], limit["before"], limit["after"]) == ("data.bursar.x.zz_limit", 5, 5_000_000)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_start_is_compared_with_what_the_same_gateway_applied_last(of: Setup, home: Home) -> None:
    assert loosened_since_last(home, "gateway", of.in_force, NOW_S) == []
    remember(home, "gateway", of.in_force)
    assert loosened_since_last(home, "gateway", of.in_force, NOW_S) == []
    looser = of.applied(edit=raised(500))
    (found,) = loosened_since_last(home, "gateway", looser, NOW_S)
    assert (found.path, found.before, found.after) == ("budgets.quota-day.limit", 100, 500)
    assert loosened_since_last(home, "other", looser, NOW_S) == []
    record_start(of.controls, looser.loaded, [found])
    assert (of.controls.rows[0]["action"], of.controls.rows[0]["actor"]) == ("loosened", "start")


def test_a_bundle_that_changed_meanwhile_is_said(of: Setup, home: Home) -> None:
    remember(home, "gateway", of.in_force)
    (found,) = loosened_since_last(home, "gateway", of.applied("sha256:2"), NOW_S)
    assert (found.path, found.before, found.after) == ("policy", "sha256:1", "sha256:2")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"config": {"version": 9}}', b'{"config": {}}'])
def test_what_cannot_be_read_any_more_is_said_and_stops_no_start(of: Setup, home: Home, content: bytes) -> None:
    (home.path / "applied-gateway.json").write_bytes(content)
    (found,) = loosened_since_last(home, "gateway", of.in_force, NOW_S)
    assert "cannot be read" in found.why


def test_nothing_looser_at_a_start_writes_no_row(of: Setup) -> None:
    record_start(of.controls, of.in_force.loaded, [])
    assert of.controls.rows == []


def test_a_bundle_is_known_by_its_files_as_long_as_its_folder_still_holds_it(of: Setup) -> None:
    loaded: LoadedConfig = of.in_force.loaded
    assert policies_of(loaded, "sha256:other") == Policies("sha256:other")
    files = files_of(of.folder / "rego")
    assert policies_of(loaded, revision_of(files)) == Policies(revision_of(files), files)
    remote = loaded.config.model_copy(update={"policy": Policy(url="http://127.0.0.1:8181")})
    assert policies_of(replace(loaded, config=remote), "r") == Policies("http://127.0.0.1:8181")
    shutil.rmtree(of.folder / "rego")
    assert policies_of(loaded, revision_of(files)) == Policies(revision_of(files))


class People:
    """Keys of several people, made by each other."""

    def __init__(self, home: Home) -> None:
        self.keys = KeyStore(home.keys)
        self.root, secret = self.keys.create("-", "-", "admin", kind="admin", made_by="start")
        home.admin_secret_path.write_text(secret)
        home.admin_secret_path.chmod(0o600)

    def made(self, by: Key, user: str = "") -> Key:
        return self.keys.create("-", "-", "admin", user, kind="admin", made_by=by.key_id)[0]

    def person(self, key: Key) -> Person:
        return person_of(key.key_id, key.user, self.keys, self.root.key_id)


def test_keys_that_the_home_made_are_of_different_people_and_those_they_made_are_not(home: Home) -> None:
    people = People(home)
    alice, bob = people.made(people.root), people.made(people.root)
    second, third = people.made(alice), people.made(alice)
    fourth = people.made(second)
    of = people.person
    assert not of(alice).is_same(of(bob))
    assert not of(people.root).is_same(of(alice))
    assert of(alice).is_same(of(second))
    assert of(second).is_same(of(third))
    assert of(fourth).is_same(of(alice))
    assert not of(fourth).is_same(of(bob))


def test_a_user_is_one_person_with_any_key(home: Home) -> None:
    people = People(home)
    one, two = people.made(people.root, "alice"), people.made(people.root, "alice")
    assert people.person(one).is_same(people.person(two))
    assert people.person(one).user == "alice"


def test_whoever_sends_signals_is_whoever_can_read_the_home(home: Home) -> None:
    people = People(home)
    root = local_key(home, people.keys)
    assert root == people.root.key_id
    machine = at_machine(root, "SIGHUP")
    assert machine.actor == "SIGHUP"
    assert machine.is_same(people.person(people.root))
    assert not machine.is_same(people.person(people.made(people.root)))
    people.keys.revoke(root)
    assert local_key(home, people.keys) == ""


def test_whoever_made_the_key_of_an_app_is_no_second_person_to_it(home: Home) -> None:
    people = People(home)
    alice, bob = people.made(people.root), people.made(people.root)
    pseudonyms = Pseudonyms(b"k" * 32)
    of = SecondPerson(home, "gateway", people.keys, cast(Controls, Rows()), pseudonyms, lambda: NOW_S * 1_000_000)
    for maker, same in ((alice, [alice]), (people.root, [])):
        key, _ = people.keys.create("acme", "research", "lab", "carol", made_by=maker.key_id)
        asks = of.requester(pseudonyms.applied(key.principal, None))
        assert asks.user == pseudonyms.of("carol")
        assert [each for each in (alice, bob, people.root) if asks.is_same(of.person(each))] == same


def test_a_home_whose_own_key_cannot_be_read_has_none(home: Home) -> None:
    """Its keys then count as those of one person, and nothing else fails."""
    people = People(home)
    home.admin_secret_path.unlink()
    assert local_key(home, people.keys) == ""


def test_keys_of_a_home_key_that_was_revoked_are_of_one_person_until_new_ones_are_made(home: Home) -> None:
    """It may have leaked, and whoever had it may have made several."""
    people = People(home)
    one, two = people.made(people.root), people.made(people.root)
    old = people.root
    people.keys.revoke(old.key_id)
    people = People(home)
    alice, bob = people.made(people.root), people.made(people.root)
    assert people.person(one).is_same(people.person(two))
    assert not people.person(alice).is_same(people.person(bob))
    assert not people.person(alice).is_same(people.person(one))
