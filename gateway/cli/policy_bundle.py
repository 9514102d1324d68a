"""Which bundle a command of `bursar policy` is about: the folder that is named, or the configured one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.output import complain
from gateway.composition import Unready, bundle_of
from gateway.config_file import load
from policy.port import BundleError

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="A bundle folder instead of the configured one.")]


def folder_of(bundle: Path | None, config: Path, otherwise: str = "name a bundle's folder with --bundle") -> Path:
    """The bundle's folder; ConfigError, and exit 2 where none is named and an OPA server has the configured one."""
    if bundle is not None:
        return bundle
    loaded = load(config)
    try:
        return bundle_of(loaded)
    except Unready as error:
        url = loaded.config.policy.url
        raise typer.BadParameter(f"the OPA server at {url} has the configured bundle: {otherwise}") from error


@contextmanager
def to_compare() -> Iterator[None]:
    """Ends a command with 2 over a bundle that cannot serve, where 1 is an answer about bundles that can."""
    try:
        yield
    except BundleError as error:
        complain(str(error))
        raise typer.Exit(2) from error
