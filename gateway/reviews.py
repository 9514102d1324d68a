"""Reviews: whether a reload is applied at once, or waits until a second person has agreed to what it loosens.

What is agreed to is one step, from the configuration and bundle in force to those that were read when it was asked for.
Were either of the two another one by then, nothing is applied.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog
from pydantic import ValidationError

from domain.decision import Decision
from gateway.approvals import Approval, Approvals, Person, Recorder, State
from gateway.composition import bundle_of
from gateway.config import Config
from gateway.config_file import LoadedConfig, diff
from gateway.home import Home, HomeError, write_private
from gateway.keys import Key, KeyStore
from gateway.loosening import loosenings, shown
from gateway.loosening_budgets import Loosening
from gateway.loosening_bundle import Evaluate, Policies, Replay, bundle_loosenings, replay
from policy.bundle import files_of, revision_of
from policy.port import BundleError

log = structlog.get_logger("gateway")
SHOWN_BYTES_MAX = 32 << 10
TEXT_CHARACTERS_MAX = 200
CHANGES_SHOWN_MAX = 100
SIGHUP = "SIGHUP"


class Asked(NamedTuple):
    """Who asks for a reload; `approval_id` is that of an earlier request that this person approves by asking."""

    by: Person
    approval_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """A configuration with the bundle that it is served with."""

    loaded: LoadedConfig
    policies: Policies


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reload loosens, and what is said instead of applying it; `held` is None where it may be applied."""

    loosens: tuple[Loosening, ...] = ()
    held: dict[str, Any] | None = None


def policies_of(loaded: LoadedConfig, revision: str) -> Policies:
    """The bundle of that revision with its files, where it is a folder that still holds it; reads the disk.

    An OPA server is known by its URL alone: which bundle it has is its own affair, and changes without a reload.
    """
    if loaded.config.policy.is_remote:
        return Policies(loaded.config.policy.url)
    try:
        files = files_of(bundle_of(loaded))
    except BundleError:
        return Policies(revision)
    return Policies(revision, files if revision_of(files) == revision else {})


class Reviews:
    """The second person's part in the reloads of one worker."""

    def __init__(self, approvals: Approvals, controls: Recorder, now_us: Callable[[], int]) -> None:
        self._approvals = approvals
        self._controls = controls
        self._now_us = now_us

    async def verdict(
        self, now: Applied, new: Applied, asked: Asked, decisions: Iterable[Decision], evaluate: Evaluate
    ) -> Verdict:
        """Whether a step may be taken now; `decisions` are those under the bundle in force, `evaluate` the new engine.

        Raises ApprovalError where `asked` approves a request and may not, JournalError where that cannot be recorded.
        """
        rules = now.loaded.config.approvals
        step = step_digest(now, new)
        if asked.approval_id:
            return self._approved(step, asked)
        replayed: Replay | None = None
        if rules.bundle == "flips" and now.policies.revision != new.policies.revision:
            replayed = await replay(decisions, evaluate)
        found = loosenings(now.loaded.config, new.loaded.config, self._now_us() / 1_000_000)
        # Two bundles are read, which may take longer than the event loop may stand still.
        found += await asyncio.to_thread(bundle_loosenings, now.policies, new.policies, replayed)
        if found and not rules.loosening:
            self._controls.record(
                "loosened", asked.by.actor, str(new.loaded.path), digest=new.loaded.digest, detail=_fitting(found)
            )
        if not found or not rules.loosening:
            return Verdict(tuple(found))
        approval = self._approvals.pending_for("reload", step)
        if approval is None:
            detail = _detail(now, new, found, replayed)
            path, ttl_s = str(new.loaded.path), rules.ttl_s
            approval = self._approvals.request(
                "reload", path, requested_by=asked.by, ttl_s=ttl_s, detail=detail, digest=step
            )
        log.warning("reload waits for approval", approval=approval.id, loosens=len(found))
        return Verdict(tuple(found), _held(approval, found))

    def record_undone(self, now: Applied, new: Applied, asked: Asked) -> None:
        """Record that a step is taken back, from what to what, and what of the configuration that loosens.

        Raises JournalError.
        """
        found = loosenings(now.loaded.config, new.loaded.config, self._now_us() / 1_000_000)
        self._controls.record(
            "undone",
            asked.by.actor,
            str(new.loaded.path),
            digest=new.loaded.digest,
            detail=_detail(now, new, found, None),
        )

    def _approved(self, step: str, asked: Asked) -> Verdict:
        """Approve what was asked for, if it still is what would be applied now."""
        approval = self._approvals.get(asked.approval_id)
        is_step = approval.kind == "reload" and approval.digest == step
        if approval.state is State.PENDING and not is_step:
            problem = (
                f"approval {approval.id} is for another change: the file, the bundle or what is in force has changed "
                "since it was asked for; reload again, and let that be approved"
            )
            return Verdict(held={"applied": False, "problems": [problem]})
        self._approvals.decide(approval.id, asked.by, approve=True, reason=asked.reason)
        return Verdict()


def step_digest(now: Applied, new: Applied) -> str:
    """The SHA-256 (hex) that names one step: from what is in force to what would be."""
    parts = (now.loaded.digest, now.policies.revision, new.loaded.digest, new.policies.revision)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def person_of(key_id: str, user: str, keys: KeyStore, local_key: str) -> Person:
    """The person behind a key, with the keys that it descends from; the home's own key makes those of everyone.

    `user` is whom the key is used for, as a pseudonym.
    """
    line: list[str] = []
    at = keys.get(key_id)
    while at is not None and at.key_id not in line and (at.key_id != local_key or not line):
        line.append(at.key_id)
        at = keys.get(at.made_by)
    return Person(key_id, user, frozenset(line))


def local_key(home: Home, keys: KeyStore) -> str:
    """The id of the home's own admin key, held by whoever can read the home; empty where none can be read or is valid.

    All keys that it made are then of one person.
    """
    try:
        key = keys.lookup(home.admin_secret().encode(), "admin")
    except (OSError, HomeError):
        return ""
    return key.key_id if isinstance(key, Key) else ""


def at_machine(local_key: str, says: str) -> Person:
    """Whoever sends signals to the gateway: no other than who can read the home."""
    return Person(local_key or says, line=frozenset({local_key or says}), says=says)


def remember(home: Home, replica: str, applied: Applied) -> None:
    """Keep what a gateway applies, to compare the next start with; it waits for the disk."""
    kept = {
        "digest": applied.loaded.digest,
        "policy_revision": applied.policies.revision,
        "config": applied.loaded.config.model_dump(mode="json"),
    }
    write_private(_kept_at(home, replica), json.dumps(kept).encode())


def loosened_since_last(home: Home, replica: str, applied: Applied, now_s: float) -> list[Loosening]:
    """In what a start is looser than what the same gateway applied last; nothing before the first start."""
    try:
        kept = json.loads(_kept_at(home, replica).read_bytes())
        before = Config.model_validate(kept["config"])
        digest, revision = str(kept["digest"]), str(kept["policy_revision"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        why = "what was applied last cannot be read by this version, so it cannot be told what is looser"
        return [Loosening("", None, applied.loaded.digest, why)]
    found = loosenings(before, applied.loaded.config, now_s) if digest != applied.loaded.digest else []
    if revision != applied.policies.revision:
        why = "the bundle has changed while the gateway did not run, and no inputs were decided again"
        found.append(Loosening("policy", revision, applied.policies.revision, why))
    return found


def record_start(controls: Recorder, loaded: LoadedConfig, found: list[Loosening]) -> None:
    """Record in what a start is looser than what ran before: nobody was asked."""
    if found:
        controls.record("loosened", "start", str(loaded.path), digest=loaded.digest, detail=_fitting(found))
        log.warning("looser than what ran before", loosens=len(found))


def _kept_at(home: Home, replica: str) -> Path:
    return home.path / f"applied-{replica}.json"


def _held(approval: Approval, found: list[Loosening]) -> dict[str, Any]:
    message = f"not applied: another admin must agree with `bursar approve {approval.id}`"
    loosens = {"loosens": _fitting(found), "loosens_count": len(found)}
    return {"applied": False, "message": message, "approval": approval.view(), **loosens}


def _detail(now: Applied, new: Applied, found: list[Loosening], replayed: Replay | None) -> Mapping[str, Any]:
    """What the decider reads, and the row keeps."""
    return {
        "config_digest": new.loaded.digest,
        "policy_revision": new.policies.revision,
        "from_config_digest": now.loaded.digest,
        "from_policy_revision": now.policies.revision,
        "loosens": _fitting(found),
        "loosens_count": len(found),
        "changes": diff(now.loaded.config, new.loaded.config)[:CHANGES_SHOWN_MAX],
        "replay": None if replayed is None else replayed.view(),
    }


def _fitting(found: list[Loosening]) -> list[dict[str, Any]]:
    """As many of them as JSON as a row and a reader can take; `loosens_count` says how many there are.

    What is long is cut in its middle, so that none takes the place of others.
    """
    fitting, size = [], 0
    for each in shown(found):
        cut = {name: _cut(value) for name, value in each.items()}
        size += len(orjson.dumps(cut))
        if size > SHOWN_BYTES_MAX:
            break
        fitting.append(cut)
    return fitting


def _cut(value: Any) -> Any:
    """The value, or the two ends of its text and how long it is."""
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    half = TEXT_CHARACTERS_MAX // 2
    return value if len(text) <= TEXT_CHARACTERS_MAX else f"{text[:half]}…[{len(text):,} characters]…{text[-half:]}"
