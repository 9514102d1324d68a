"""Admission on one model: decide, route and hold, or say why not."""

from dataclasses import replace
from typing import Any, NamedTuple

from domain.decision import Decision
from domain.ids import uuid7
from domain.intent import Intent
from domain.prices import Prices
from gateway import demands, errors, rows
from gateway.catalogue import Offer
from gateway.errors import Refusal
from gateway.governance import Governance
from ledger.book import Route
from ledger.budgets import Subject
from ledger.holds import Demand, Hold, Shortfall
from ledger.journal import JournalError
from policy.port import PolicyInput
from runtime.client import RuntimeClient

US = 1_000_000


class Ask(NamedTuple):
    """One identified request: its intent, when it arrived, the columns its rows begin with, and its body once read."""

    intent: Intent
    arrived_us: int
    row: dict[str, Any]
    body: dict[str, Any] | None = None


class Admitted(NamedTuple):
    """A request that may be sent: to which runtime, as which model, up to which output cap per choice."""

    ask: Ask
    decision: Decision
    offer: Offer
    runtime: RuntimeClient
    prices: Prices
    route: Route
    hold: Hold
    members: bytes
    degraded: tuple[str, ...]
    admitted_us: int
    fallbacks: tuple[str, ...]


class Lack(NamedTuple):
    """What does not fit into the leases of this replica: it may fit the shared book."""

    route: Route
    demand: Demand


class Undecided(NamedTuple):
    """What policy has to be asked before the attempt can go on, and the runtime that it is asked for."""

    given: PolicyInput
    runtime: RuntimeClient | None


class Known(NamedTuple):
    """What policy has just answered to what an attempt left undecided."""

    given: PolicyInput
    decision: Decision
    runtime: RuntimeClient | None


def attempt(
    of: Governance, ask: Ask, model: str, known: Known | None, *, is_last: bool, is_sure: bool = True
) -> Admitted | Refusal | Lack | Undecided:
    """Try one model: its policy decision, a healthy runtime and a hold on every budget, journalled.

    Nothing in it waits, so that what it found out holds until it ends. Over a shared book an attempt that is not the
    last holds all that was asked from leases, or says what they lack; and unless `is_sure`, what is lacking here may
    be elsewhere.
    """
    intent, now_us = ask.intent, of.now_us()
    offer = of.catalogue.offers.get(model)
    refusal = _unserved(intent, offer, model)
    if refusal is not None or offer is None:
        return refusal or errors.unknown_model(model)
    runtime = known.runtime if known is not None else None
    if runtime is None or not runtime.is_healthy:
        runtime = offer.pick_runtime(intent, ask.body)
    route = of.book.route(_subject(intent, model, runtime or offer.runtimes[0]), now_us // US)
    given = of.policy_input(intent, model, route.headroom(now_us // US))
    ask.row["risk_level"] = given.risk_level
    decision = known.decision if known is not None and known.given == given else of.decider.cached(given)
    if decision is None:
        return Undecided(given, runtime)
    if offer.affinity is not None:
        offer.affinity.learn(intent.principal, decision.obligations.cache_domain)
    refusal = _forbidden(of, intent, decision) or (None if runtime else errors.unhealthy(model, decision))
    if refusal is not None or runtime is None:
        return refusal or errors.unhealthy(model, decision)
    return _hold(of, ask, Choice(decision, offer, runtime, route), now_us, is_last=is_last, is_sure=is_sure)


class Choice(NamedTuple):
    """What one attempt has settled on before it holds."""

    decision: Decision
    offer: Offer
    runtime: RuntimeClient
    route: Route


def _hold(
    of: Governance, ask: Ask, choice: Choice, now_us: int, *, is_last: bool, is_sure: bool
) -> Admitted | Refusal | Lack:
    decision, offer, runtime, route = choice.decision, choice.offer, choice.runtime, choice.route
    intent, obligations, rate = ask.intent, decision.obligations, runtime.spec.hold_rate or runtime.spec.rate
    prices = offer.prices_at(now_us // US)
    demand = demands.demand(intent, offer, obligations, prices, rate)
    hold_id = uuid7(now_us // 1000)
    row = dict(ask.row)
    # A cap must not shrink because a lease is small: only the last attempt may lower it.
    asked = demand if is_last else demand._replace(cap_min=demand.cap_max)
    hold = of.book.hold(route, asked, hold_id, row, now_us, of.hold_ttl_s)
    if isinstance(hold, Shortfall):
        if not is_last:
            return Lack(route, demand)
        if not is_sure and hold.asked <= hold.limit:
            hold = replace(hold, is_cut_off=True)
        return errors.short_of_budget(hold, now_us // US, decision)
    degraded = _degraded(intent, offer, decision, hold.cap)
    members = rows.hold(row, hold, demand, decision, prices.version, offer.model, runtime.spec.id, degraded)
    try:
        of.journal.append("hold", rows.opened(hold, now_us), members)
    except JournalError:
        of.book.void(hold_id)
        return errors.journal_unavailable(decision)
    return Admitted(
        ask, decision, offer, runtime, prices, route, hold, members, degraded, now_us, obligations.fallback_models
    )


def _subject(intent: Intent, model: str, runtime: RuntimeClient) -> Subject:
    principal = intent.principal
    return Subject(
        principal.org,
        principal.team,
        principal.app,
        principal.user,
        principal.key_id,
        intent.run.run_id,
        model,
        runtime.spec.id,
    )


def _unserved(intent: Intent, offer: Offer | None, model: str) -> Refusal | None:
    if offer is None:
        return errors.unknown_model(model)
    if intent.endpoint not in offer.endpoints:
        return errors.malformed(f"Model {model!r} does not serve {intent.endpoint}.", "model")
    context = offer.measure.context_tokens
    if intent.max_output_tokens is not None and intent.max_output_tokens > context:
        return errors.malformed(
            f"max_tokens is more than the whole context of {model!r}, {context} tokens.", "max_tokens"
        )
    return None


def _forbidden(of: Governance, intent: Intent, decision: Decision) -> Refusal | None:
    if not decision.allow:
        return errors.denied(decision, of.risks.told(intent.principal, intent.run.run_id))
    bound = decision.obligations.max_input_tokens
    if bound is not None and intent.input_bound > bound:
        return errors.too_much_input(intent.input_bound, bound, decision)
    if not of.has_room():
        return errors.journal_unavailable(decision)
    return None


def _degraded(intent: Intent, offer: Offer, decision: Decision, cap: int) -> tuple[str, ...]:
    """What the caller gets less of than it asked: each named in `x-bursar-degraded`."""
    obligations, degraded = decision.obligations, []
    if decision.is_last_known_good:
        degraded.append("policy")
    if offer.model != intent.model:
        degraded.append("model")
    if cap < offer.output_cap(intent.max_output_tokens, intent.input_bound):
        degraded.append("max_tokens")
    if obligations.blocked_tools and not set(intent.tools).isdisjoint(obligations.blocked_tools):
        degraded.append("tools")
    return tuple(degraded)
