"""`bursar policy`: run the Rego tests of a bundle and check that it can serve."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import CONFIG, ConfigOption, JsonOption
from gateway.cli.output import console, print_rows
from gateway.composition import bundle_of
from gateway.config_file import load
from policy import testing

app = typer.Typer(help="Test and check policies.", no_args_is_help=True)
BundleOption = Annotated[Path | None, typer.Option("--bundle", help="A bundle folder instead of the configured one.")]


@app.command("test")
def run_tests(bundle: BundleOption = None, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Run every Rego test, on the embedded engine and on OPA where it is installed."""
    results = testing.run_tests(_folder(bundle, config))
    rows = [
        {"test": result.name, "engine": result.engine, "passed": result.passed, "message": result.message}
        for result in results
    ]
    print_rows("Policy tests", rows, ("test", "engine", "passed", "message"), as_json=as_json)
    if not results or not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command()
def check(bundle: BundleOption = None, config: ConfigOption = CONFIG) -> None:
    """Compile the bundle, refuse builtins that do not always answer the same, and name each mistake."""
    folder = _folder(bundle, config)
    problems = testing.check(folder)
    for problem in problems:
        console().print(f"{problem.file}:{problem.line}: {problem.message}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console().print(f"{folder}: no problems", markup=False)


def _folder(bundle: Path | None, config: Path) -> Path:
    if bundle is not None:
        return bundle
    return bundle_of(load(config))
