"""`bursar policy shadow report`: what the shadow bundle decided beside the one in force."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, console, counted, print_json
from gateway.cli.policy_backtest import case_of
from gateway.cli.policy_flips import print_flips, tallied
from gateway.cli.store import ledger_of
from ledger import decisions
from ledger.reports import DEFAULT_SINCE, moment
from policy.backtest import Case, Ruling, Tally, recorded_ruling
from policy.judges import Judged
from policy.port import ADMISSION

_SLICE = 1_000
_REVISIONS_MAX = 100


def report(
    since: Annotated[str, typer.Option(help="What the shadow decided since when: 7d, or a date.")] = DEFAULT_SINCE,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add up in what the recorded decisions of the shadow differ from those in force; of each input, the last ones."""
    start = moment(since, datetime.now(UTC))
    revisions: Counter[tuple[str, str]] = Counter()
    with ledger_of(home, config) as client:
        client.flush()
        found = decisions.shadowed_count(client, ADMISSION, start)
        tally = tallied(_judged(decisions.shadowed(client, ADMISSION, start, found), revisions), found)
    pairs = [{"enforced": old, "shadow": new, "inputs": count} for (old, new), count in revisions.most_common()]
    if as_json:
        print_json({"since": start.isoformat(), "revisions": pairs, **tally.view()})
        return
    _print(tally, pairs, start)


def _print(tally: Tally, pairs: list[dict[str, Any]], start: datetime) -> None:
    if not pairs:
        console().print(
            f"no shadow has decided anything since {start:%Y-%m-%d %H:%M} UTC: set policy.shadow to a bundle; where it "
            "is set, it may have failed on every input, which bursar_policy_shadow_failures_total counts",
            markup=False,
            soft_wrap=True,
        )
        return
    print_flips(tally)
    for pair in pairs:
        said = f"{pair['shadow']} in the shadow of {pair['enforced']}: {counted(pair['inputs'], 'input')}"
        console().print(brief(said), markup=False)


def _judged(rows: Iterator[dict[str, Any]], revisions: Counter[tuple[str, str]]) -> Iterator[list[Judged]]:
    """The rows as slices of rulings, those in force before those of the shadow, and which revisions made them."""
    current: list[Judged] = []
    for row in rows:
        pair = (row["enforced_revision"], row["shadow_revision"])
        if pair in revisions or len(revisions) < _REVISIONS_MAX:
            revisions[pair] += 1
        case = case_of(row)
        current.append(Judged(case, case.ruling, _shadow_ruling(case, row)))
        if len(current) >= _SLICE:
            yield current
            current = []
    if current:
        yield current


def _shadow_ruling(case: Case, row: dict[str, Any]) -> Ruling:
    return recorded_ruling(
        case.digest, row["shadow_reasons"], row["shadow_obligations"], allow=bool(row["shadow_allow"])
    )
