"""Verifying: what verification needs, put together for one worker."""

from gateway.called_tools import called_tools
from gateway.calls import Caller
from gateway.forward import Forwarder
from gateway.governance import Governance
from gateway.kept import KeptAnswers
from gateway.live import Live
from gateway.noticing import Noticing
from gateway.second_model import Judging
from gateway.second_person import SecondPerson
from gateway.signal_sources import verified
from gateway.verification import Verifier
from gateway.verification_config import Verify
from policy.checks.process import CheckProcess, CheckProcesses


def check_processes_of(config: Verify) -> CheckProcesses:
    """The processes of checks of a worker, on a running event loop: nothing is started yet; close them in the end."""
    return CheckProcesses(
        CheckProcess(config.timeout_s, config.pii.entities, waiting_max=config.waiting_max),
        CheckProcess(config.timeout_s, (), waiting_max=config.waiting_max),
    )


def verifier_of(
    config: Verify,
    of: Governance,
    process: CheckProcesses,
    forwarder: Forwarder,
    live: Live,
    people: SecondPerson,
    noticing: Noticing,
    *,
    event_bytes_max: int,
    response_bytes_max: int,
) -> Verifier:
    """The verifier of a worker."""
    second = config.second_model
    # What the second model answers is read here alone, so no checks are obliged on it: they would ask it again.
    exempt = Caller(of, forwarder, event_bytes_max, response_bytes_max, None, is_exempt=True)
    return Verifier(
        config=config,
        process=process,
        now_us=of.now_us,
        # Kept as long again as a person may take: who is approved late is fetched late.
        kept=KeptAnswers(config.kept_max, config.kept_bytes_max, 2 * config.approval_ttl_s),
        requester=people.requester,
        tool_asked=called_tools(of, noticing),
        judge=None if second is None else Judging(exempt, live, second).ask,
        approvals=people.approvals,
        note=verified(noticing.signals),
    )
