"""A request is identified → decided → held → called → metered → settled → recorded.

`admit` takes an identified ask to a hold that is in the journal. The data plane calls the runtime and watches. `settle`
takes what it saw to a row in the journal. Each data plane is a thin shell around these two halves.
"""

from time import monotonic
from typing import NamedTuple

from domain.usage import NOTHING
from gateway import errors, metering, rows
from gateway.admission import Admitted, Ask, Known, Lack, Undecided, attempt
from gateway.errors import RATE_LIMIT_EXCEEDED, UPSTREAM_ERROR, Refusal
from gateway.governance import Governance
from gateway.metering import Observed
from ledger.book import Settlement
from ledger.journal import JournalError
from ledger.lease_keeper import FETCH_S, Fetched
from observability.metrics import NO_RUNTIME
from policy.port import PolicyUnavailable

FALLBACKS_MAX = 3
FETCHES_MAX = 8
DECISIONS_MAX = 4


class Outcome(NamedTuple):
    """How a call ended: `status` is `ok`, `failed` or `cut`; `ttft_us` counts from arrival, 0 when nothing came."""

    seen: Observed
    status: str
    http_status: int
    error_code: str = ""
    ttft_us: int = 0


async def admit(of: Governance, ask: Ask) -> Admitted | Refusal:
    """Decide and hold on the model asked or on a fallback, waiting a moment where policy says so."""
    while True:
        until_s = monotonic() + FETCH_S
        result = await _attempted(of, ask, ask.intent.model, is_last=of.keeper is None)
        if isinstance(result, Lack):
            result = await _fetched(of, ask, ask.intent.model, result, until_s)
        if isinstance(result, Refusal) and result.decision is not None and result.decision.allow:
            models = result.decision.obligations.fallback_models[:FALLBACKS_MAX]
            result = await _first_admitted(of, ask, models, until_s) or result
        if isinstance(result, Admitted) or not await _waited(of, ask, result):
            return result


async def fall_back(of: Governance, ask: Ask, failed: Admitted, refusal: Refusal) -> Admitted | Refusal:
    """Admit on the fallbacks after the model whose runtime could not be reached; `refusal` when none is left."""
    return await _first_admitted(of, ask, failed.fallbacks[:FALLBACKS_MAX], monotonic() + FETCH_S) or refusal


async def _attempted(
    of: Governance, ask: Ask, model: str, *, is_last: bool, is_sure: bool = True
) -> Admitted | Refusal | Lack:
    """Attempt one model, asking policy where its decision is not known; bands may move meanwhile, a few times."""
    known: Known | None = None
    for _ in range(DECISIONS_MAX):
        result = attempt(of, ask, model, known, is_last=is_last, is_sure=is_sure)
        if not isinstance(result, Undecided):
            return result
        try:
            known = Known(result.given, await of.decider.decide(result.given), result.runtime)
        except PolicyUnavailable as error:
            return errors.undecided(error.said)
        except JournalError:
            return errors.journal_unavailable()
    return errors.undecided("its input changed while it was evaluated")


async def _fetched(of: Governance, ask: Ask, model: str, lack: Lack, until_s: float) -> Admitted | Refusal:
    """Try again with what the shared book gives, as long as others do not take it first, and not beyond that time."""
    assert of.keeper is not None
    fetched = Fetched.UNSURE
    for _ in range(FETCHES_MAX):
        fetched = await of.keeper.fetch(lack.route, lack.demand, max(0.0, until_s - monotonic()))
        if fetched is not Fetched.READY:
            break
        result = await _attempted(of, ask, model, is_last=False)
        if not isinstance(result, Lack):
            return result
        lack, fetched = result, Fetched.UNSURE
        if monotonic() >= until_s:
            break
    last = await _attempted(of, ask, model, is_last=True, is_sure=fetched is Fetched.SHORT)
    assert not isinstance(last, Lack)
    return last


async def _first_admitted(of: Governance, ask: Ask, models: tuple[str, ...], until_s: float) -> Admitted | None:
    """The first of these models that admits; what may still stand in for it is only what follows it here."""
    for place, model in enumerate(models, start=1):
        result = await _attempted(of, ask, model, is_last=of.keeper is None)
        if isinstance(result, Lack):
            result = await _fetched(of, ask, model, result, until_s)
        if isinstance(result, Admitted):
            return result._replace(fallbacks=models[place:])
    return None


async def _waited(of: Governance, ask: Ask, refusal: Refusal) -> bool:
    """Wait for room as long as the decision allows; False when it is not worth trying again."""
    if refusal.kind is not RATE_LIMIT_EXCEEDED or refusal.decision is None:
        return False
    left_us = refusal.decision.obligations.queue_ms_max * 1000 - (of.now_us() - ask.arrived_us)
    if left_us <= 0 or not of.waiting.can_wait():
        return False
    await of.waiting.wait(min(left_us / 1e6, refusal.reset_s or left_us / 1e6))
    return True


def settle(of: Governance, admitted: Admitted, outcome: Outcome) -> Settlement | None:
    """Charge what was used and record it, once; None when this hold had been settled before."""
    ask, hold, rate = admitted.ask, admitted.hold, admitted.runtime.spec.rate
    intent, now_us = ask.intent, of.now_us()
    usage = metering.usage_of(outcome.seen, intent.input_bound, hold.cap * intent.choices, intent.choices, rate)
    charged = metering.charged(usage, admitted.prices, rate)
    settlement = of.book.settle(hold.hold_id, charged, now_us)
    if settlement is None:
        return None
    duration_us = now_us - ask.arrived_us
    more = rows.settled(settlement, usage, charged, admitted.prices, outcome, duration_us, now_us)
    if of.prompts is not None and ask.body is not None:
        domain = admitted.decision.obligations.cache_domain
        more |= of.prompts.columns(intent, domain, admitted.offer.model, ask.body)
    of.record_usage(more, hold.row, admitted.members)
    cost_nusd = max(charged.list_cost_nusd, charged.gpu_cost_nusd)
    of.noticing.settled(hold.row, intent.tools, admitted.decision.obligations.blocked_tools, outcome, cost_nusd)
    of.metrics.settled(
        intent.endpoint,
        admitted.offer.model,
        intent.principal.team,
        outcome.status,
        usage,
        charged.list_cost_nusd,
        usage.gpu_us,
        admitted.runtime.spec.id,
        duration_us,
        outcome.ttft_us,
        admitted.admitted_us - ask.arrived_us,
    )
    if settlement.crossings or settlement.overages:
        of.announce(settlement)
    of.waiting.wake()
    return settlement


def void(of: Governance, admitted: Admitted) -> None:
    """Return a hold of which nothing was sent."""
    if of.book.void(admitted.hold.hold_id) is not None:
        of.journal.append("hold", rows.moved(admitted.hold, "voided", of.now_us()))
        of.waiting.wake()


def refuse(of: Governance, ask: Ask, refusal: Refusal, *, is_callers: bool = True) -> None:
    """Record a request of a known caller that was not sent to a runtime.

    In a journal that is full it is counted only: the room left belongs to the settlements of what is open. What the
    gateway asks for itself is not the caller's, and shows nothing of it.
    """
    now_us = of.now_us()
    duration_us = now_us - ask.arrived_us
    if of.has_room():
        of.record_usage(rows.refused(ask.row, refusal, duration_us, now_us))
    if is_callers:
        of.noticing.refused(ask.row, refusal)
    row, status = ask.row, "failed" if refusal.kind.status == UPSTREAM_ERROR.status else "refused"
    of.metrics.refused(refusal.kind.code)
    of.metrics.settled(
        row["endpoint"], row["model"], row["team"], status, NOTHING, 0, 0, NO_RUNTIME, duration_us, 0, duration_us
    )
