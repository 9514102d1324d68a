"""Repeats: what became of requests with an `Idempotency-Key`, so that one that is sent again is not run again.

A name is free, running or served. One request at a time runs under it; at its end the name is served, or free again.
All of it is in memory: an answer is written to no disk, and another process knows none of these names.
"""

import hashlib
import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

from gateway import errors
from gateway.errors import Refusal

_KEY = re.compile(rb"[!-~]{1,255}")
# One large answer crowds out at most this part of the others.
_ANSWER_PART = 8


class Name(NamedTuple):
    """What makes two requests the same one: who sends it, where to, and the key they give it."""

    key_id: str
    endpoint: str
    key: bytes


class Answer(NamedTuple):
    """A whole answer of status 200, as it was sent."""

    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(slots=True, eq=False)
class Attempt:
    """A request that runs, or was served, under a name; its call says what came of it.

    `is_served` is set where it was settled as such, `answer` where that was not streamed.
    """

    name: Name
    digest: bytes
    request_id: str
    is_served: bool = False
    answer: Answer | None = None
    served_at_us: int = 0


class Repeats:
    """The attempts of one worker, those served for `ttl_us`; what is over a bound is forgotten, the oldest first.

    Over `entries_max` it is whole attempts, over `bytes_max`, which bounds the bodies of all answers together, it is
    answers only. Running attempts are live calls, and bounded as those are.
    """

    def __init__(self, entries_max: int, bytes_max: int, ttl_us: int) -> None:
        self.entries_max = entries_max
        self.bytes_max = bytes_max
        self.ttl_us = ttl_us
        self._running: dict[Name, Attempt] = {}
        self._served: OrderedDict[Name, Attempt] = OrderedDict()
        self._answered: deque[Attempt] = deque()  # those of `_served` that have an answer, in the same order
        self._bytes = 0

    def begin(self, name: Name, body: bytes, request_id: str, now_us: int) -> Attempt | Answer | Refusal:
        """An attempt to run and to `end`, or else the answer that the earlier request had, or why there is neither."""
        if _KEY.fullmatch(name.key) is None:
            return errors.malformed("Idempotency-Key must be 1 to 255 visible ASCII characters.", "idempotency-key")
        self.forget_old(now_us)
        digest = hashlib.sha256(body).digest()
        earlier = self._running.get(name) or self._served.get(name)
        if earlier is None:
            attempt = self._running[name] = Attempt(name, digest, request_id)
            return attempt
        if earlier.digest != digest:
            return errors.key_reused(earlier.request_id)
        if name in self._running:
            return errors.in_progress(earlier.request_id)
        return earlier.answer or errors.completed(earlier.request_id)

    def end(self, attempt: Attempt, now_us: int) -> None:
        """Keep an attempt that was served, and forget any other, so that its repeat runs anew."""
        del self._running[attempt.name]
        if not attempt.is_served:
            return
        attempt.served_at_us = now_us
        self._served[attempt.name] = attempt
        if attempt.answer is not None:
            self._keep(attempt, attempt.answer)
        if len(self._served) > self.entries_max:
            self._forget_oldest()

    def forget_old(self, now_us: int) -> None:
        """Forget what was served longer ago than `ttl_us`."""
        while self._served and next(iter(self._served.values())).served_at_us <= now_us - self.ttl_us:
            self._forget_oldest()

    def _keep(self, attempt: Attempt, answer: Answer) -> None:
        if len(answer.body) > self.bytes_max // _ANSWER_PART:
            attempt.answer = None
            return
        self._answered.append(attempt)
        self._bytes += len(answer.body)
        while self._bytes > self.bytes_max:
            self._drop_oldest_answer()

    def _forget_oldest(self) -> None:
        _, attempt = self._served.popitem(last=False)
        if attempt.answer is not None:
            self._drop_oldest_answer()

    def _drop_oldest_answer(self) -> None:
        attempt = self._answered.popleft()
        assert attempt.answer is not None
        self._bytes -= len(attempt.answer.body)
        attempt.answer = None
