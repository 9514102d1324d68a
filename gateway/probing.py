"""Probes: an engine that is to decide is asked first what it would be asked, and does not serve if it cannot say."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from domain.decision import Decision
from gateway.catalogue import Catalogue
from gateway.composition import bundle_of
from gateway.config_file import LoadedConfig
from gateway.keys import Key
from gateway.loosening_bundle import subject_of
from policy.bundle import load
from policy.decision import parse
from policy.lint import rule_lines
from policy.port import (
    ADMISSION,
    BundleError,
    Engine,
    EngineAway,
    EvaluationError,
    PolicyInput,
    Unfinished,
    canonical,
)

RECORDED_MAX = 200
WOULD_BE_MAX = 200
PROBE_S_MAX = 10.0


def questions(recorded: Iterable[Decision], keys: Iterable[Key], catalogue: Catalogue) -> list[bytes]:
    """What was decided last, and what the holders of keys would ask of the models; a bounded number of each."""
    lately = [each.input_json for each in list(recorded)[-RECORDED_MAX:]]
    return [*lately, *islice(_would_be(keys, catalogue), WOULD_BE_MAX)]


async def probe(engine: Engine, serving: Engine, inputs: Iterable[bytes], loaded: LoadedConfig) -> None:
    """Raises BundleError where the engine of a configuration cannot decide an input that the one in force can.

    A server that cannot be reached has nothing against it, nor has what takes long, after `PROBE_S_MAX` seconds. One
    evaluation that does not end may be the machine's fault, two are the engine's.
    """
    if engine is serving:
        return
    until_s, has_stalled = time.monotonic() + PROBE_S_MAX, False
    for input_json in inputs:
        if time.monotonic() > until_s:
            return
        failed = await _failure(engine, input_json)
        if failed is None:
            continue
        if isinstance(failed, EngineAway) and loaded.config.policy.is_remote:
            return
        if isinstance(failed, Unfinished) and not has_stalled:
            has_stalled = True
            continue
        before = await _failure(serving, input_json)
        if before is None or isinstance(before, EngineAway):
            message = f"decides nothing for {subject_of(input_json)}: {failed}"
            raise await asyncio.to_thread(_mistake, loaded, message) from failed


async def _failure(engine: Engine, input_json: bytes) -> EvaluationError | None:
    try:
        parse((await engine.evaluate(ADMISSION, input_json)).value)
    except EvaluationError as failed:
        return failed
    return None


def _would_be(keys: Iterable[Key], catalogue: Catalogue) -> Iterator[bytes]:
    who = dict.fromkeys(
        (key.org, key.team, key.app, key.roles, key.clearance)
        for key in keys
        if key.kind == "app" and key.revoked_at is None
    )
    for org, team, app, roles, clearance in who:
        for model, offer in catalogue.offers.items():
            for endpoint in sorted(offer.endpoints):
                given = PolicyInput(org, team, app, roles, clearance, endpoint, model)
                given = given._replace(env_name=catalogue.env_name, freeze=catalogue.freeze)
                yield canonical(given.document())


def _mistake(loaded: LoadedConfig, message: str) -> BundleError:
    """What is wrong with a bundle, at the rule that admits where its files are at hand."""
    if loaded.config.policy.is_remote:
        return BundleError(loaded.config.policy.url, 0, message)
    folder = bundle_of(loaded)
    try:
        file, line = rule_lines(load(folder).modules).get(ADMISSION, (str(folder), 0))
    except BundleError as error:
        return error  # it has been changed meanwhile
    return BundleError(file, line, message)
