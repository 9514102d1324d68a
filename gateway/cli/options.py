"""Options that every command shares."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[Path, typer.Option("--home", envvar="BURSAR_HOME", help="The state directory.")]
ConfigOption = Annotated[Path, typer.Option("--config", envvar="BURSAR_CONFIG", help="The configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

HOME = Path(".bursar")
CONFIG = Path("bursar.yaml")


class BadSetting(ValueError):
    """What was written on the command line is no setting; the message says what is. Safe to show."""
