"""Which bundle a command of `bursar policy` is about: the folder that is named, or the configured one."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.composition import bundle_of
from gateway.config_file import load

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="A bundle folder instead of the configured one.")]


def folder_of(bundle: Path | None, config: Path) -> Path:
    """The bundle's folder; ConfigError, and Unready where none is named and an OPA server has the configured one."""
    return bundle if bundle is not None else bundle_of(load(config))
