"""`bursar config`: check a configuration file and show what it comes to."""

import sys

import typer
import yaml

from gateway.cli.options import CONFIG, ConfigOption, JsonOption
from gateway.cli.output import console, counted, print_json
from gateway.config_file import load

app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)


@app.command()
def check(config: ConfigOption = CONFIG) -> None:
    """Validate the file and name the line and the field of each mistake."""
    loaded = load(config)
    console().print(
        f"{config}: {counted(len(loaded.config.runtimes), 'runtime')}, {counted(len(loaded.config.models), 'model')}, "
        f"{counted(len(loaded.config.budgets), 'budget')}; digest {loaded.digest}"
    )


@app.command()
def show(config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Print the effective configuration, defaults and environment included; it holds no secrets."""
    effective = load(config).config.model_dump(mode="json")
    if as_json:
        print_json(effective)
    else:
        yaml.safe_dump(effective, sys.stdout, sort_keys=False)
