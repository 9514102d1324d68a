"""`bursar policy`: run the Rego tests of a bundle, check that it can serve, and see what it does and would do."""

from pathlib import Path

import typer

from gateway.cli.opa import build_bundle, push, status
from gateway.cli.options import CONFIG, ConfigOption, JsonOption
from gateway.cli.output import console, print_rows
from gateway.cli.policy_backtest import backtest
from gateway.cli.policy_bundle import BundleOption, folder_of
from gateway.cli.policy_diff import diff
from gateway.cli.policy_explain import explain
from gateway.cli.policy_shadow import report as shadow_report
from gateway.cli.signals import privileges
from policy import tables, testing
from policy.lint import Problem
from policy.port import BundleError

app = typer.Typer(help="Test, check and explain policies, and see what another one would do.", no_args_is_help=True)
shadow = typer.Typer(help="See what a shadow bundle decides beside the one in force.", no_args_is_help=True)


@app.command("test")
def run_tests(bundle: BundleOption = None, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Run every Rego test, on the embedded engine and on OPA where it is installed."""
    results = testing.run_tests(folder_of(bundle, config))
    rows = [
        {"test": result.name, "engine": result.engine, "passed": result.passed, "message": result.message}
        for result in results
    ]
    print_rows("Policy tests", rows, ("test", "engine", "passed", "message"), as_json=as_json)
    if not results or not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command()
def check(bundle: BundleOption = None, config: ConfigOption = CONFIG) -> None:
    """Compile the bundle, refuse builtins that do not always answer the same, and name each mistake, in data too."""
    folder = folder_of(bundle, config)
    problems = _table_problems(folder)
    problems += [each for each in testing.check(folder) if each not in problems]
    for problem in problems:
        console().print(f"{problem.file}:{problem.line}: {problem.message}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console().print(f"{folder}: no problems", markup=False)


def _table_problems(folder: Path) -> list[Problem]:
    try:
        return tables.check(folder)
    except BundleError:
        return []  # whose reason the check of the bundle gives


app.command()(explain)
app.command()(diff)
app.command()(backtest)
app.command()(privileges)
app.command("build")(build_bundle)
app.command()(push)
app.command()(status)
shadow.command("report")(shadow_report)
app.add_typer(shadow, name="shadow")
