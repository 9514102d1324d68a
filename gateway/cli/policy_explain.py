"""`bursar policy explain`: what was decided on a request and on what, and which rules of the bundle say so."""

import os
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from gateway.cli.opa import TOKEN_ENV
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, complain, console, place, print_json, print_rows, printable
from gateway.cli.policy_bundle import BundleOption, folder_of
from gateway.cli.store import ledger_of
from gateway.config_file import ConfigError, load
from gateway.errors import POLICY_UNAVAILABLE
from ledger import decisions
from ledger.client import LedgerClient
from policy.bundle import files_of
from policy.opa_management import Explanation, OpaManager
from policy.port import BundleError, EngineAway, PolicyError
from policy.trace import Trace, Traced, trace

OPA_LINES_MAX = 200
_VALUE_CHARACTERS_MAX = 100
_FACTS = ("at", "org", "team", "app", "endpoint", "model", "served_model", "status", "http_status", "error_code")
_RULES = ("holds", "rule", "at", "value")
_ROOT = "data.bursar."


def explain(
    request_id: Annotated[str, typer.Argument(help="Of a request, by its own name or its client's; or of a decision.")],
    bundle: BundleOption = None,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show what policy decided on a request: the input, the decision, and which rules hold for that input."""
    with ledger_of(home, config) as client:
        client.flush()
        request, found = _recorded(client, request_id)
    decided = found[0]
    traced, code = _traced(decided, bundle, config)
    if as_json:
        print_json({**_view(request, found), **_traced_view(decided, traced)})
        raise typer.Exit(code)
    if request is not None:
        _print_request(request)
    for each in found:
        _print_decision(each)
    console().print(f"\nInput {decided['input_digest']}")
    print_json(orjson.loads(decided["input"]))
    if isinstance(traced, Trace):
        _print_trace(decided, traced)
    elif traced is not None:
        _print_opa(decided, traced)
    raise typer.Exit(code)


def _recorded(client: LedgerClient, request_id: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The row of the request, if that is what is named, and the decisions; ends the command where there are none."""
    request = decisions.request(client, request_id)
    name = request_id if request is None else str(request["decision_id"])
    if not name:
        assert request is not None
        complain(_undecided(request_id, request))
        raise typer.Exit(1)
    found = decisions.decisions(client, name)
    if not found and request is None:
        complain(f"the ledger knows no request or decision {request_id}: check the name, and that --home is right")
        raise typer.Exit(1)
    if not found:
        complain(f"the ledger has not the input of decision {name} any more, which {request_id} was decided by")
        raise typer.Exit(1)
    return request, found


def _undecided(request_id: str, request: dict[str, Any]) -> str:
    if request["error_code"] == POLICY_UNAVAILABLE.code:
        return f"policy gave no decision on {request_id}: its answer says why, and the gateway's log in full"
    why = request["error_code"] or request["status"]
    return f"no policy decided on {request_id}: it ended as {request['status']} ({why}) before it was asked"


def _traced(decided: dict[str, Any], bundle: Path | None, config: Path) -> tuple[Trace | Explanation | None, int]:
    """What the rules say to the input now, or the OPA server that decides; None, and a line why, where none can.

    With it the exit code: what is on record is shown whether rules can be asked or not.
    """
    input_json = decided["input"].encode()
    try:
        policy = load(config).config.policy if bundle is None else None
        if policy is not None and policy.is_remote:
            token = os.environ.get(policy.token_env or TOKEN_ENV, "")
            with OpaManager(policy.url, token) as opa:
                return opa.explain(orjson.loads(input_json), decided["entry"]), 0
        folder = folder_of(bundle, config)
        return trace(files_of(folder), folder, decided["entry"], input_json), 0
    except (PolicyError, ConfigError) as error:
        complain(f"no rules can be asked: {error}")
        return None, 3 if isinstance(error, EngineAway) else 2 if isinstance(error, BundleError | ConfigError) else 1


def _print_request(request: dict[str, Any]) -> None:
    rows = [{"request": request["request_id"], **{name: request[name] for name in _FACTS}}]
    shown = [name for name in rows[0] if rows[0][name] not in ("", 0)]
    print_rows("Request", rows, shown, as_json=False)


def _print_decision(decided: dict[str, Any]) -> None:
    what = "in its shadow, not in force" if decided["is_shadow"] else "decision"
    console().print(
        f"{what}: {_said(bool(decided['allow']))} by {brief(decided['policy_revision'])} at {decided['at']} UTC, "
        f"{_dotted(decided['entry'])}, {decided['decision_id']}",
        markup=False,
        soft_wrap=True,
    )
    for reason in orjson.loads(decided["reasons"]):
        said = printable(f"{reason['code']}: {reason['message']}")  # in which a client may have named a tool
        console().print(f"  {said}", markup=False, soft_wrap=True)
    if decided["allow"]:
        console().print(f"  obligations: {decided['obligations']}", markup=False, soft_wrap=True)


def _print_trace(decided: dict[str, Any], traced: Trace) -> None:
    _print_revision(decided, [traced.revision])
    console().print(f"{traced.entry.rule} = {_short(traced.entry)}", markup=False, soft_wrap=True)
    print_rows("Rules behind it", [_rule(each) for each in traced.rules], _RULES, as_json=False)
    if traced.functions:
        names = ", ".join(name.removeprefix(_ROOT) for name in traced.functions)
        console().print(f"functions cannot be asked: {names}", markup=False, soft_wrap=True)
    if traced.left_out:
        console().print(f"and {traced.left_out:,} more rules that were not asked")


def _print_opa(decided: dict[str, Any], said: Explanation) -> None:
    _print_revision(decided, list(said.revisions.values()))
    console().print(f"OPA: {orjson.dumps(said.value).decode()}", markup=False, soft_wrap=True)
    for line in said.trace[:OPA_LINES_MAX]:
        console().print(printable(line), markup=False, soft_wrap=True)
    if len(said.trace) > OPA_LINES_MAX:
        console().print(f"and {len(said.trace) - OPA_LINES_MAX:,} more lines: see them with --json")


def _print_revision(decided: dict[str, Any], revisions: list[str]) -> None:
    """Whether the bundle that is asked is the one that decided."""
    named = brief(", ".join(revisions)) or "without a revision"
    if decided["policy_revision"] in revisions:
        said = f"The bundle is the one that decided, {named}."
    else:
        said = f"The bundle is now another one, {named}: this is what it says to the input."
    console().print(f"\n{said}", markup=False)


def _rule(traced: Traced) -> dict[str, str]:
    return {
        "holds": "yes" if traced.holds else "no",
        "rule": traced.rule.removeprefix(_ROOT),
        "at": place(traced.file, traced.line),
        "value": _short(traced, _VALUE_CHARACTERS_MAX),
    }


def _short(traced: Traced, characters_max: int = 1_000) -> str:
    text = traced.failure or orjson.dumps(traced.value).decode()
    return text if len(text) <= characters_max else f"{text[:characters_max]}…"


def _view(request: dict[str, Any] | None, found: list[dict[str, Any]]) -> dict[str, Any]:
    shown = [
        {**each, **{name: orjson.loads(each[name]) for name in ("reasons", "obligations", "input")}} for each in found
    ]
    return {
        "request": request,
        "decision": shown[0],
        "shadow": next((each for each in shown[1:] if each["is_shadow"]), None),
    }


def _traced_view(decided: dict[str, Any], traced: Trace | Explanation | None) -> dict[str, Any]:
    revision = decided["policy_revision"]
    if isinstance(traced, Trace):
        bundle = {
            "revision": traced.revision,
            "is_the_one_that_decided": traced.revision == revision,
            "entry": traced.entry._asdict(),
            "rules": [each._asdict() for each in traced.rules],
            "functions_not_asked": traced.functions,
            "left_out": traced.left_out,
        }
        return {"bundle": bundle, "opa": None}
    if traced is None:
        return {"bundle": None, "opa": None}
    is_same = revision in traced.revisions.values()
    return {"bundle": None, "opa": {**traced._asdict(), "is_the_one_that_decided": is_same}}


def _said(is_allowed: bool) -> str:
    return "allowed" if is_allowed else "denied"


def _dotted(entry: str) -> str:
    return "data." + entry.replace("/", ".")
