"""`bursar key`: make, list and revoke keys."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.admin import Admin
from gateway.cli.offline import opened
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, print_rows
from gateway.home import Home
from gateway.keys import ALL_ORGS, KeyStore
from gateway.views import key_view

app = typer.Typer(help="Create, list and revoke keys.", no_args_is_help=True)
_COLUMNS = ("key_id", "kind", "org", "team", "app", "user", "roles", "orgs", "expires_at", "revoked_at")


@app.command()
def create(
    org: Annotated[
        list[str] | None, typer.Option(help="Organisation charged; of a ledger key, one whose rows it opens.")
    ] = None,
    team: Annotated[str, typer.Option(help="Team charged.")] = "",
    app_name: Annotated[str, typer.Option("--app", help="Application.")] = "",
    user: Annotated[str, typer.Option(help="The one user of this key, if it has one.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role that policies see; may be repeated.")] = None,
    clearance: Annotated[str, typer.Option(help="Clearance that policies see.")] = "internal",
    ttl_s: Annotated[int | None, typer.Option(min=1, help="Seconds until it expires.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Make a key for the admin plane.")] = False,
    ledger: Annotated[bool, typer.Option("--ledger", help="Make a key that reads the ledger's rows of --org.")] = False,
    all_orgs: Annotated[bool, typer.Option("--all-orgs", help="With --ledger: the rows of everyone.")] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print its secret, which is shown only now."""
    orgs = org or []
    if ledger:
        _check_ledger(orgs, all_orgs, charged=bool(admin or team or app_name or user or role))
    elif all_orgs or len(orgs) > 1:
        raise typer.BadParameter("only a key made with --ledger has more than one organisation")
    elif not admin and not (orgs and team and app_name):
        raise typer.BadParameter("a key of an application needs --org, --team and --app")
    kind = "ledger" if ledger else "admin" if admin else "app"
    asked: dict[str, Any] = {
        "org": orgs[0] if orgs and not ledger else "-",
        "team": team or "-",
        "app": app_name or kind,
        "user": user,
        "roles": role or [],
        "clearance": clearance,
        "kind": kind,
        "orgs": ([ALL_ORGS] if all_orgs else orgs) if ledger else [],
        "ttl_s": ttl_s,
    }
    made = _created(Home(home), config, asked)
    if as_json:
        print_json(made)
    else:
        console().print(
            f"{made['secret']}\nkey {made['key_id']}: keep the secret, it is not shown again", soft_wrap=True
        )


@app.command("list")
def list_keys(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """List keys, revoked ones included."""
    rows = [key_view(key) for key in KeyStore(Home.at(home).keys).list()]
    print_rows("Keys", rows, _COLUMNS, as_json=as_json)


@app.command()
def revoke(key_id: str, home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Revoke a key from now on."""
    admin = Admin.of(Home.at(home))
    if admin is not None:
        revoked = admin.delete("/admin/keys", key_id)
    else:
        with opened(Home.at(home), config) as (_, controls):
            revoked = controls.revoke_key(key_id, "cli")
        if revoked is None:
            complain(f"there is no key {key_id}")
            raise typer.Exit(1)
    if as_json:
        print_json(revoked)
    else:
        console().print(f"revoked {key_id}")


def _check_ledger(orgs: list[str], all_orgs: bool, *, charged: bool) -> None:
    if bool(orgs) == all_orgs:
        raise typer.BadParameter("a ledger key needs --org, which may be repeated, or --all-orgs")
    if ALL_ORGS in orgs:
        raise typer.BadParameter("write --all-orgs for a ledger key of everyone")
    if charged:
        raise typer.BadParameter(
            "a ledger key reads and calls nothing: leave out --team, --app, --user, --role and --admin"
        )


def _created(home: Home, config: Path, asked: dict[str, Any]) -> dict[str, Any]:
    admin = Admin.of(home)
    if admin is not None:
        made: dict[str, Any] = admin.post("/admin/keys", asked)
        return made
    with opened(home, config) as (_, controls):
        return controls.create_key(**asked, actor="cli")
