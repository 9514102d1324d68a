"""Gates: whether a release or a launch may go ahead, as the policy says of what is known of it now."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from domain.decision import Decision, Obligations, Reason
from gateway.config_file import LoadedConfig
from gateway.engines import Engines
from policy.decider import Decider
from policy.port import LAUNCH, RELEASE, Document

Gate = Literal["release", "launch"]
ENTRIES: Mapping[Gate, str] = {"release": RELEASE, "launch": LAUNCH}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of a subject, why, and the input and bundle revision that it was decided on."""

    gate: Gate
    subject: str
    allow: bool
    reasons: tuple[Reason, ...]
    revision: str
    asked: Document

    def view(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return {
            "gate": self.gate,
            "subject": self.subject,
            "allow": self.allow,
            "reasons": [reason._asdict() for reason in self.reasons],
            "policy_revision": self.revision,
            "asked": self.asked,
        }


def release(
    release_id: str, env_name: str, room: Mapping[str, Any], level: str | None, at_s: int, *, freeze: bool
) -> Document:
    """The input of a release gate; `room` is a headroom view of the app's scope, `level` its risk."""
    scope = room["scope"]
    return {
        "release": {"id": release_id, "team": scope["team"], "app": scope["app"]},
        "env": {"name": env_name, "freeze": freeze},
        "headroom": room["headroom"],
        "slos": room["slos"],
        # A level that cannot be told is none that a policy knows.
        "risk": {"level": level or "unknown"},
        "at": moment(at_s),
    }


def launch(kind: Literal["model", "tool"], target_id: str, env_name: str, at_s: int) -> Document:
    """The input of a launch gate; evidence, tiers and mitigations are tables of the bundle."""
    return {"target": {"kind": kind, "id": target_id}, "env": {"name": env_name}, "at": moment(at_s)}


def moment(at_s: int) -> dict[str, int]:
    """A Unix second as policies see it, in UTC: weekday (Monday is 0), minute of the day, and the second itself."""
    at = time.gmtime(at_s)
    return {"weekday": at.tm_wday, "minute": at.tm_hour * 60 + at.tm_min, "s": at_s}


def said(gate: Gate, subject: str, asked: Document, decision: Decision) -> Verdict:
    """What a decision on a gate's input comes to; one with obligations is a no, for nobody here would keep to them."""
    reasons, allow = decision.reasons, decision.allow
    if allow and decision.obligations != Obligations():
        allow = False
        reasons = (*reasons, Reason("obligations", "The policy attaches obligations, which a gate cannot keep to."))
    return Verdict(gate, subject, allow, reasons, decision.revision, asked)


async def ask_here(
    gate: Gate, subject: str, asked: Document, loaded: LoadedConfig, environ: Mapping[str, str]
) -> Verdict:
    """What a configuration's policy says, without a gateway; raises BundleError, Unready, or PolicyUnavailable."""
    engines = Engines(environ)
    deciding = await engines.open(loaded)
    try:
        decision = await Decider(deciding.engine).ask(ENTRIES[gate], asked)
    finally:
        await engines.discard(deciding, None)
    return said(gate, subject, asked, decision)
