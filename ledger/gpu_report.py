"""GPU reports: where accelerator time went, how good estimates of it were, and how far budgets on it were overshot.

Where it went is a comparison of two accounts: what the samples of a runtime say, and what its requests were charged.
They must agree but for what came past Bursar; by how much they do not is the conservation error. To the one gateway
that writes samples what the others charged is foreign too: where several charge, foreign time is the most that came
past, and only what it cannot explain is an error.
"""

from typing import NamedTuple

from ledger.tables import ADJUSTED

US_PER_HOUR = 3_600_000_000
_SAMPLED = ("wall_us", "capacity_us", "busy_us", "idle_us", "lost_us", "attributed_us", "unattributed_us", "foreign_us")
_PRICED = ("busy_us", "idle_us", "unattributed_us", "foreign_us")
_CHARGED = ("gpu_us", "queue_us", "kv_block_us", "energy_uj", "list_cost_nusd", "gpu_cost_nusd", "saved_cost_nusd")


class Columns(NamedTuple):
    """The names of the columns of a report in order, and the statement whose columns are these with `_` behind."""

    names: tuple[str, ...]
    sql: str


def _seconds(column: str) -> str:
    return f"toDecimalString(toDecimal128(sum({column}), 6) / 1000000, 6)"


def _usd(column: str) -> str:
    return f"toDecimalString(toDecimal128(sum({column}), 9) / 1000000000, 9)"


_ACCOUNTS = {
    "requests": "sum(all_requests)",
    "wall_s": _seconds("all_wall_us"),
    "capacity_s": _seconds("all_capacity_us"),
    "busy_s": _seconds("all_busy_us"),
    "idle_s": _seconds("all_idle_us"),
    "lost_s": _seconds("all_lost_us"),
    "attributed_s": _seconds("all_attributed_us"),
    "unattributed_s": _seconds("all_unattributed_us"),
    "foreign_s": _seconds("all_foreign_us"),
    "charged_s": _seconds("all_gpu_us"),
    "conservation_error_percent": (
        "if(sum(all_capacity_us) = 0, NULL,"
        " round(100 * greatest(sum(all_attributed_us) - sum(all_foreign_us) - sum(all_gpu_us), sum(all_gpu_us)"
        " - sum(all_attributed_us) + if(sum(all_writers) > 1, 0, sum(all_foreign_us)), 0) / sum(all_capacity_us), 4))"
    ),
    "list_cost_usd": _usd("all_list_cost_nusd"),
    "gpu_cost_usd": _usd("all_gpu_cost_nusd"),
    "busy_usd": _usd("all_busy_nusd"),
    "idle_usd": _usd("all_idle_nusd"),
    "unattributed_usd": _usd("all_unattributed_nusd"),
    "foreign_usd": _usd("all_foreign_nusd"),
    "saved_usd": _usd("all_saved_cost_nusd"),
    "queue_s": _seconds("all_queue_us"),
    "kv_block_s": _seconds("all_kv_block_us"),
    "energy_j": _seconds("all_energy_uj"),
    "runtime_energy_j": _seconds("all_runtime_energy_uj"),
}


def accounts(usage: str, since_s: int, limit: int) -> Columns:
    """By runtime, its time as sampled beside what was charged since; `usage` selects the rows charged since then."""
    prices = {name: f"{name.removesuffix('us')}nusd" for name in _PRICED}
    # Both tables have energy: what requests were charged, and what their runtime used while it was busy.
    of_runtimes = (*_SAMPLED, *prices.values(), "runtime_energy_uj")
    # Of one runtime all rows have the same columns: those that the other table has are 0.
    charged = [
        f"sumIf(rows, status NOT IN ('refused', '{ADJUSTED}')) AS all_requests",
        "toInt64(uniqExact(writer)) AS all_writers",
        *[f"sum({name}) AS all_{name}" for name in _CHARGED],
        *[f"toInt64(0) AS all_{name}" for name in of_runtimes],
    ]
    sampled = [
        "toInt64(0) AS all_requests",
        "toInt64(0) AS all_writers",
        *[f"toInt64(0) AS all_{name}" for name in _CHARGED],
        *[f"sum({name}) AS all_{name}" for name in _SAMPLED],
        *[
            f"toInt64(sum(intDiv(toInt128({name}) * nusd_per_hour, {US_PER_HOUR}))) AS all_{price}"
            for name, price in prices.items()
        ],
        "sum(energy_uj) AS all_runtime_energy_uj",
    ]
    both = (
        f"SELECT runtime, {', '.join(charged)} FROM ({usage}) WHERE runtime != '' GROUP BY runtime"  # noqa: S608 constants of this code, here and below
        f" UNION ALL SELECT runtime, {', '.join(sampled)} FROM runtime_sample"
        f" WHERE ts >= toDateTime64({since_s}, 6, 'UTC') GROUP BY runtime"
    )
    values = ", ".join(f"{value} AS `{name}_`" for name, value in _ACCOUNTS.items())
    sql = (
        f"SELECT runtime AS `runtime_`, {values} FROM ({both}) GROUP BY runtime"  # noqa: S608
        f" ORDER BY sum(all_busy_us) DESC, runtime LIMIT {limit + 1}"
    )
    return Columns(("runtime", *_ACCOUNTS), sql)


_ESTIMATES = {
    "requests": "count()",
    "estimated_s": _seconds("estimated_us"),
    "attributed_s": _seconds("actual_us"),
    "total_error_percent": (
        "if(sum(estimated_us) = 0, NULL, round(100 * (sum(actual_us) - sum(estimated_us)) / sum(estimated_us), 2))"
    ),
    "mean_error_percent": "round(100 * avg((actual_us - estimated_us) / greatest(estimated_us, 1)), 2)",
    "error_p95_percent": (
        "round(100 * quantileExact(0.95)(abs(actual_us - estimated_us) / greatest(estimated_us, 1)), 2)"
    ),
    "over_hold": "countIf(actual_us > held_us)",
    "over_hold_max_s": "toDecimalString(toDecimal128(max(greatest(actual_us - held_us, 0)), 6) / 1000000, 6)",
    # Rounded up, so that a hold of so many times as much would have been enough.
    "hold_ratio_max": "ceil(maxOrNullIf(actual_us / held_us, held_us > 0), 2)",
}


def estimates(since_s: int, limit: int) -> Columns:
    """By runtime, the accelerator time that its attributed requests were settled at beside what they really took.

    `hold_ratio_max` is the worst of what one took over what was held for it: so many times its `hold_factor` would have
    been enough. It is null where nothing was held.
    """
    is_settlement = f"status != '{ADJUSTED}'"
    of_requests = (
        f"SELECT request_id, maxIf(runtime, {is_settlement}) AS runtime,"  # noqa: S608
        f" sumIf(gpu_us, {is_settlement}) AS estimated_us, sumIf(held_gpu_us, {is_settlement}) AS held_us,"
        f" sum(gpu_us) AS actual_us FROM usage"
        f" WHERE ts >= toDateTime64({since_s}, 6, 'UTC') AND request_id != '' GROUP BY request_id"
        f" HAVING countIf({is_settlement}) = 1 AND countIf(position(event_id, '/attributed/') > 0) > 0"
    )
    values = ", ".join(f"{value} AS `{name}_`" for name, value in _ESTIMATES.items())
    sql = (
        f"SELECT runtime AS `runtime_`, {values} FROM ({of_requests}) GROUP BY runtime"  # noqa: S608
        f" ORDER BY count() DESC, runtime LIMIT {limit + 1}"
    )
    return Columns(("runtime", *_ESTIMATES), sql)


PEAKS_SQL = """
SELECT counter, toUnixTimestamp(window_start) AS window_start_s, toString(max(running)) AS peak
FROM (
    SELECT charge.2 AS counter, charge.3 AS window_start,
           sum(charge.5) OVER (PARTITION BY counter, window_start ORDER BY ts, seq ROWS UNBOUNDED PRECEDING) AS running
    FROM usage ARRAY JOIN charges AS charge
    WHERE charge.1 = {budget:String}
)
GROUP BY counter, window_start ORDER BY max(running) DESC, counter, window_start LIMIT 20
"""
