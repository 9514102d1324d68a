"""Kept answers: finished, charged, and withheld until a person says whether they may be released; in memory only.

Each is kept with its approval, so that what was said of it lasts as long as the answer does.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from domain.intent import Principal
from gateway import errors
from gateway.approvals import Approval, Approvals, State
from gateway.errors import Refusal
from gateway.replies import Headers

US = 1_000_000
# One large answer crowds out at most this part of the others.
_ANSWER_PART = 4


class KeptAnswer(NamedTuple):
    """A whole answer as it would have been sent, with its approval, whose it is and when it is forgotten."""

    approval: Approval
    principal: Principal
    headers: Headers
    body: bytes
    expires_us: int

    def is_of(self, principal: Principal) -> bool:
        """Whether that key may fetch it: the one that the request came with."""
        return self.principal.key_id == principal.key_id


class KeptAnswers:
    """The withheld answers of one worker by the id of their approval.

    Over a bound the oldest of the key that takes up most of it is forgotten first, so that one key crowds out no other.
    """

    def __init__(self, entries_max: int, bytes_max: int, ttl_s: int) -> None:
        self.entries_max = entries_max
        self.bytes_max = bytes_max
        self.ttl_s = ttl_s
        self._kept: OrderedDict[str, KeptAnswer] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def can_keep(self, size_bytes: int) -> bool:
        """Whether an answer is small enough to be kept at all."""
        return size_bytes <= self.bytes_max // _ANSWER_PART

    def put(self, approval: Approval, principal: Principal, headers: Headers, body: bytes, now_us: int) -> list[str]:
        """Keep an answer that `can_keep` allows; the ids of the approvals whose answers it crowds out."""
        self._forget_old(now_us)
        self._kept[approval.id] = KeptAnswer(approval, principal, headers, body, now_us + self.ttl_s * US)
        self._bytes += len(body)
        crowded_out: list[str] = []
        while len(self._kept) > self.entries_max:
            crowded_out.append(self._crowd_out(lambda answer: 1))
        while self._bytes > self.bytes_max:
            crowded_out.append(self._crowd_out(lambda answer: len(answer.body)))
        return crowded_out

    def get(self, approval_id: str, now_us: int) -> KeptAnswer | None:
        """The answer that waits, or waited, for this approval, unless it has been forgotten."""
        self._forget_old(now_us)
        return self._kept.get(approval_id)

    def forget(self, approval_id: str) -> None:
        """Keep it no longer; nothing where it is not kept."""
        answer = self._kept.pop(approval_id, None)
        if answer is not None:
            self._bytes -= len(answer.body)

    def _crowd_out(self, size: Callable[[KeptAnswer], int]) -> str:
        taken: dict[str, int] = {}
        for answer in self._kept.values():
            key_id = answer.principal.key_id
            taken[key_id] = taken.get(key_id, 0) + size(answer)
        most = max(taken, key=lambda key_id: taken[key_id])
        oldest = next(name for name, answer in self._kept.items() if answer.principal.key_id == most)
        self.forget(oldest)
        return oldest

    def _forget_old(self, now_us: int) -> None:
        while self._kept and next(iter(self._kept.values())).expires_us <= now_us:
            self.forget(next(iter(self._kept)))


# What became of a withheld answer, for whoever asks: the answer, the approval that is pending, or why there is neither.
Fetch = Callable[[str, Principal], KeptAnswer | Approval | Refusal]


def nothing_withheld(approval_id: str, principal: Principal) -> KeptAnswer | Approval | Refusal:
    """Where no answer ever waits for a person."""
    return errors.unknown_approval(approval_id)


def reading(kept: KeptAnswers, now_us: Callable[[], int]) -> Callable[[str], bytes | None]:
    """What the person who is asked reads: the answer under an approval, or None."""

    def read(approval_id: str) -> bytes | None:
        answer = kept.get(approval_id, now_us())
        return None if answer is None else answer.body

    return read


def fetching(kept: KeptAnswers, approvals: Approvals, now_us: Callable[[], int]) -> Fetch:
    """Fetches from what is kept, by what persons have said."""

    def fetch(approval_id: str, principal: Principal) -> KeptAnswer | Approval | Refusal:
        answer = kept.get(approval_id, now_us())
        if answer is None or not answer.is_of(principal):
            return errors.unknown_approval(approval_id)
        approvals.expire_due()
        approval = answer.approval.now
        if approval.state is State.PENDING:
            return approval
        if approval.state is State.APPROVED:
            return answer
        kept.forget(approval_id)
        return errors.not_approved(approval_id, approval.state, approval.reason)

    return fetch
