"""`bursar policy`: run the Rego tests of a bundle, check that it can serve, and see what it does and would do."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from gateway.cli.opa import build_bundle, push, status
from gateway.cli.options import CONFIG, ConfigOption, JsonOption
from gateway.cli.output import console, counted, place, print_json, printable
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
    """Run every Rego test, on the embedded engine and on OPA where it is installed, and print those that fail."""
    results = testing.run_tests(folder_of(bundle, config))
    failed = [result for result in results if not result.passed]
    if as_json:
        print_json([_row(result) for result in results])
    else:
        for each in failed:
            line = f"{place(each.file, each.line)}: {each.name} on {each.engine}: {each.message}"
            console().print(printable(line), markup=False, soft_wrap=True)
        names, failures = ({each.name for each in some} for some in (results, failed))
        engines = " and ".join(dict.fromkeys(each.engine for each in results)) or "any engine"
        console().print(f"{counted(len(names), 'test')}, {len(failures):,} failed, on {engines}", markup=False)
    if failed or not results:
        raise typer.Exit(1)


def _row(result: testing.TestResult) -> dict[str, Any]:
    row = asdict(result)
    return {"test": row.pop("name"), **row}


@app.command()
def check(bundle: BundleOption = None, config: ConfigOption = CONFIG) -> None:
    """Compile the bundle, refuse builtins that do not always answer the same, and name each mistake, in data too."""
    folder = folder_of(bundle, config)
    problems = _table_problems(folder)
    problems += [each for each in testing.check(folder) if each not in problems]
    for problem in problems:
        console().print(f"{place(problem.file, problem.line)}: {problem.message}", markup=False, soft_wrap=True)
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
