"""What the policy engines answer to: the input of a decision, the engine that evaluates it, and how it can fail.

PolicyError
├── BundleError         a bundle that cannot serve; names file and line, safe to show to its author
├── PolicyUnavailable   no decision could be made; the caller must deny (`policy_unavailable`)
└── EvaluationError     the engine failed on one input
    ├── Undefined           the entry point has no value for it
    ├── MalformedDecision   the value is not a decision
    ├── Unfinished          it took too long or ended the process, which is not to say that it always does
    └── EngineAway          the engine could not be asked; what it decided earlier may stand in for it
"""

from typing import Any, NamedTuple, Protocol

import orjson

Document = dict[str, Any]

ADMISSION = "bursar/admission/decision"
TOOLS = "bursar/tools/decision"
CHANGE = "bursar/change/decision"
LAUNCH = "bursar/launch/decision"
RELEASE = "bursar/release/decision"
SCORING = "bursar/risk/scoring"
# A bundle must have the first; what has no rule at another one is undefined there, which denies.
ENTRIES = (ADMISSION, TOOLS, CHANGE, LAUNCH, RELEASE, SCORING)


class PolicyError(Exception):
    """Anything that goes wrong between a policy and its decision."""


class BundleError(PolicyError):
    """A bundle cannot serve; `line` is 0 where the mistake has none."""

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.file = file
        self.line = line
        self.message = message


class PolicyUnavailable(PolicyError):
    """No decision could be made, so nothing may be admitted; `said` is as much of the reason as a caller may read."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.said = said or reason


class EvaluationError(PolicyError):
    """The engine failed on one input."""


class Undefined(EvaluationError):
    """The entry point has no value for the input."""


class MalformedDecision(EvaluationError):
    """The value of the entry point is not a decision."""


class Unfinished(EvaluationError):
    """The evaluation took too long, or ended the process: with more time, or on another day, it may have a value."""


class EngineAway(EvaluationError):
    """The engine could not be reached, or has more to do than it may keep waiting."""


class PolicyInput(NamedTuple):
    """The facts an admission is decided on; few distinct values on purpose, so that decisions cache.

    `band` is the worst of `per_resource`, which pairs each budgeted resource with its band; `worst` names the
    resource.
    """

    org: str
    team: str
    app: str
    roles: tuple[str, ...]
    clearance: str
    endpoint: str
    model: str
    tools: tuple[str, ...] = ()
    stream: bool = False
    run_depth: int = 0
    run_steps: str = "none"
    band: str = "ok"
    worst: str = ""
    per_resource: tuple[tuple[str, str], ...] = ()
    risk_level: str = "normal"
    env_name: str = "dev"
    freeze: bool = False

    def document(self) -> Document:
        """The input as Rego sees it; what is asked for most stands first, because the embedded engine scans objects."""
        return {
            "principal": {
                "org": self.org,
                "team": self.team,
                "app": self.app,
                "clearance": self.clearance,
                "roles": list(self.roles),
            },
            "intent": {
                "model": self.model,
                "endpoint": self.endpoint,
                "tools": list(self.tools),
                "run": {"depth": self.run_depth, "steps": self.run_steps},
                "stream": self.stream,
            },
            "budget": {"band": self.band, "worst": self.worst, "per_resource": dict(self.per_resource)},
            "risk": {"level": self.risk_level},
            "env": {"freeze": self.freeze, "name": self.env_name},
        }


def canonical(document: Document) -> bytes:
    """The one JSON text of a document: sorted keys, no spaces, UTF-8; raises EvaluationError where JSON has none."""
    try:
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise EvaluationError(f"the input has no JSON form: {error}") from error


class Answer(NamedTuple):
    """What an entry point is worth for one input, in any form, and the revision of the bundle that said so.

    `engine_decision_id` is the engine's own name for the evaluation, where it gives one.
    """

    value: object
    revision: str
    engine_decision_id: str = ""


class Engine(Protocol):
    """Evaluates the entry points of one bundle off the event loop."""

    @property
    def revision(self) -> str:
        """What names the bundle that decides now by its content; empty as long as an engine far away has not said."""
        ...

    @property
    def away_since_s(self) -> float | None:
        """Since when (monotonic) the engine cannot be asked, so that its bundle may have changed; None while it can."""
        ...

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        """What an entry point is worth for one input; raises EvaluationError or one of its kinds."""
        ...

    async def close(self) -> None:
        """End what the engine runs on; evaluations under way fail."""
        ...
