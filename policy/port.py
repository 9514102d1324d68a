"""What the policy engines answer to: the input of a decision, the engine that evaluates it, and how it can fail.

PolicyError
├── BundleError         a bundle that cannot serve; names file and line, safe to show to its author
├── PolicyUnavailable   no decision could be made; the caller must deny (`policy_unavailable`)
└── EvaluationError     the engine failed on one input
    ├── Undefined           the entry point has no value for it
    └── MalformedDecision   the value is not a decision
"""

from typing import Any, NamedTuple, Protocol

import orjson

Document = dict[str, Any]

ADMISSION = "bursar/admission/decision"


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
    """No decision could be made, so nothing may be admitted."""


class EvaluationError(PolicyError):
    """The engine failed on one input."""


class Undefined(EvaluationError):
    """The entry point has no value for the input."""


class MalformedDecision(EvaluationError):
    """The value of the entry point is not a decision."""


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


class Engine(Protocol):
    """Evaluates the admission entry point of one bundle; `revision` names the bundle by its content."""

    @property
    def revision(self) -> str:
        """The digest of the bundle, `sha256:` and 16 hexadecimal digits."""
        ...

    def evaluate(self, document: Document) -> object:
        """What the entry point is worth for one input, in any form; raises EvaluationError or one of its kinds."""
        ...
