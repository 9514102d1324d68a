"""What gets looser from one configuration to the next is listed, and every field of it has been judged."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from gateway.config import Config
from gateway.loosening import ALWAYS, GAINED, LOST, RULES, SHOWN_MAX, WHOLE, loosenings, shown
from tests.gateway.deployment import document

NOW_S = 1_772_280_000  # 2026-02-28
SLO = {"id": "fast", "owner": "platform", "scope": {}, "kind": "ttft", "threshold_ms": 800, "objective": 0.99}
HOOK = {"id": "ops", "url": "http://127.0.0.1:9/", "secret_env": "HOOK"}


def config(edit: Callable[[dict[str, Any]], object] = lambda _: None, **sections: Any) -> Config:
    usual = {"webhooks": [HOOK], "slos": [{**SLO, "frozen": True}]}
    whole = deepcopy({**document("http://127.0.0.1:9"), **usual, **sections})
    edit(whole)
    return Config.model_validate(whole)


def paths(edit: Callable[[dict[str, Any]], object], **sections: Any) -> list[str]:
    return [each.path for each in loosenings(config(**sections), config(edit, **sections), NOW_S)]


def item(whole: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in whole[section] if each["id"] == name)
    return found


def patterns(section: type[BaseModel], at: str = "") -> Iterator[tuple[str, bool]]:
    """Every field as rules name it, and whether it is a list of items with ids."""
    for name, field in section.model_fields.items():
        here = f"{at}.{name}".removeprefix(".")
        if here.endswith("*.id") or any(here == known or here.startswith(f"{known}.") for known in (*RULES, *WHOLE)):
            continue
        nested, is_list = _nested(field.annotation)
        if nested is None:
            yield here, False
        elif is_list:
            yield here, True
            if f"{here}.*" not in WHOLE:
                yield from patterns(nested, f"{here}.*")
        else:
            yield from patterns(nested, here)


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if getattr(annotation, "__origin__", None) is tuple:
        return _nested(get_args(annotation)[0])[0], True
    for inner in get_args(annotation):
        found, is_list = _nested(inner)
        if found is not None:
            return found, is_list
    return None, False


def test_every_field_of_the_configuration_has_a_rule() -> None:
    """A field without one is listed at each change: safe, but nobody has thought about it."""
    assert [path for path, is_list in patterns(Config) if not is_list] == []


def test_every_list_of_the_configuration_says_what_coming_and_going_means() -> None:
    lists = {path for path, is_list in patterns(Config) if is_list}
    assert lists == GAINED.keys() == LOST.keys()


def test_the_same_configuration_loosens_nothing() -> None:
    assert paths(lambda _: None) == []


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (lambda c: item(c, "budgets", "quota-day").update(limit=101), "budgets.quota-day.limit"),
        (lambda c: c["budgets"].remove(item(c, "budgets", "quota-day")), "budgets.quota-day"),
        (lambda c: item(c, "budgets", "quota-day").update(mode="soft"), "budgets.quota-day.mode"),
        (lambda c: c["env"].update(name="prod"), "env.name"),
        (lambda c: c["env"].update(freeze=False), "env.freeze"),
        (lambda c: c["policy"].update(on_unavailable="last_known_good:60"), "policy.on_unavailable"),
        (lambda c: c["policy"].update(url="http://127.0.0.1:8181"), "policy.url"),
        (lambda c: c["models"].append({**item(c, "models", "plain"), "id": "new"}), "models.new"),
        (lambda c: item(c, "models", "plain").update(price="free"), "models.plain.price"),
        (lambda c: item(c, "models", "embed").update(endpoints=["embeddings", "chat"]), "models.embed.endpoints"),
        (lambda c: item(c, "models", "plain").update(runtimes=["fake", "brief"]), "models.plain.runtimes"),
        (lambda c: item(c, "models", "plain").update(upstream_model="other"), "models.plain.upstream_model"),
        (lambda c: item(c, "models", "plain").update(context_tokens=9000), "models.plain.context_tokens"),
        (lambda c: item(c, "models", "plain").update(max_output_tokens=65), "models.plain.max_output_tokens"),
        (lambda c: item(c, "runtimes", "fake").update(gpu_nusd_per_hour=1), "runtimes.fake.gpu_nusd_per_hour"),
        (lambda c: item(c, "runtimes", "fake").update(vllm=False), "runtimes.fake.vllm"),
        (lambda c: c.update(webhooks=[]), "webhooks.ops"),
        (lambda c: item(c, "webhooks", "ops").update(events=["overage"]), "webhooks.ops.events"),
        (lambda c: item(c, "webhooks", "ops").update(secret_env=None), "webhooks.ops.secret_env"),
        (lambda c: c.update(slos=[]), "slos.fast"),
        (lambda c: item(c, "slos", "fast").update(objective=0.98), "slos.fast.objective"),
        (lambda c: item(c, "slos", "fast").update(threshold_ms=801), "slos.fast.threshold_ms"),
        (lambda c: item(c, "slos", "fast").update(window="7d"), "slos.fast.window"),
        (lambda c: item(c, "slos", "fast").update(scope={"team": "free"}), "slos.fast.scope"),
        (lambda c: item(c, "slos", "fast").update(frozen=False), "slos.fast.frozen"),
        (lambda c: c.update(approvals={"loosening": False}), "approvals.loosening"),
        (lambda c: c.update(approvals={"grants": False}), "approvals.grants"),
        (lambda c: c.update(approvals={"grants": True, "bundle": "flips"}), "approvals.bundle"),
        (lambda c: c.update(verify={"pii": {"entities": ["EMAIL_ADDRESS"]}}), "verify.pii.entities"),
        (lambda c: c.update(verify={"second_model": {"model": "plain"}}), "verify.second_model"),
        (lambda c: c.update(quality={"sample": 0}), "quality.sample"),
        (lambda c: c["ledger"].update(checkpoint_targets=[]), "ledger.checkpoint_targets"),
        (lambda c: c["ledger"].update(url="chdb://other"), "ledger.url"),
    ],
)
def test_what_is_looser_is_listed_with_before_after_and_a_sentence(
    edit: Callable[[dict[str, Any]], object], path: str
) -> None:
    strict = {
        "env": {"name": "test", "freeze": True},
        "approvals": {"grants": True, "bundle": "always"},
        "ledger": {"checkpoint_targets": ["https://127.0.0.1:9/"]},
    }
    (found,) = [
        each for each in loosenings(config(**strict), config(edit, **strict), NOW_S) if each.path.startswith(path)
    ]
    assert found.path == path
    assert found.before != found.after
    assert found.why
    assert found.why != ALWAYS


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: item(c, "budgets", "quota-day").update(limit=99),
        lambda c: c["budgets"].append({**item(c, "budgets", "quota-day"), "id": "another"}),
        lambda c: item(c, "budgets", "quota-day").update(owner="others"),
        lambda c: c["env"].update(freeze=True),
        lambda c: c["models"].remove(item(c, "models", "hidden")),
        lambda c: c["models"].reverse(),
        lambda c: item(c, "models", "plain").update(endpoints=["chat"]),
        lambda c: c["limits"].update(body_bytes_max=1 << 30),
        lambda c: c["listen"].update(port=1),
        lambda c: item(c, "runtimes", "fake").update(url="http://127.0.0.1:10", idle_timeout_s=9),
        lambda c: c["webhooks"].append({**HOOK, "id": "more"}),
        lambda c: item(c, "slos", "fast").update(objective=0.999, threshold_ms=700, owner="others"),
        lambda c: c["slos"].append({**SLO, "id": "more"}),
        lambda c: c.update(approvals={"grants": True, "bundle": "always", "ttl_s": 60}),
        lambda c: c.update(telemetry={"trace_sample": 0}),
    ],
)
def test_what_is_tighter_or_no_limit_is_not(edit: Callable[[dict[str, Any]], object]) -> None:
    assert paths(edit, listen={}) == []


def test_a_target_that_is_not_frozen_may_be_changed() -> None:
    loose = {"slos": [SLO]}
    assert paths(lambda c: item(c, "slos", "fast").update(objective=0.95, threshold_ms=9000), **loose) == []
    assert paths(lambda c: c.update(slos=[]), **loose) == []


@pytest.mark.parametrize(
    ("rows", "is_looser"),
    [
        ([("2025-01-01", 3, 15)], False),
        ([("2025-01-01", 3, 14)], True),
        ([("2025-01-01", 2, 99)], True),
        ([("2025-01-01", 4, 16)], False),
        ([("2025-01-01", 3, 15), ("2026-03-01", 3, 14)], True),
        ([("2025-01-01", 3, 15), ("2026-03-01", 3, 16)], False),
        ([("2025-01-01", 1, 1), ("2026-02-01", 3, 15)], False),
        ([("2026-02-28", 3, 15)], False),
        ([("2026-03-01", 3, 15)], False),
    ],
    ids=[
        "the same",
        "output cheaper",
        "input cheaper",
        "dearer",
        "cheaper from tomorrow on",
        "dearer from tomorrow on",
        "cheaper in the past only",
        "its history gone",
        "nothing served until tomorrow",
    ],
)
def test_a_price_is_looser_where_anything_is_cheaper_from_today_on(
    rows: list[tuple[str, int, int]], is_looser: bool
) -> None:
    usd = 1_000_000_000
    table = [
        {"valid_from": day, "input_nusd_per_mtok": given * usd, "output_nusd_per_mtok": made * usd}
        for day, given, made in rows
    ]
    assert bool(paths(lambda c: item(c, "models", "plain").update(price=table))) == is_looser


def test_a_price_for_what_was_free_is_not_looser() -> None:
    free = {"models": [{**each, "price": "free"} for each in document("http://127.0.0.1:9")["models"]]}
    price = document("http://127.0.0.1:9")["models"][0]["price"]
    assert paths(lambda c: item(c, "models", "plain").update(price=price), **free) == []


def test_a_field_without_a_rule_is_listed() -> None:
    class Later(Config):
        surprise: int = 1

    whole = document("http://127.0.0.1:9")
    (found,) = loosenings(Later.model_validate(whole), Later.model_validate({**whole, "surprise": 2}), NOW_S)
    assert (found.path, found.before, found.after, found.why) == ("surprise", 1, 2, ALWAYS)


def test_what_is_shown_is_bounded() -> None:
    (one,) = loosenings(config(), config(lambda c: item(c, "budgets", "quota-day").update(limit=101)), NOW_S)
    assert len(shown([one] * 1000)) == SHOWN_MAX
