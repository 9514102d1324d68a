"""What policy says of a tool that an answer calls, before the call is passed on."""

from collections.abc import Sequence

from domain.decision import Decision
from gateway.admission import Admitted
from gateway.governance import Governance
from gateway.noticing import Noticing
from gateway.verification import ToolAsked, ToolVerdict
from policy.port import TOOLS, Document

PHASE = "called"
KIND = "function"


def called_tools(of: Governance, noticing: Noticing) -> ToolAsked:
    """Asks the entry point of tools about each that is called until one is denied, and has it noticed."""

    async def asked(admitted: Admitted, calls: Sequence[str]) -> ToolVerdict:
        decisions: dict[str, Decision] = {}
        try:
            for tool in sorted(set(calls)):
                decision = decisions[tool] = await of.decider.ask(TOOLS, _document(of, admitted, tool))
                if not decision.allow:
                    return ToolVerdict(allow=False, codes=tuple(reason.code for reason in decision.reasons))
        finally:
            noticing.ruled(admitted.hold.row, calls, decisions)
        further = (name for each in decisions.values() for name in each.obligations.verify)
        return ToolVerdict(allow=True, verify=tuple(dict.fromkeys(further)))

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
