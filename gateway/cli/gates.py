"""`bursar release check` and `bursar launch check`: the gates of people's own CI/CD; exit 0 goes ahead, 1 does not."""

import asyncio
import os
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from gateway import gates
from gateway.cli.admin import Admin, AdminFailed
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, complain, console, print_json, print_rows, printable
from gateway.config_file import load
from gateway.home import Home
from ledger.reports import moment as read_moment
from policy.port import PolicyUnavailable

release_app = typer.Typer(help="Gate releases.", no_args_is_help=True)
launch_app = typer.Typer(help="Gate models and tools.", no_args_is_help=True)

AtOption = Annotated[
    str | None, typer.Option("--at", help="Go by the calendar of this time, in UTC unless it says otherwise.")
]
_AWAY = 3
_UNAVAILABLE = 503


@release_app.callback()
@launch_app.callback()
def _group() -> None:
    """Typer makes a command of a group that has one, unless the group is something itself."""


@release_app.command("check")
def release_check(
    app: Annotated[str, typer.Option(help="The app that is released.")],
    release: Annotated[str, typer.Option(help="What is released: a version or a commit.")] = "next",
    org: Annotated[str, typer.Option(help="Found by the app where only one has it.")] = "",
    team: Annotated[str, typer.Option(help="Found by the app where only one has it.")] = "",
    env: Annotated[str, typer.Option(help="The environment that this must be; exit 2 where it is another.")] = "",
    at: AtOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Say whether an app may be released now: its budgets, risk and SLOs, the time, and what the policy makes of it."""
    admin = Admin.of(Home.at(home))
    if admin is None:
        complain(f"no gateway runs on {home}, and only one that does knows headroom and risk: start `bursar up`")
        raise typer.Exit(_AWAY)
    asked = {"release": release, "app": app, "team": team, "org": org, "at_s": _at_s(at)}
    verdict = _asked(admin, "release", asked)
    is_in = verdict["asked"]["env"]["name"]
    if env not in ("", is_in):
        complain(f"this gateway is in {is_in}: its headroom and risk say nothing of {env}, ask the gateway there")
        raise typer.Exit(2)
    _print(verdict, at, as_json=as_json)
    if not as_json:
        rows = [{"part": name, **part} for name, part in verdict["headroom"]["parts"].items()]
        print_rows("Headroom, of 1,000", rows, ("part", "permille", "known", "why"), as_json=False)
    _end(verdict)


@launch_app.command("check")
def launch_check(
    model: Annotated[str, typer.Option(help="The model that is to be enabled.")] = "",
    tool: Annotated[str, typer.Option(help="Or the tool.")] = "",
    env: Annotated[str, typer.Option(help="The environment; that of the gateway unless named.")] = "",
    at: AtOption = None,
    here: Annotated[
        bool, typer.Option("--here", help="Go by the configuration file and its bundle; nothing is recorded.")
    ] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model or tool may be enabled in an environment: its tier, its evidence and its mitigations."""
    if bool(model) == bool(tool):
        raise typer.BadParameter("name a --model or a --tool, not both")
    kind: Literal["model", "tool"] = "model" if model else "tool"
    at_home = None if here else Home.found(home)
    admin = None if at_home is None else Admin.of(at_home)
    if admin is not None:
        asked = {"kind": kind, "id": model or tool, "env": env, "at_s": _at_s(at)}
        verdict = _asked(admin, "launch", asked)
    else:
        loaded = load(config)
        at_s = _at_s(at)
        document = gates.launch(
            kind, model or tool, env or loaded.config.env.name, int(time.time()) if at_s is None else at_s
        )
        try:
            decided = asyncio.run(gates.ask_here("launch", model or tool, document, loaded, os.environ))
        except PolicyUnavailable as error:
            complain(f"the policy could not be evaluated, which is no go-ahead: {error}")
            raise typer.Exit(_AWAY) from error
        verdict = decided.view()
    _print(verdict, at, as_json=as_json)
    if admin is None:
        complain(f"decided here by {config}, and not recorded")
    _end(verdict)


def _asked(admin: Admin, gate: gates.Gate, asked: dict[str, Any]) -> dict[str, Any]:
    """What the gateway says; where it cannot say anything, the command ends here."""
    try:
        verdict: dict[str, Any] = admin.post(f"/admin/gates/{gate}", asked)
    except AdminFailed as error:
        if error.status != _UNAVAILABLE:
            raise
        complain(str(error))
        raise typer.Exit(_AWAY) from error
    return verdict


def _print(verdict: dict[str, Any], at: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json(verdict)
        return
    what, env = "go" if verdict["allow"] else "no-go", verdict["asked"]["env"]["name"]
    line = f"{what}: {verdict['gate']} of {verdict['subject']} in {env}, policy {brief(verdict['policy_revision'])}"
    console().print(printable(line), markup=False, soft_wrap=True)
    for reason in verdict["reasons"]:
        console().print(printable(f"  {reason['code']}: {reason['message']}"), markup=False, soft_wrap=True)
    if at is not None:
        complain(f"by the calendar of {at}: this says nothing of now, and is recorded as asked, not as checked")


def _end(verdict: dict[str, Any]) -> None:
    if not verdict["allow"]:
        raise typer.Exit(1)


def _at_s(at: str | None) -> int | None:
    """The Unix second of a time as it is typed, None where there is none. BadReport."""
    return None if at is None else int(read_moment(at, datetime.now(UTC)).timestamp())
