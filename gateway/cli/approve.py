"""`bursar approve`, `approvals` and `reload`: the second person's word, what waits for it, and what asks for it."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from gateway.cli.admin import RELOAD_TIMEOUT_S, Admin, AdminFailed
from gateway.cli.options import HOME, HomeOption, JsonOption
from gateway.cli.output import brief, complain, console, print_json, print_rows, printable
from gateway.home import Home

ADMIN_KEY = "BURSAR_ADMIN_KEY"
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"A file with your own admin key; else ${ADMIN_KEY}, else the home's own key."),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The admin plane of a gateway, for who has no access to its home.")
]
_COLUMNS = ("id", "kind", "subject", "requested_by", "state", "until", "decided_by")
_AWAY = 3
_NONE_WAIT = "what waits for approval lives in one that does"


def approvals(
    every: Annotated[bool, typer.Option("--all", help="Those decided and expired last, too.")] = False,
    key_file: KeyFileOption = None,
    url: UrlOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """List what waits for a person's word in every gateway of the home."""
    found = [each for admin in _admins(home, key_file, url) for each in _listed(admin, every=every)]
    if as_json:
        print_json(found)
        return
    rows = [{**each, "until": _utc(each["expires_at"])} for each in found]
    print_rows("Approvals", rows, _COLUMNS, as_json=False)
    for each in found:
        if each["detail"].get("loosens"):
            console().print(f"{each['id']} loosens {each['detail']['loosens_count']:,}:", markup=False)
            _print_detail(each)


def approve(
    approval_id: Annotated[str, typer.Argument(help="As `bursar approvals` has it.")],
    deny: Annotated[bool, typer.Option("--deny", help="Refuse it instead; whoever asked may do that too.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Show it, with the answer that waits, and decide nothing.")
    ] = False,
    key_file: KeyFileOption = None,
    url: UrlOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Approve what somebody else asked for, exactly as it was when they did; a reload wherever the same one waits."""
    admins = _admins(home, key_file, url)
    holder, approval = _found(admins, approval_id)
    if show:
        shown = holder.get(f"/admin/approvals/{quote(approval_id, safe='')}")
        print_json(shown)
        return
    said = {"approve": not deny, "reason": reason}
    answers = [holder.post(f"/admin/approvals/{quote(approval['id'], safe='')}", said, RELOAD_TIMEOUT_S)]
    for admin, other in _same(admins, approval):
        answers.append(admin.post(f"/admin/approvals/{quote(other['id'], safe='')}", said, RELOAD_TIMEOUT_S))
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        _print_decided(answer)


def reload(
    key_file: KeyFileOption = None, url: UrlOption = None, home: HomeOption = HOME, as_json: JsonOption = False
) -> None:
    """Let every gateway of the home apply its configuration file and policy bundle again."""
    away = "nothing to reload; a start takes the file as it is"
    answers = [admin.post("/admin/reload", timeout_s=RELOAD_TIMEOUT_S) for admin in _admins(home, key_file, url, away)]
    if as_json:
        print_json(answers)
    else:
        for answer in answers:
            _print_reloaded(answer)
    if not all(answer["applied"] for answer in answers):
        raise typer.Exit(1)


def _admins(home: Path, key_file: Path | None, url: str | None, away: str = _NONE_WAIT) -> list[Admin]:
    """The admin planes to ask, with the key to ask them with; exit 3 where none runs, saying what that means."""
    secret = _secret_in(key_file) if key_file is not None else os.environ.get(ADMIN_KEY, "")
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise typer.BadParameter("--url is http://host:port of the admin plane")
        if not secret:
            raise typer.BadParameter(f"--url needs your own key: --key-file, or {ADMIN_KEY} in the environment")
        return [Admin(parts.hostname, parts.port, secret)]
    at_home = Home.at(home)
    runs = [run for name in at_home.gateways() if at_home.alive(name) and (run := at_home.read_run(name)) is not None]
    if not runs:
        complain(f"no gateway runs on {home}: {away}")
        raise typer.Exit(_AWAY)
    return [Admin(run["admin_host"], run["admin_port"], secret or at_home.admin_secret()) for run in runs]


def _secret_in(key_file: Path) -> str:
    try:
        return key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--key-file {key_file} cannot be read") from error


def _listed(admin: Admin, *, every: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = admin.get("/admin/approvals", state="any" if every else "pending")["approvals"]
    return found


def _found(admins: list[Admin], approval_id: str) -> tuple[Admin, dict[str, Any]]:
    """The gateway that has an approval; each has its own."""
    for admin in admins:
        for each in _listed(admin, every=True):
            if each["id"] == approval_id:
                return admin, each
    raise AdminFailed(f"no gateway here has an approval {approval_id}: `bursar approvals` lists those that wait")


def _same(admins: list[Admin], approval: dict[str, Any]) -> Iterator[tuple[Admin, dict[str, Any]]]:
    """The same step where other gateways of the home wait to take it: it was looked at once."""
    if approval["kind"] != "reload":
        return
    for admin in admins:
        for each in _listed(admin):
            if (each["kind"], each["digest"]) == ("reload", approval["digest"]) and each["id"] != approval["id"]:
                yield admin, each


def _print_decided(answer: dict[str, Any]) -> None:
    approval, result = answer["approval"], answer.get("result", {})
    line = f"{approval['state']} {approval['id']}: {approval['kind']} of {approval['subject']}"
    console().print(printable(line), markup=False, soft_wrap=True)
    if "changes" in result:
        _print_reloaded(result)
    elif "grant_id" in result:
        console().print(f"granted {result['amount']:,} to {result['budget']} ({result['counter']})", markup=False)


def _print_reloaded(answer: dict[str, Any]) -> None:
    if answer["applied"]:
        before, after = answer["policy_revision_before"], answer["policy_revision"]
        bundle = [] if before == after else [f"policy {before or 'unknown'} -> {after or 'unknown'}"]
        changes = ", ".join([*answer["changes"], *bundle]) or "nothing in the configuration"
        console().print(brief(f"applied {answer['digest'][:16]}: {changes}"), markup=False, soft_wrap=True)
        return
    console().print(answer["message"], markup=False, soft_wrap=True)
    _print_detail(answer["approval"])


def _print_detail(approval: dict[str, Any]) -> None:
    """What an approval is about, a line to each thing that gets looser, and how many there was no room for."""
    loosens = approval["detail"].get("loosens", ())
    for each in loosens:
        line = f"  {each['path']}: {_brief(each['before'])} -> {_brief(each['after'])}: {each['why']}"
        console().print(printable(line), markup=False, soft_wrap=True)
    left_out = approval["detail"].get("loosens_count", 0) - len(loosens)
    if left_out:
        console().print(f"  and {left_out:,} more that there is no room for: compare the files", markup=False)


def _utc(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _brief(value: Any) -> str:
    text = "-" if value is None else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
