"""Consistency: what each value of a configuration being right does not yet guarantee of the whole."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from difflib import get_close_matches
from os.path import normpath

from gateway.config import Config, Scope
from gateway.objectives import SloScope
from ledger.leases import LIMIT_MAX

Location = tuple[str | int, ...]
Finding = tuple[Location, str]


def inconsistencies(config: Config, now_s: float) -> list[Finding]:
    """Every place where the configuration contradicts itself at a Unix time, with what is wrong there."""
    return [
        *_same_ids(config),
        *_listening(config),
        *_unknown_runtimes(config),
        *_same_telemetry(config),
        *_prices_to_come(config, now_s),
        *_scopes_of_nothing(config),
        *_uncountable(config),
        *_second_model(config),
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """A question naming the known name that is most like this one, or nothing."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _same_ids(config: Config) -> Iterator[Finding]:
    for section in ("webhooks", "runtimes", "models", "budgets", "slos"):
        first: dict[str, int] = {}
        for index, item in enumerate(getattr(config, section)):
            if item.id in first:
                yield (section, index, "id"), f"{item.id} is already the id of {section}[{first[item.id]}]"
            first.setdefault(item.id, index)


def _listening(config: Config) -> Iterator[Finding]:
    listen = config.listen
    if listen.workers > 1 and not config.book.is_shared:
        yield ("listen", "workers"), "a book in memory:// serves one worker only"
    elif listen.workers > 1:
        yield ("listen", "workers"), "start each further gateway with `bursar serve --replica NAME` instead"
    if listen.port and (listen.host, listen.port) == (listen.admin_host, listen.admin_port):
        yield ("listen", "admin_port"), "is the port that applications use: the admin plane needs its own"


def _uncountable(config: Config) -> Iterator[Finding]:
    if config.book.is_shared:
        for index, budget in enumerate(config.budgets):
            if budget.limit > LIMIT_MAX:
                yield ("budgets", index, "limit"), f"a book in redis:// counts up to {LIMIT_MAX}"
    elif config.book.replicas > 1:
        yield ("book", "replicas"), "a book in memory:// cannot be shared"


def _second_model(config: Config) -> Iterator[Finding]:
    second = config.verify.second_model
    chats = {model.id for model in config.models if "chat" in model.endpoints}
    if second is not None and second.model not in chats:
        why = f"no model that offers chat is called {second.model}{nearest(second.model, chats)}"
        yield ("verify", "second_model", "model"), why


def _unknown_runtimes(config: Config) -> Iterator[Finding]:
    known = {runtime.id for runtime in config.runtimes}
    for index, model in enumerate(config.models):
        for place, name in enumerate(model.runtimes):
            if name not in known:
                yield ("models", index, "runtimes", place), f"no runtime is called {name}{nearest(name, known)}"


def _same_telemetry(config: Config) -> Iterator[Finding]:
    """What an engine took would be in the accounts of two runtimes."""
    first: dict[str, int] = {}
    for index, runtime in enumerate(config.runtimes):
        if runtime.telemetry is not None:
            folder = normpath(runtime.telemetry)
            if folder in first:
                yield ("runtimes", index, "telemetry"), f"is that of runtimes[{first[folder]}]: name one runtime only"
            first.setdefault(folder, index)


def _prices_to_come(config: Config, now_s: float) -> Iterator[Finding]:
    today = datetime.fromtimestamp(now_s, UTC).date()
    for index, model in enumerate(config.models):
        if model.price != "free" and model.price[0].valid_from > today:
            where = ("models", index, "price", 0, "valid_from")
            yield where, f"no price is valid today: the first begins on {model.price[0].valid_from}"


def _scopes_of_nothing(config: Config) -> Iterator[Finding]:
    """A budget or SLO over a model or runtime that does not exist would limit or promise nothing, silently."""
    known = {"model": {model.id for model in config.models}, "runtime": {runtime.id for runtime in config.runtimes}}
    scopes: list[tuple[str, int, Scope | SloScope]] = [
        ("budgets", index, budget.scope) for index, budget in enumerate(config.budgets)
    ]
    scopes += [("slos", index, slo.scope) for index, slo in enumerate(config.slos)]
    for section, index, scope in scopes:
        for dimension, value in scope.named():
            if dimension in known and value not in {"*", *known[dimension]}:
                message = f"no {dimension} is called {value}{nearest(value, known[dimension])}"
                yield (section, index, "scope", dimension), message
