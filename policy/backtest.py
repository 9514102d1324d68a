"""What another bundle would have decided: recorded decisions against new ones, and what of them flips, added up.

Nothing here evaluates or reads: `policy/judges.py` decides recorded inputs again, and the ledger's rows say which
inputs there were and what was spent on each.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any, Literal, NamedTuple

import orjson

from domain.decision import Obligations
from policy.child import Outcome
from policy.decision import parse
from policy.port import MalformedDecision

Kind = Literal["allowed_to_denied", "denied_to_allowed", "obligations_changed"]
KINDS: tuple[Kind, ...] = ("allowed_to_denied", "denied_to_allowed", "obligations_changed")
# The kinds that `--fail-on-flip` fails on: an obligation that changes admits and refuses the same.
FLIPS: tuple[Kind, ...] = KINDS[:2]

SCOPES_MAX = 10_000
CODES_MAX = 1_000
EXAMPLES_MAX = 20
FAILURES_MAX = 20
_FAILED = "policy_unavailable"
_OTHERS = "(others)"
_OBLIGATIONS = tuple(each.name for each in fields(Obligations))


class BadRecord(ValueError):
    """A recorded decision that cannot be read; the message names it."""


class Ruling(NamedTuple):
    """What of a decision can flip. With a `failure` nothing was decided, which denies."""

    allow: bool
    codes: tuple[str, ...] = ()
    obligations: Obligations = Obligations()
    failure: str = ""


class Case(NamedTuple):
    """One distinct input, the ruling on it, and the requests and list cost in nano-USD that it stood for."""

    digest: str
    input_json: bytes
    ruling: Ruling
    requests: int = 0
    list_cost_nusd: int = 0


class Flip(NamedTuple):
    """One case that is decided otherwise; `causes` are the codes of the denial, or the obligations that changed."""

    kind: Kind
    causes: tuple[str, ...]
    case: Case
    before: Ruling
    after: Ruling


class Sums:
    """How many distinct inputs, how many requests, and their list cost in nano-USD."""

    __slots__ = ("inputs", "list_cost_nusd", "requests")

    def __init__(self) -> None:
        self.inputs = self.requests = self.list_cost_nusd = 0

    def add(self, case: Case) -> None:
        """Count one case in."""
        self.inputs += 1
        self.requests += case.requests
        self.list_cost_nusd += case.list_cost_nusd

    def view(self) -> dict[str, int]:
        """As JSON."""
        return {"inputs": self.inputs, "requests": self.requests, "list_cost_nusd": self.list_cost_nusd}


def ruling_of(outcome: Outcome) -> Ruling:
    """The ruling in what an engine answered; what failed or is no decision denies."""
    if outcome.failure:
        return Ruling(allow=False, codes=(_FAILED,), failure=outcome.failure)
    try:
        allow, reasons, obligations = parse(outcome.value)
    except MalformedDecision as error:
        return Ruling(allow=False, codes=(_FAILED,), failure=str(error))
    return Ruling(allow, tuple(dict.fromkeys(reason.code for reason in reasons)), obligations)


def recorded_ruling(digest: str, reasons: str, obligations: str, *, allow: bool) -> Ruling:
    """The ruling in the columns of a recorded decision; BadRecord."""
    try:
        codes = tuple(dict.fromkeys(str(reason["code"]) for reason in orjson.loads(reasons)))
        kept = {name: value for name, value in orjson.loads(obligations).items() if name in _OBLIGATIONS}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRecord(f"the decision recorded on the input {digest} cannot be read: {error}") from error
    named: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Ruling(allow, codes, Obligations(**named))


def flip_of(case: Case, before: Ruling, after: Ruling) -> Flip | None:
    """In what two rulings on one input differ, if in anything that can flip; two denials do not."""
    if before.allow and not after.allow:
        return Flip("allowed_to_denied", after.codes or ("(no reason)",), case, before, after)
    if after.allow and not before.allow:
        return Flip("denied_to_allowed", before.codes or ("(no reason)",), case, before, after)
    if not after.allow or before.obligations == after.obligations:
        return None
    return Flip("obligations_changed", changed_obligations(before, after), case, before, after)


def changed_obligations(before: Ruling, after: Ruling) -> tuple[str, ...]:
    """The names of the obligations that differ."""
    old, new = before.obligations, after.obligations
    return tuple(name for name in _OBLIGATIONS if getattr(old, name) != getattr(new, name))


def flips(judged: Iterable[tuple[Case, Ruling, Ruling]]) -> Iterator[Flip]:
    """Every flip among cases with the ruling before and the one after."""
    for case, before, after in judged:
        flip = flip_of(case, before, after)
        if flip is not None:
            yield flip


class Tally:
    """What flips, added up as it comes; of bounded size however many inputs and apps there are."""

    def __init__(self) -> None:
        self.all = Sums()
        self.failed = 0
        self.failures: Counter[str] = Counter()
        self.by_kind: dict[Kind, Sums] = {kind: Sums() for kind in KINDS}
        self._teams: _Scopes = {}
        self._apps: _Scopes = {}
        self._causes: dict[tuple[Kind, str], Sums] = {}
        self._examples: list[tuple[int, int, int, str, int, Flip]] = []

    def add(self, case: Case, before: Ruling, after: Ruling) -> Flip | None:
        """Count one case with the ruling before and the one after; returns what flips."""
        self.all.add(case)
        whose = whose_of(case.input_json)
        scopes = (_scope(self._teams, whose[:2]), _scope(self._apps, whose))
        for scope in scopes:
            scope.all.add(case)
        if after.failure:
            self._fail(after.failure)
        flip = flip_of(case, before, after)
        if flip is not None:
            self.by_kind[flip.kind].add(case)
            for scope in scopes:
                scope.by_kind[flip.kind].add(case)
            for cause in dict.fromkeys(flip.causes):
                self._cause(flip.kind, cause).add(case)
            self._keep(flip)
        return flip

    @property
    def flipped(self) -> int:
        """How many distinct inputs flip from allowed to denied or the reverse."""
        return sum(self.by_kind[kind].inputs for kind in FLIPS)

    def view(self) -> dict[str, Any]:
        """As JSON: totals, what flips by team, app and cause, and the flips with most requests, the largest first."""
        return {
            **self.all.view(),
            "failed": self.failed,
            "failures": [{"message": text, "inputs": count} for text, count in self.failures.most_common()],
            **{kind: sums.view() for kind, sums in self.by_kind.items()},
            "by_team": _largest(self._teams),
            "by_app": _largest(self._apps),
            "by_cause": [
                {"kind": kind, "cause": cause, **sums.view()}
                for (kind, cause), sums in sorted(self._causes.items(), key=lambda item: (_order(item[1]), item[0]))
            ],
            "examples": [
                flip_view(flip) for *_, flip in sorted(self._examples, reverse=True, key=lambda each: each[:-1])
            ],
        }

    def _fail(self, message: str) -> None:
        self.failed += 1
        is_kept = message in self.failures or len(self.failures) < FAILURES_MAX
        self.failures[message if is_kept else _OTHERS] += 1

    def _cause(self, kind: Kind, cause: str) -> Sums:
        if (kind, cause) not in self._causes and len(self._causes) >= CODES_MAX:
            cause = _OTHERS
        return self._causes.setdefault((kind, cause), Sums())

    def _keep(self, flip: Flip) -> None:
        """Keep it as an example while few have more requests; what admits or refuses anew stands before the rest."""
        case = flip.case
        weight = (int(flip.kind in FLIPS), case.requests, case.list_cost_nusd, case.digest, self.all.inputs)
        if len(self._examples) < EXAMPLES_MAX:
            heapq.heappush(self._examples, (*weight, flip))
        elif weight > self._examples[0][:-1]:
            heapq.heapreplace(self._examples, (*weight, flip))


class _Scope:
    """What is counted of one team or app."""

    __slots__ = ("all", "by_kind")

    def __init__(self) -> None:
        self.all = Sums()
        self.by_kind: dict[Kind, Sums] = {kind: Sums() for kind in KINDS}

    @property
    def flipped(self) -> Sums:
        """All kinds together."""
        whole = Sums()
        for sums in self.by_kind.values():
            whole.inputs += sums.inputs
            whole.requests += sums.requests
            whole.list_cost_nusd += sums.list_cost_nusd
        return whole


_Scopes = dict[tuple[str, ...], _Scope]


def whose_of(input_json: bytes) -> tuple[str, str, str]:
    """The org, team and app of an input, empty where it has none."""
    try:
        principal = orjson.loads(input_json)["principal"]
        return str(principal.get("org", "")), str(principal.get("team", "")), str(principal.get("app", ""))
    except (ValueError, TypeError, LookupError, AttributeError):
        return "", "", ""


def flip_view(flip: Flip) -> dict[str, Any]:
    """One flip as JSON, with its input."""
    return {
        "kind": flip.kind,
        "causes": flip.causes,
        "input_digest": flip.case.digest,
        "requests": flip.case.requests,
        "list_cost_nusd": flip.case.list_cost_nusd,
        "before": ruling_view(flip.before),
        "after": ruling_view(flip.after),
        "input": _json(flip.case.input_json),
    }


def ruling_view(ruling: Ruling) -> dict[str, Any]:
    """One ruling as JSON; of the obligations those that are not the default."""
    default = asdict(Obligations())
    obligations = {name: value for name, value in asdict(ruling.obligations).items() if value != default[name]}
    view: dict[str, Any] = {"allow": ruling.allow, "codes": ruling.codes, "obligations": obligations}
    return {**view, "failure": ruling.failure} if ruling.failure else view


def _scope(scopes: _Scopes, whose: tuple[str, ...]) -> _Scope:
    """What is counted of a team or app, or of all others once there are too many."""
    if whose not in scopes and len(scopes) >= SCOPES_MAX:
        whose = (_OTHERS, "", "")[: len(whose)]
    return scopes.setdefault(whose, _Scope())


def _largest(scopes: _Scopes) -> list[dict[str, Any]]:
    flipped = [(whose, scope) for whose, scope in scopes.items() if scope.flipped.inputs]
    flipped.sort(key=lambda item: (_order(item[1].flipped), item[0]))
    return [_scope_view(whose, scope) for whose, scope in flipped]


def _scope_view(whose: tuple[str, ...], scope: _Scope) -> dict[str, Any]:
    of_all = {f"of_{key}": value for key, value in scope.all.view().items()}
    counted: dict[str, int] = {kind: sums.inputs for kind, sums in scope.by_kind.items()}
    return {**dict(zip(("org", "team", "app"), whose, strict=False)), **counted, **scope.flipped.view(), **of_all}


def _order(sums: Sums) -> tuple[int, int, int]:
    return -sums.requests, -sums.list_cost_nusd, -sums.inputs


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return text.decode(errors="replace")
