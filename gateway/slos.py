"""SLOs as they stand: each measured in the ledger, and shown to people, policies and gates."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from domain.amounts import MILLION
from ledger.slo import QUANTILES, Objective, Status, assess, burn_milli, measured, question

# What is in the journal should be in the ledger within a second; one that takes longer is behind, and says so.
FLUSH_S = 10.0
_SPANS = (("d", 86_400), ("h", 3_600), ("m", 60))


class Ledger(Protocol):
    """What measuring needs of the ledger process's client."""

    def flush(self, timeout_s: float) -> Any:
        """Waits until all that is in the journals now is in the ledger. LedgerUnavailable, QueryFailed if not."""

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        """The rows of one statement. LedgerUnavailable, QueryFailed."""


def measure(ledger: Ledger, objectives: Iterable[Objective], now_s: int) -> list[Status]:
    """How objectives stand at a Unix second, everything in the journals counted. LedgerUnavailable, QueryFailed."""
    ledger.flush(FLUSH_S)
    found = []
    for objective in objectives:
        asked = question(objective, now_s)
        [row] = ledger.rows(asked.sql, **asked.parameters)
        found.append(assess(objective, measured(row)))
    return found


def policy_input(statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """SLOs as the policies of changes and releases see them; one without data has nothing left."""
    return [
        {
            "id": status.objective.id,
            "remaining_permille": status.remaining_permille,
            "fast_burn_milli": status.fast_burn_milli,
            "slow_burn_milli": status.slow_burn_milli,
            "state": status.state,
        }
        for status in statuses
    ]


def status_view(status: Status) -> dict[str, Any]:
    """One SLO as JSON: integers only, ratios in millionths or thousandths, times in microseconds."""
    objective, found = status.objective, status.measured
    ppm, window = objective.objective_ppm, found.window
    return {
        "id": objective.id,
        "owner": objective.owner,
        "scope": dict(objective.scope),
        "kind": objective.kind,
        "threshold_us": objective.threshold_us or None,
        "objective_ppm": ppm,
        "window_s": objective.window_s,
        "events": window.total,
        "good": window.good,
        "good_ppm": window.good * MILLION // window.total if window.total else None,
        "state": status.state,
        "why": status.why,
        "remaining_permille": status.remaining_permille,
        "fast_burn_milli": status.fast_burn_milli,
        "slow_burn_milli": status.slow_burn_milli,
        "burns_milli": {
            name: burn_milli(getattr(found, name), ppm)
            for name in ("fast_long", "fast_short", "slow_long", "slow_short")
        },
        **_quantiles(found.quantiles_us),
    }


def status_row(status: Status) -> dict[str, Any]:
    """One SLO as a line of a table, in the units of its configuration; nothing is said of what is not known."""
    objective, window = status.objective, status.measured.window
    is_known = status.state != "no_data"
    times = status.measured.quantiles_us
    return {
        "id": objective.id,
        "scope": ", ".join(f"{dimension}={value}" for dimension, value in objective.scope) or "all",
        "promise": promise(objective),
        "events": window.total,
        "good": percent(window.good, window.total) if window.total else None,
        "left": percent(status.remaining_permille, 1_000, 1) if is_known else None,
        "fast": _burn(status.fast_burn_milli) if is_known else None,
        "slow": _burn(status.slow_burn_milli) if is_known else None,
        "p50 / p95 / p99 ms": " / ".join(f"{each / 1_000:.1f}" for each in times) if times else None,
        "state": status.state,
    }


def promise(objective: Objective) -> str:
    """What an objective promises, in a line: `99% ttft <= 800 ms over 28d`."""
    share = f"{objective.objective_ppm / (MILLION // 100):.4f}".rstrip("0").rstrip(".")
    timed = f" <= {_milliseconds(objective.threshold_us)} ms" if objective.threshold_us else ""
    return f"{share}% {objective.kind}{timed} over {span(objective.window_s)}"


def span(length_s: int) -> str:
    """A length of time as the configuration may write it: in whole days, else hours, else minutes."""
    unit, unit_s = next(each for each in _SPANS if length_s % each[1] == 0)
    return f"{length_s // unit_s}{unit}"


def percent(part: int, whole: int, decimals: int = 3) -> str:
    """A part in percent, rounded down: what is not all good never looks so."""
    scaled = part * 100 * 10**decimals // whole
    whole_part, rest = divmod(scaled, 10**decimals)
    return f"{whole_part}.{rest:0{decimals}d}%"


def _burn(burn: int) -> str:
    return f"{burn / 1_000:.1f}x"


def _milliseconds(time_us: int) -> str:
    return f"{time_us / 1_000:.3f}".rstrip("0").rstrip(".")


def _quantiles(times_us: Sequence[int] | None) -> dict[str, int | None]:
    names = [f"p{round(quantile * 100)}_us" for quantile in QUANTILES]
    return dict(zip(names, times_us or (None,) * len(names), strict=True))
