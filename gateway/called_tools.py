"""What policy says of a tool that an answer calls, before the call is passed on."""

from gateway.admission import Admitted
from gateway.governance import Governance
from gateway.noticing import Noticing
from gateway.verification import ToolAsked, ToolVerdict
from policy.port import TOOLS, Document

PHASE = "called"
KIND = "function"


def called_tools(of: Governance, noticing: Noticing) -> ToolAsked:
    """Asks the entry point of tools about each that is called, and has it noticed; it raises PolicyUnavailable."""

    async def asked(admitted: Admitted, tool: str) -> ToolVerdict:
        decision = await of.decider.ask(TOOLS, _document(of, admitted, tool))
        verify = decision.obligations.verify
        row, reasons = admitted.hold.row, decision.reasons
        noticing.ruled(row, tool, allow=decision.allow, reasons=reasons, verify=verify)
        codes = tuple(reason.code for reason in reasons)
        return ToolVerdict(decision.allow, codes, verify)

    return asked


def _document(of: Governance, admitted: Admitted, tool: str) -> Document:
    principal = admitted.ask.intent.principal
    return {
        "principal": {
            "org": principal.org,
            "team": principal.team,
            "app": principal.app,
            "roles": list(principal.roles),
            "clearance": principal.clearance,
        },
        "tool": {"name": tool, "server": "", "kind": KIND},
        "phase": PHASE,
        "risk": {"level": admitted.hold.row["risk_level"]},
        "env": {"name": of.catalogue.env_name, "freeze": of.catalogue.freeze},
    }
