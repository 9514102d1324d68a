"""The command line. Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 a dependency is away."""

import sys

import typer

from gateway.cli import (
    approve,
    budgets,
    configuration,
    doctor,
    gates,
    keys,
    ledger,
    policy,
    replica,
    runtime,
    serving,
    slo,
)
from gateway.cli.admin import AdminFailed
from gateway.cli.options import BadSetting
from gateway.cli.output import complain
from gateway.cli.runtime_place import NoRuntime
from gateway.composition import Unready
from gateway.config_file import ConfigError
from gateway.home import HomeError
from gateway.keys import KeyFieldError, KeysError
from gateway.supervisor import StartFailed
from ledger.checkpoints import CheckpointsDamaged, LeavesMissing
from ledger.client import LedgerUnavailable, QueryFailed
from ledger.cluster import BadCluster
from ledger.journal import JournalError
from ledger.proofs import NotProvable
from ledger.records import CorruptJournal
from ledger.replicas import ReplicaActive
from ledger.reports import BadReport
from ledger.signing import KeyRefused
from ledger.traffic import NoTraffic
from policy.port import EngineAway, PolicyError
from runtime.calibration.errors import BadCalibration, CalibrationError, EngineLost, NothingSeen
from runtime.vllm.couplings import KnobError
from runtime.vllm.describe import DescribeError
from runtime.vllm.launcher import VllmServerError
from runtime.workload.port import WorkloadError

NO = 1
WRONG_USAGE = 2
AWAY = 3

_EXITS: dict[type[Exception], int] = {
    ConfigError: WRONG_USAGE,
    BadReport: WRONG_USAGE,
    BadCluster: WRONG_USAGE,
    KeyRefused: WRONG_USAGE,
    CheckpointsDamaged: NO,
    LeavesMissing: NO,
    NotProvable: NO,
    ReplicaActive: NO,
    AdminFailed: NO,
    NoTraffic: NO,
    QueryFailed: NO,
    EngineAway: AWAY,
    PolicyError: NO,
    Unready: AWAY,
    StartFailed: AWAY,
    LedgerUnavailable: AWAY,
    JournalError: AWAY,
    CorruptJournal: AWAY,
    KeyFieldError: WRONG_USAGE,
    KeysError: AWAY,
    HomeError: AWAY,
    NoRuntime: WRONG_USAGE,
    BadSetting: WRONG_USAGE,
    KnobError: WRONG_USAGE,
    WorkloadError: WRONG_USAGE,
    BadCalibration: WRONG_USAGE,
    EngineLost: AWAY,
    NothingSeen: AWAY,
    DescribeError: AWAY,
    VllmServerError: AWAY,
    # Of its kinds the ones above say more; what is left is a calibration that was tried and is not to be had.
    CalibrationError: NO,
}

app = typer.Typer(
    name="bursar",
    help="A governed compute-and-token budget gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serving.up)
app.command()(serving.serve)
app.command()(doctor.doctor)
app.command()(approve.approve)
app.command()(approve.approvals)
app.command()(approve.reload)
app.command()(slo.slo)
app.command()(slo.headroom)
app.add_typer(configuration.app, name="config")
app.add_typer(keys.app, name="key")
app.add_typer(budgets.app, name="budget")
app.add_typer(replica.app, name="replica")
app.add_typer(policy.app, name="policy")
app.add_typer(runtime.app, name="runtime")
app.add_typer(ledger.app, name="ledger")
app.add_typer(gates.release_app, name="release")
app.add_typer(gates.launch_app, name="launch")


def main() -> None:
    """Run one command; what people can mend is said in a line, and what they cannot crashes with its trace."""
    try:
        app()
    except tuple(_EXITS) as error:
        complain(str(error))
        sys.exit(next(code for kind, code in _EXITS.items() if isinstance(error, kind)))
    except OSError as error:
        complain(str(error))
        sys.exit(AWAY)
