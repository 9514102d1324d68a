"""Attribution: each step's busy time shared among the requests that it computed, by work, to the last microsecond.

Cumulative prices make a step cost the same however many requests only decode in it. A step of busy time B and work W
gives each unit of work the price B / W. The sums of the prices, and of the prices times the number of their step, are
enough to tell what a request owes for a run of steps in which its context grew by one each time; what it owes is worked
out when it joins, computes something else, or leaves. Prices are integers in units of 2**-64 microseconds, and what a
division leaves over goes to the next step, so nothing is lost: shares, what is in flight, what nobody known computed,
idle time and time of which the telemetry is lost add up to accelerators times wall time.
"""

from collections.abc import Callable

from runtime.attribution.seats import SHIFT, Owner, Prices, Rates, Seat
from runtime.attribution.shares import Reason, Share, Totals
from runtime.attribution.weights import Weights
from runtime.telemetry.records import Close, Join, Leave, Lost, Open, Record, State, Step

SEATS_MAX = 65_536
OWNERS_MAX = 131_072
# A preempted request that is aborted while it waits leaves no trace: it is gone once nobody waits, or so long after.
AWAY_US_MAX = 60_000_000
# No request took so much of anything; and the ledger's Int64 has room for it.
AMOUNT_MAX = 1 << 60
# A step is told when it is done. So long before now an engine of which nothing is told has no step under way, unless
# one takes longer than any that it has told of since it was started. One that was very long does not hold up the rest.
REST_LAG_US = 2_000_000
REST_LAG_US_MAX = 20_000_000
# Steps may overlap a little; one that begins so long before the last one ended shows that the clock was put back.
CLOCK_BACK_US = 5_000_000
_HALF = 1 << (SHIFT - 1)


class Attribution:
    """Shares out what the steps of one engine cost; give it the engine's records in order.

    `power_mw` is what an accelerator draws while it is busy, in milliwatts; it may change between records. Steps that
    ended by `account_from_us` belong to an account that another has kept: they count in shares, not in the totals.
    `key` makes of an engine's request id the name under which its answers come together. `off` is why the engine tells
    of no steps now, empty where it does. `began_us` is when the engine was started, or the oldest of its segments
    begins, and `end_us` when its last step ended since then.
    """

    def __init__(
        self,
        weights: Weights,
        accelerators: int = 1,
        power_mw: int = 0,
        account_from_us: int = 0,
        key: Callable[[str], str] = str,
    ) -> None:
        self.power_mw = power_mw
        self.accelerators = accelerators
        self.began_us = 0
        self.last_begin_us = 0
        self.off = ""
        self._weights = weights
        self._key = key
        self._account_from_us = account_from_us
        self._base: Totals | None = None if account_from_us else Totals()
        self._seats: dict[int, Seat] = {}
        self._owners: dict[str, Owner] = {}
        self._away: dict[str, None] = {}
        self._offsets = 0  # the sum over the seats
        self._step = 0
        self._rates = Rates(Prices(), Prices(), Prices())
        # Of what was given out, below a whole unit; with half of one to begin with, so that sums are the nearest.
        self._left = {"gpu": _HALF, "energy": 1_000 * _HALF, "kv": _HALF}
        self._session = ""
        self._lost_before = 0
        self._is_gap, self._was_empty = False, True
        self._until_us = 0
        self.end_us = 0  # of the last step
        self._longest_us = 0  # of the steps since the engine was started
        self._sums = dict.fromkeys(Totals._fields[1:], 0)

    @property
    def totals(self) -> Totals:
        """The account now."""
        return self._now().since(self._base) if self._base is not None else Totals(self._until_us)

    @property
    def in_flight_us(self) -> int:
        """Busy time of the requests that are not done now."""
        return self._now().in_flight_us

    @property
    def seated(self) -> int:
        """How many handles are in the batch."""
        return len(self._seats)

    @property
    def losses(self) -> int:
        """How often something was missing since the first record."""
        return self._sums["losses"]

    @property
    def accounted_us(self) -> int:
        """Up to when its time is in an account, this one or that before it."""
        return self._until_us if self._base is not None else max(self._until_us, self._account_from_us)

    @property
    def is_open(self) -> bool:
        """Whether the engine was started and has not said that it ends."""
        return bool(self._session)

    def knows(self, key: str) -> bool:
        """Whether a request is in the batch, or was preempted and may come back."""
        return key in self._owners

    def take(self, record: Record) -> list[Share]:
        """Go on with one record; returns the shares of the requests that are done by it."""
        if isinstance(record, Step):
            self._take_step(record)
            return self._gone(record) if self._away else []
        if isinstance(record, Join):
            return self._join(record)
        if isinstance(record, Leave):
            return self._leave(record)
        if isinstance(record, State):
            return self._reseat(record)
        if isinstance(record, Open):
            return self._open(record)
        if isinstance(record, Close):
            self._pass(record.unix_us)
            self._session = ""  # what comes after is in no account until the engine is started again
            return self.end()
        if isinstance(record, Lost):
            self._lose(record.missing)
        return []

    def rest(self, now_us: int) -> None:
        """Say that the engine runs and that all is known that it has told by now: without requests it was idle.

        A step is told when it is done, with those that it seats; so time counts as idle up to `REST_LAG_US` ago, or
        twice as long as its longest step, at most `REST_LAG_US_MAX`. Where a longer one turns out to have begun before,
        its busy time counts, and the idle time is that much less.
        """
        if self._session and not self._seats and not self._is_gap:
            self._pass(now_us - min(max(REST_LAG_US, 2 * self._longest_us), REST_LAG_US_MAX))

    def reweigh(self, weights: Weights) -> None:
        """Share by other weights from the next step on."""
        for seat in self._seats.values():
            seat.pay(self._rates, self._weights, self._step)
            seat.anchor(self._rates, self._step)
        self._weights = weights

    def _take_step(self, step: Step) -> None:
        sums = self._sums
        if step.begin_us < self.end_us - CLOCK_BACK_US:
            self._until_us = self.end_us = step.begin_us
        self._pass(step.end_us)
        self._step += 1
        if self._is_gap:
            sums["lost_us"] += max(0, step.begin_us - self.end_us) * self.accelerators
            self._is_gap = False
        begin_us = max(step.begin_us, self.end_us)
        busy_us = max(0, step.end_us - begin_us) * self.accelerators
        block_us = max(0, step.end_us - (begin_us if self._was_empty else self.end_us)) * step.used_blocks
        self.end_us = max(self.end_us, step.end_us)
        self._longest_us = max(self._longest_us, step.end_us - step.begin_us)
        self.last_begin_us = step.begin_us
        self._was_empty = False
        sums["busy_us"] += busy_us
        sums["energy_uj"] += busy_us * self.power_mw
        sums["kv_block_us"] += block_us
        sums["steps"] += 1
        self._price(step, busy_us, block_us)

    def _price(self, step: Step, busy_us: int, block_us: int) -> None:
        """Price the work of a step, and let those pay at once that computed other than one decoded token."""
        number, seats, weights = self._step, self._seats, self._weights
        payers: list[tuple[Seat, int, int, int]] = []
        unknown = listed_context = work = 0
        for handle, tokens in step.takes:
            seat = seats.get(handle)
            context = 0 if seat is None else seat.offset + number - 1
            of_take = weights.prefill(tokens, context)
            work += of_take
            if seat is None:
                unknown += of_take
            else:
                seat.pay(self._rates, weights, number - 1)
                payers.append((seat, tokens, context, of_take))
                listed_context += context
        decoding = len(seats) - len(payers)
        work += weights.decode(decoding, self._offsets + len(seats) * (number - 1) - listed_context)
        for _, tokens, _, _ in payers:
            self._offsets += tokens - 1
        held = self._offsets + len(seats) * number
        gpu = energy = kv = 0
        if work:
            gpu = self._rates.gpu.price(busy_us, work, number)
            energy = self._rates.energy.price(busy_us * self.power_mw, work, number)
        self._sums["unattributed_us"] += gpu * unknown if work else busy_us << SHIFT
        if unknown:
            self._sums["losses"] += 1
        if held:
            kv = self._rates.kv.price(block_us, held, number)
        for seat, tokens, context, of_take in payers:
            owner = seat.owner
            owner.gpu += gpu * of_take
            owner.energy += energy * of_take
            owner.kv += kv * (context + tokens)
            owner.prefill_tokens += tokens
            seat.offset += tokens - 1
            seat.anchor(self._rates, self._step)

    def _open(self, opened: Open) -> list[Share]:
        if opened.session == self._session:
            if opened.lost > self._lost_before:
                self._lose(opened.lost - self._lost_before)
            self._lost_before = opened.lost
            return []
        if self._base is None and opened.unix_us > self._account_from_us:
            self._base = self._now()  # what is in flight there ends in this account
        shares = self.end()  # an engine that was killed has left everyone seated
        self._session, self._lost_before = opened.session, opened.lost
        self.accelerators, self.off = opened.accelerators or self.accelerators, opened.off
        self._until_us = self.end_us = self.began_us = opened.unix_us
        self._longest_us, self._is_gap, self._was_empty = 0, False, True
        return shares

    def _join(self, join: Join) -> list[Share]:
        shares: list[Share] = []
        if join.handle in self._seats:
            self._lose(1)
            shares = self._stand_up(join.handle, "lost")
        owner = self._sit(join.handle, join.request_id, join.context_tokens)
        if owner is None:
            return shares
        if join.request_id in owner.away:
            owner.away.remove(join.request_id)
            if not owner.away:
                del self._away[owner.key]
            owner.queue_us += join.queued_us
            return shares
        owner.answers += 1
        owner.queue_us = max(owner.queue_us, join.queued_us)
        owner.prompt_tokens += join.prompt_tokens
        owner.cached_tokens += join.context_tokens
        self._sums["prompt_tokens"] += join.prompt_tokens
        self._sums["cached_tokens"] += join.context_tokens
        return shares

    def _sit(self, handle: int, name: str, context: int) -> Owner | None:
        """Seat a handle with its context; None, and its work stays unattributed, where there are too many."""
        key = self._key(name)
        owner = self._owners.get(key)
        if len(self._seats) >= SEATS_MAX or (owner is None and len(self._owners) >= OWNERS_MAX):
            self._sums["losses"] += 1
            return None
        if owner is None:
            owner = self._owners[key] = Owner(key)
        seat = self._seats[handle] = Seat(name, owner, context - self._step)
        self._offsets += seat.offset
        owner.seated += 1
        seat.anchor(self._rates, self._step)
        return owner

    def _leave(self, leave: Leave) -> list[Share]:
        seat = self._seats.get(leave.handle)
        if seat is None:
            self._sums["losses"] += 1
            return []
        owner = seat.owner
        if leave.reason == "preempted":
            owner.preemptions += 1
            owner.away.append(seat.name)
            owner.away_since_us = self.end_us
            self._away.pop(owner.key, None)
            self._away[owner.key] = None
            self._sums["preemptions"] += 1
            return self._stand_up(leave.handle, "finished")
        owner.output_tokens += leave.output_tokens
        self._sums["output_tokens"] += leave.output_tokens
        return self._stand_up(leave.handle, "finished" if leave.reason == "finished" else "aborted")

    def _stand_up(self, handle: int, reason: Reason) -> list[Share]:
        """Empty a seat; the share of its request where that was its last one and none waits to come back."""
        seat = self._seats.pop(handle)
        seat.pay(self._rates, self._weights, self._step)
        self._offsets -= seat.offset
        self._was_empty = not self._seats
        owner = seat.owner
        owner.seated -= 1
        owner.worsen(reason)
        return [] if owner.seated or owner.away else self._share(owner)

    def _reseat(self, state: State) -> list[Share]:
        """Take the batch for what a segment says it is; after a loss it is another one than what was known."""
        shares: list[Share] = []
        there = {handle: (name, context) for handle, name, context in state.batch}
        for handle, seat in list(self._seats.items()):
            if handle not in there or there[handle][0] != seat.name:
                seat.owner.is_uncertain = True
                shares += self._stand_up(handle, "lost")
        for handle, (name, context) in there.items():
            known = self._seats.get(handle)
            if known is None:
                owner = self._sit(handle, name, context)
                if owner is not None:
                    owner.is_uncertain = True
                    owner.answers += 1
            elif known.offset + self._step != context:
                known.owner.is_uncertain = True
                known.pay(self._rates, self._weights, self._step)
                self._offsets += context - self._step - known.offset
                known.offset = context - self._step
                known.anchor(self._rates, self._step)
        return shares

    def _lose(self, count: int) -> None:
        """Something is missing: the time up to the next step is not known, nor what those in the batch did in it."""
        self._sums["losses"] += count
        self._is_gap = True
        for owner in self._owners.values():
            owner.is_uncertain = True

    def end(self) -> list[Share]:
        """The session is over: whoever is still in the batch, or waits to come back, will not be heard of again."""
        shares: list[Share] = []
        for key in self._away:
            owner = self._owners[key]
            owner.away.clear()
            owner.is_uncertain = True
            owner.worsen("lost")
        self._away.clear()
        for handle, seat in list(self._seats.items()):
            seat.owner.is_uncertain = True
            shares += self._stand_up(handle, "lost")
        for owner in list(self._owners.values()):
            shares += self._share(owner)
        return shares

    def _gone(self, step: Step) -> list[Share]:
        """The shares of those that were preempted and will not come back: nobody waits any more, or it was long ago."""
        shares: list[Share] = []
        for key in list(self._away):
            owner = self._owners[key]
            if step.waiting and step.end_us - owner.away_since_us < AWAY_US_MAX:
                break
            del self._away[key]
            owner.away.clear()
            owner.worsen("aborted")
            if not owner.seated:
                shares += self._share(owner)
        return shares

    def _share(self, owner: Owner) -> list[Share]:
        """The share of one that is done; none, and its time stays unattributed, where no request could take so much."""
        del self._owners[owner.key]
        gpu_us = self._whole("gpu", owner.gpu, 1)
        share = Share(
            owner.key,
            gpu_us,
            self._whole("energy", owner.energy, 1_000),
            self._whole("kv", owner.kv, 1),
            owner.queue_us,
            owner.prompt_tokens,
            owner.cached_tokens,
            owner.prefill_tokens,
            owner.decode_tokens,
            owner.output_tokens,
            owner.answers,
            owner.preemptions,
            owner.reason,
            "at_least" if owner.is_uncertain else "exact",
            self._base is None,
        )
        if max(share.gpu_us, share.energy_uj, share.kv_block_us, share.queue_us) >= AMOUNT_MAX:
            self._sums["unattributed_us"] += gpu_us << SHIFT
            self._sums["losses"] += 1
            return []
        self._sums["attributed_us"] += gpu_us
        self._sums["uncertain"] += owner.is_uncertain
        return [share]

    def _whole(self, name: str, amount: int, unit: int) -> int:
        """The whole units of an amount; what is left goes to the next one."""
        whole, self._left[name] = divmod(amount + self._left[name], unit << SHIFT)
        return whole

    def _pass(self, now_us: int) -> None:
        """Time has passed until now; an account that begins in between begins there."""
        if self._base is None and now_us > self._account_from_us:
            self._advance(self._account_from_us)
            self._base = self._now()
        self._advance(now_us)

    def _advance(self, now_us: int) -> None:
        passed_us = max(0, now_us - self._until_us)
        self._until_us += passed_us
        self._sums["wall_us"] += passed_us
        self._sums["capacity_us"] += passed_us * self.accelerators

    def _now(self) -> Totals:
        sums = self._sums
        whole = {"unattributed_us": (sums["unattributed_us"] + _HALF) >> SHIFT, "energy_uj": sums["energy_uj"] // 1_000}
        return Totals(**{**sums, **whole, "until_us": self._until_us})
