"""Bundles: what of a changed bundle counts as looser, and what deciding recorded inputs again shows of it.

That a changed policy is no looser cannot be proved by looking at it. What can be seen is whether inputs that were
decided under the old bundle are decided more weakly under the new one. It proves that much of these inputs, and nothing
of those that have not come yet; and as only admissions are kept, nothing of any other package.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from domain.decision import Decision, Obligations
from gateway.loosening_budgets import Loosening
from policy.bundle import Bundle, assemble
from policy.decision import parse
from policy.difference import ABSENT, difference
from policy.port import EngineAway, EvaluationError, Unfinished
from policy.read_elsewhere import Read, read_elsewhere

REPLAYED_MAX = 5_000
FLIPS_SHOWN_MAX = 20
# Whoever asks for a reload waits meanwhile, and so does every other reload.
REPLAY_S_MAX = 20.0
# What admissions are decided by; other packages may read some of it too.
_ADMISSION, _TERMS = ("bursar", "admission"), ("bursar", "budget", "terms")
_STEP = r"""(?:\.[^\W\d]\w*|\["(?:[^"\\]|\\.)*"\])"""
_OF_ROW = re.compile(rf"rows{_STEP}{{3}}\.([^\W\d]\w*)")
_DOMAINS = ("app", "team", "org", "shared")

Evaluate = Callable[[bytes], Awaitable[object]]


class Policies(NamedTuple):
    """The bundle that decides: its revision, and its files where they are known here."""

    revision: str
    files: Mapping[str, bytes] = {}


class Replay(NamedTuple):
    """What deciding recorded inputs again has shown; `is_whole` is false where not all of them could be decided."""

    decided: int = 0
    flips: tuple[Loosening, ...] = ()
    is_whole: bool = True

    def view(self) -> dict[str, Any]:
        """As JSON, without the flips."""
        return {"inputs_decided_again": self.decided, "looser": len(self.flips), "whole": self.is_whole}


async def replay(
    decisions: Iterable[Decision], evaluate: Evaluate, now_s: Callable[[], float] = time.monotonic
) -> Replay:
    """Decide recorded inputs again with another engine; `evaluate` gives the raw admission for one input.

    It ends at the first that takes too long, or ends the engine: another timeout or an idle machine may let that in.
    """
    flips: list[Loosening] = []
    decided = 0
    until_s = now_s() + REPLAY_S_MAX
    for decision in list(decisions)[-REPLAYED_MAX:]:
        if now_s() > until_s:
            return Replay(decided, tuple(flips), is_whole=False)
        try:
            allow, _, obligations = parse(await evaluate(decision.input_json))
        except (EngineAway, Unfinished):
            return Replay(decided, tuple(flips), is_whole=False)
        except EvaluationError:
            allow, obligations = False, Obligations()  # what cannot be decided is denied
        decided += 1
        flips += flip(decision, obligations, allow=allow)
    return Replay(decided, tuple(flips))


def flip(before: Decision, after: Obligations, *, allow: bool) -> Iterator[Loosening]:
    """In what an admission is weaker than it was."""
    path = f"admission of {subject_of(before.input_json)}"
    if allow and not before.allow:
        codes = [reason.code for reason in before.reasons]
        yield Loosening(path, f"denied: {', '.join(codes)}", "allowed", "the new bundle admits what the old one denied")
    elif allow:
        for name, old, new in weaker(before.obligations, after):
            yield Loosening(f"{path} {name}", old, new, "the new bundle obliges to less")


def weaker(before: Obligations, after: Obligations) -> Iterator[tuple[str, Any, Any]]:
    """The obligations that bind less: caps, blocked tools, checks and the cache domain.

    The others (priority, waiting, shrinking, fallbacks, sampling) say how a request is served, not what it may.
    """
    for name in ("max_input_tokens", "max_output_tokens"):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and (new is None or new > old):
            yield name, old, new
    for name in ("blocked_tools", "verify"):
        old, new = getattr(before, name), getattr(after, name)
        if not set(old) <= set(new):
            yield name, old, new
    if _DOMAINS.index(after.cache_domain) > _DOMAINS.index(before.cache_domain):
        yield "cache_domain", before.cache_domain, after.cache_domain


def bundle_loosenings(before: Policies, after: Policies, shown: Replay | None) -> list[Loosening]:
    """What counts as looser of a changed bundle; `shown` is None where what deciding again shows does not count.

    It reads two bundles, which takes a moment.
    """
    if before.revision == after.revision:
        return []
    flips = list(shown.flips[:FLIPS_SHOWN_MAX]) if shown is not None else []
    if not before.files or not after.files:
        why = "the files of one of the two bundles are not known here, so nothing can be said of what changed"
        return [*flips, Loosening("policy", before.revision, after.revision, why)]
    bundles = tuple(assemble(name, each.files) for name, each in (("before", before), ("after", after)))
    changes = list(_changes(*bundles))
    reads = [read_elsewhere(each.modules, _ADMISSION) for each in bundles]
    if shown is None:
        why = "approvals.bundle is always: every change of a bundle counts as looser"
    elif not shown.is_whole:
        why = "the recorded inputs could not all be decided again, so too little is known of what it changes"
    elif not shown.decided:
        why = "no recorded inputs could be decided again, so nothing is known of what it changes"
    elif others := [each for each in changes if not _is_recorded(each[0], each[2], reads)]:
        changes = others
        why = "only admissions are decided again, and this decides something else"
    elif shown.flips:
        why = "of the recorded inputs decided again, some are decided more weakly"
    else:
        return []
    return [*flips, *(Loosening(path, old, new, why) for path, old, new in changes)]


def _changes(before: Bundle, after: Bundle) -> Iterator[tuple[str, Any, Any]]:
    """What decides otherwise: rules by name, and values of tables; comments, tests and schemas decide nothing."""
    found = difference(before, after)
    for rule in found.rules:
        yield f"data.{rule.package}.{rule.rule}", "a rule", f"{rule.change}, {rule.file}:{rule.line}"
    for leaf in found.leaves:
        yield leaf.path, _json(leaf.before), _json(leaf.after)


def _is_recorded(path: str, after: Any, reads: Iterable[Read]) -> bool:
    """Whether nothing but admissions is decided by what is at a path, in the bundle before and in the one after."""
    for of in (_ADMISSION, _TERMS):
        prefix = f"data.{'.'.join(of)}."
        if path.startswith(prefix):
            return not any(_is_read(path.removeprefix(prefix), after, read.below(of), read.words) for read in reads)
    return False


def _is_read(rest: str, after: Any, names: frozenset[str] | None, words: frozenset[str]) -> bool:
    """Whether another package reads a rule or a table by its path in a package, of the rows only some fields.

    A tool that is blocked from now on is looser for nobody.
    """
    if not names:
        return names is None
    of_row = _OF_ROW.match(rest) if "rows" in names else None
    if of_row is not None:
        return of_row[1] in words and not (of_row[1] == "blocked_tools" and after is True)
    name = re.match(r"\w+", rest)
    return name is None or name[0] == "import" or name[0] in names


def _json(value: Any) -> Any:
    return None if value is ABSENT else value


def subject_of(input_json: bytes) -> str:
    """Whose request an input is, and for what."""
    given = orjson.loads(input_json)
    principal, intent = given["principal"], given["intent"]
    who = "/".join((principal["org"], principal["team"], principal["app"]))
    band, risk = given["budget"]["band"], given["risk"]["level"]
    return f"{who} to {intent['model']} ({intent['endpoint']}, budget {band}, risk {risk})"
