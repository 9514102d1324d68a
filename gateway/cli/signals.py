"""`bursar policy privileges`: what the policy grants and nobody used."""

import time
from datetime import UTC, datetime
from typing import Annotated, NoReturn

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, counted, print_rows
from gateway.cli.policy_bundle import BundleOption, folder_of
from gateway.cli.store import ledger_of
from gateway.config_file import load
from gateway.headroom import Scope, UnknownScope, resolved
from gateway.home import Home
from gateway.keys import Key, KeyStore
from gateway.privileges import Model, Report, Tool, Unused, in_force, registered
from ledger.privileges import Uses, uses
from ledger.reports import moment
from policy import bundle as bundles
from policy.child import Child

_COLUMNS = ("kind", "org", "team", "app", "what", "last_used", "granted_since", "suggestion")
_DAY = "%Y-%m-%d"


def privileges(
    since: Annotated[str, typer.Option(help="Unused since when: 30d, or a date.")] = "30d",
    org: Annotated[str | None, typer.Option(help="Of this organisation only.")] = None,
    team: Annotated[str | None, typer.Option(help="Of this team only.")] = None,
    bundle: BundleOption = None,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """List what policy grants to the keys in force and was not used: models, tools, keys, roles and clearances."""
    now = datetime.now(UTC)
    since_s = int(moment(since, now).timestamp())
    loaded = load(config)
    folder = folder_of(bundle, config)
    known = in_force(KeyStore(Home.at(home).keys).list(), int(time.time()))
    keys = [key for key in known if org in (None, key.org) and team in (None, key.team)]
    if known and not keys:
        _refuse(Scope(org or "", team or ""), known)
    with ledger_of(home, config) as client:
        client.flush()
        used = uses(client)
    tables = bundles.load(folder).data
    models = [Model(endpoint, model.id) for model in loaded.config.models for endpoint in model.endpoints]
    with Child.of(folder) as engine:
        report = Report(engine, loaded.config.env.name, keys, models, _tools(tables, used), used, since_s)
        found = list(report.unused())
    title = f"Granted to {counted(len(keys), 'key')} and not used since {moment(since, now):%Y-%m-%d %H:%M} UTC"
    print_rows(title, [_shown(each) for each in found], _COLUMNS, as_json=as_json)
    if not used.first_s or used.first_s > since_s:
        said = f"begins on {_day(used.first_s)}" if used.first_s else "is empty"
        complain(f"the ledger {said}, so what was used before that is not known here")


def _refuse(scope: Scope, known: list[Key]) -> NoReturn:
    """Ends the command over a scope that no key is of, as `bursar headroom` does: a wrong name must not look unused."""
    try:
        resolved(scope, (key.principal for key in known), ())
    except UnknownScope as error:
        complain(str(error))
    raise typer.Exit(1)


def _tools(tables: dict[str, object], used: Uses) -> list[Tool]:
    """The registered tools, and those that requests have offered without their being registered."""
    seen = (Tool(use.tool, use.server, use.kind) for use in used.tools)
    return list(dict.fromkeys([*registered(tables), *seen]))


def _shown(unused: Unused) -> dict[str, str]:
    return {
        **{name: getattr(unused, name) for name in ("kind", "org", "team", "app", "what", "suggestion")},
        "last_used": _day(unused.last_s) if unused.last_s else "never",
        "granted_since": _day(unused.since_s),
    }


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime(_DAY)
