"""Approvals: what waits for a person's word, and who may give it.

An approval is pending until it is approved, denied or expired, once: any other move raises and changes nothing. Each
move is a `control` row, which is written before the move is made. They live in one worker's memory: whoever waited for
one is gone after a restart, and what was asked for is asked for again.

ApprovalError
├── UnknownApproval    there is none of that id here
├── IllegalMove        it has been decided, or has expired
├── SamePerson         whoever asked cannot approve
└── TooManyPending     as many wait as may wait
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from domain.ids import uuid7
from ledger.journal import JournalError

Kind = Literal["answer", "reload", "grant"]

# So many of a kind may be pending, and so many of it are remembered once they have ended: none crowds out another kind.
KIND_MAX: Mapping[Kind, int] = {"answer": 1_000, "reload": 100, "grant": 100}
# One key may have at most this part of its kind pending.
KEY_PART = 4
DETAIL_BYTES_MAX = 64 << 10
EXPIRY_PERIOD_S = 1.0


class State(StrEnum):
    """Where an approval stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"


class Move(StrEnum):
    """What can happen to an approval."""

    APPROVE = "approve"
    DENY = "deny"
    EXPIRE = "expire"


LEGAL = {
    (State.PENDING, Move.APPROVE): State.APPROVED,
    (State.PENDING, Move.DENY): State.DENIED,
    (State.PENDING, Move.EXPIRE): State.EXPIRED,
}


class ApprovalError(Exception):
    """Base of what can be wrong with a decision on an approval; every message is safe to show."""


class UnknownApproval(ApprovalError):
    """There is no approval of that id in this worker."""


class IllegalMove(ApprovalError):
    """The approval is not pending any more."""


class SamePerson(ApprovalError):
    """Whoever asked for something cannot approve it."""


class TooManyPending(ApprovalError):
    """As many approvals of a kind wait as may wait at once, or as many of one key."""


class Person(NamedTuple):
    """Whoever asks or decides: a key, the user it is of where it names one, and the keys that it descends from.

    `line` holds the key itself, the one that made it, and so on. `says` stands in rows where no key was shown.
    """

    key_id: str
    user: str = ""
    line: frozenset[str] = frozenset()
    says: str = ""

    @property
    def actor(self) -> str:
        """The person as rows name them."""
        return self.says or self.key_id

    def is_same(self, other: "Person") -> bool:
        """Whether both may be one person: by a key, by a user, or by a key that one of them has made."""
        mine, theirs = self.line | {self.key_id}, other.line | {other.key_id}
        return not mine.isdisjoint(theirs) or self.user == other.user != ""


class Ending:
    """How an approval ended, once it has: whoever holds the approval learns of it, though it is remembered no more."""

    def __init__(self) -> None:
        self.approval: Approval | None = None
        self.came = asyncio.Event()


@dataclass(frozen=True, slots=True)
class Approval:
    """Something that waits, or waited, for a person's word; times are Unix seconds.

    `digest` names exactly what is approved, and `detail` is what the decider reads. `now` is how it stands.
    """

    id: str
    kind: Kind
    subject: str
    digest: str
    detail: Mapping[str, Any]
    requested_by: Person
    requested_at: int
    expires_at: int
    state: State = State.PENDING
    decided_by: str = ""
    reason: str = ""
    ending: Ending = field(default_factory=Ending, repr=False, compare=False)

    @property
    def now(self) -> "Approval":
        """The approval as it has ended, or else this one."""
        return self.ending.approval or self

    def view(self) -> dict[str, Any]:
        """The approval as JSON."""
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "digest": self.digest,
            "detail": dict(self.detail),
            "requested_by": self.requested_by.actor,
            "requested_at": self.requested_at,
            "expires_at": self.expires_at,
            "state": str(self.state),
            "decided_by": self.decided_by,
            "reason": self.reason,
        }


class Recorder(Protocol):
    """Writes `control` rows."""

    def record(self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None) -> None: ...


class Approvals:
    """The approvals of one worker, on its event loop: those pending, and the last of those that ended."""

    def __init__(self, controls: Recorder, now_us: Callable[[], int]) -> None:
        self._controls = controls
        self._now_us = now_us
        self._pending: dict[str, Approval] = {}
        self._ended: dict[str, Approval] = {}

    def request(
        self,
        kind: Kind,
        subject: str,
        *,
        requested_by: Person,
        ttl_s: int,
        detail: Mapping[str, Any],
        digest: str = "",
    ) -> Approval:
        """A new pending approval; raises TooManyPending, and JournalError where it cannot be recorded."""
        self.expire_due()
        self._refuse_too_many(kind, requested_by)
        if len(orjson.dumps(detail)) > DETAIL_BYTES_MAX:
            raise ValueError(f"the detail of an approval may be {DETAIL_BYTES_MAX} bytes of JSON at most")
        now_us = self._now_us()
        now_s = now_us // 1_000_000
        made = Approval(uuid7(now_us // 1000), kind, subject, digest, dict(detail), requested_by, now_s, now_s + ttl_s)
        said = {"kind": kind, "subject": subject, "expires_at": made.expires_at, "detail": detail}
        self._controls.record("approval_requested", requested_by.actor, made.id, digest=digest, detail=said)
        self._pending[made.id] = made
        return made

    def get(self, approval_id: str) -> Approval:
        """The approval of that id as it stands now; raises UnknownApproval."""
        self.expire_due()
        found = self._pending.get(approval_id) or self._ended.get(approval_id)
        if found is None:
            raise UnknownApproval(
                f"there is no approval {approval_id} here: `bursar approvals` lists them, and after a restart what was "
                "asked for is asked for again"
            )
        return found

    def every(self, *, pending_only: bool = True) -> list[Approval]:
        """Those that wait, oldest first, behind the last of those that ended unless only what is pending counts."""
        self.expire_due()
        return [*(() if pending_only else self._ended.values()), *self._pending.values()]

    def pending_for(self, kind: Kind, digest: str) -> Approval | None:
        """One that already waits for exactly this."""
        self.expire_due()
        return next((each for each in self._pending.values() if (each.kind, each.digest) == (kind, digest)), None)

    async def decided(self, approval_id: str, timeout_s: float) -> Approval:
        """The approval once it is decided or has expired, or as it is after so many seconds; only `approved` is a yes.

        Raises UnknownApproval.
        """
        waited = self.get(approval_id)
        left_s = waited.expires_at - self._now_us() / 1_000_000
        with suppress(TimeoutError):
            await asyncio.wait_for(waited.ending.came.wait(), max(0.0, min(timeout_s, left_s)))
        self.expire_due()
        return waited.now

    def decide(self, approval_id: str, by: Person, *, approve: bool, reason: str = "") -> Approval:
        """Approve or deny; whoever asked may take it back but not approve it.

        Raises UnknownApproval, IllegalMove or SamePerson, and JournalError; each leaves everything as it was.
        """
        approval = self.get(approval_id)
        move = Move.APPROVE if approve else Move.DENY
        if move is Move.APPROVE and by.is_same(approval.requested_by):
            raise SamePerson(
                f"{by.actor} cannot approve what {approval.requested_by.actor} asked for: that takes an admin key of "
                "another person, which neither of the two has made"
            )
        return self._move(approval, move, by.actor, reason)

    def expire(self, approval_id: str, reason: str) -> None:
        """End an approval that nobody waits for any more; one that has ended, or cannot be recorded, stays as it is."""
        approval = self._pending.get(approval_id)
        if approval is not None:
            with suppress(JournalError):
                self._move(approval, Move.EXPIRE, "bursar", reason)

    def expire_due(self) -> None:
        """End those whose time is over; where the journal takes no row they stay, and can be decided no more."""
        now_s = self._now_us() // 1_000_000
        for approval in [each for each in self._pending.values() if each.expires_at <= now_s]:
            with suppress(JournalError):
                self._move(approval, Move.EXPIRE, "bursar", "nobody decided in time")

    async def run(self) -> None:
        """End those whose time is over, each second, for as long as the worker lives."""
        while True:
            await asyncio.sleep(EXPIRY_PERIOD_S)
            self.expire_due()

    def _refuse_too_many(self, kind: Kind, by: Person) -> None:
        of_kind = [each.requested_by.key_id for each in self._pending.values() if each.kind == kind]
        most = KIND_MAX[kind]
        if len(of_kind) >= most:
            raise TooManyPending(f"{most:,} approvals of kind {kind} are pending already: decide some of them first")
        most //= KEY_PART
        if of_kind.count(by.key_id) >= most:
            whose = f"approvals of kind {kind} that {by.actor} asked for"
            raise TooManyPending(f"{most:,} {whose} are pending already: decide some of them first")

    def _move(self, approval: Approval, move: Move, actor: str, reason: str) -> Approval:
        state = LEGAL.get((approval.state, move))
        if state is None:
            raise IllegalMove(f"approval {approval.id} is {approval.state} already: ask again for a new one")
        if move is not Move.EXPIRE and approval.expires_at <= self._now_us() // 1_000_000:
            raise IllegalMove(f"approval {approval.id} has expired: ask again for a new one")
        said = {"kind": approval.kind, "subject": approval.subject, "reason": reason}
        said["requested_by"] = approval.requested_by.actor
        self._controls.record(f"approval_{state}", actor, approval.id, digest=approval.digest, detail=said)
        moved = replace(approval, state=state, decided_by=actor, reason=reason)
        del self._pending[approval.id]
        self._remember(moved)
        moved.ending.approval = moved
        moved.ending.came.set()
        return moved

    def _remember(self, ended: Approval) -> None:
        self._ended[ended.id] = ended
        of_kind = [each.id for each in self._ended.values() if each.kind == ended.kind]
        if len(of_kind) > KIND_MAX[ended.kind]:
            del self._ended[of_kind[0]]
