"""`bursar policy build`, `push` and `status`: what an operator does with an OPA server."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import CONFIG, ConfigOption, JsonOption
from gateway.cli.output import brief, complain, console, print_json, print_rows
from gateway.cli.policy_bundle import BundleOption, folder_of
from gateway.config_file import load
from policy.opa_build import KEY_ID, SCOPE, Key, build
from policy.opa_management import BundleStatus, OpaManager, Refused
from policy.testing import find_opa

TOKEN_ENV = "BURSAR_OPA_TOKEN"
WAIT_S = 60.0
POLL_S = 0.5

OpaOption = Annotated[str, typer.Option("--opa", help="The OPA server instead of the configured one.")]


def build_bundle(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("bursar.tar.gz"),
    key: Annotated[Path | None, typer.Option("--key", help="The private key to sign with: EC P-256, PEM.")] = None,
    public_key: Annotated[Path | None, typer.Option("--verify", help="Its public key, to check the signature.")] = None,
    key_id: Annotated[str, typer.Option(help="What OPA's configuration calls the key.")] = KEY_ID,
    scope: Annotated[str, typer.Option(help="The scope that OPA's configuration asks for.")] = SCOPE,
    bundle: BundleOption = None,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compile a bundle folder into the one file that OPA polls, named by its digest and signed."""
    opa = find_opa()
    if opa is None:
        complain("there is no opa on PATH, which compiles and signs bundles: docs/opa.md says how to install it")
        raise typer.Exit(3)
    folder = folder_of(bundle, config)
    signing, verifying = (Key(file, key_id, scope) if file else None for file in (key, public_key))
    built = build(folder, output, opa, signing, verifying)
    if as_json:
        print_json({"file": str(output), **built._asdict()})
        return
    said = f"signed as {key_id}" if built.is_signed else "not signed"
    console().print(
        f"{output}: {brief(built.revision)}, {built.size_bytes:,} bytes, {said}", markup=False, soft_wrap=True
    )


def push(
    bundle: BundleOption = None, opa: OpaOption = "", config: ConfigOption = CONFIG, as_json: JsonOption = False
) -> None:
    """Put a bundle folder's rules and tables on an OPA that polls none, to try them out; Bursar serves by none such."""
    folder = folder_of(bundle, config)
    with _manager(opa, config) as manager:
        pushed = manager.push(folder)
    rows = [{"policy": name, "done": "put"} for name in pushed.policies]
    rows += [{"policy": name, "done": "removed"} for name in pushed.removed]
    print_rows(f"Pushed {brief(pushed.revision)} to {manager.url}", rows, ("policy", "done"), as_json=as_json)


def status(
    revision: Annotated[str, typer.Option("--revision", help="Wait until this revision is active.")] = "",
    wait_s: Annotated[float, typer.Option(min=0, max=3600, help="How long to wait for it.")] = WAIT_S,
    opa: OpaOption = "",
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show which bundles an OPA serves, since when, and why a newer one does not; 1 when something is wrong."""
    deadline_s = time.monotonic() + wait_s
    with _manager(opa, config) as manager:
        bundles = manager.bundles()
        while revision and revision not in _active(bundles) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            bundles = manager.bundles()
    rows = [each._asdict() if as_json else _brief(each)._asdict() for each in bundles]
    print_rows(f"Bundles of {manager.url}", rows, ("name", "revision", "activated_at", "problem"), as_json=as_json)
    if revision and revision not in _active(bundles):
        complain(f"{revision} is not active after {wait_s:g} s")
    if not bundles or any(each.problem for each in bundles) or (revision and revision not in _active(bundles)):
        raise typer.Exit(1)


def _active(bundles: list[BundleStatus]) -> set[str]:
    """What names the revisions that are active: each as it is, and as it is shown."""
    return {name for each in bundles for name in (each.revision, brief(each.revision))}


def _brief(status: BundleStatus) -> BundleStatus:
    return status._replace(revision=brief(status.revision))


@contextmanager
def _manager(opa: str, config: Path) -> Iterator[OpaManager]:
    """The OPA that is named, or else the one of the configuration; its token comes from the environment."""
    url, variable = opa, TOKEN_ENV
    if not opa:
        policy = load(config).config.policy
        if not policy.is_remote:
            complain(f"{config} names no OPA server in policy.url: give one with --opa")
            raise typer.Exit(2)
        url, variable = policy.url, policy.token_env or TOKEN_ENV
    token = os.environ.get(variable, "")
    try:
        manager = OpaManager(url, token)
    except Refused as error:
        raise typer.BadParameter(str(error)) from error
    with manager:
        try:
            yield manager
        except Refused as error:
            if token or not str(error).startswith("OPA answered 401"):
                raise
            said = f"{error}; its token is taken from {variable}, which is not set (policy.token_env names another)"
            raise Refused(said) from error
