"""Rollups: what `usage` adds up to by minute, hour and day, kept equal to it.

Materialized views fill them while `usage` is inserted, each level from the one before. An insert that is retried under
its token goes on where it was cut, in the views too. What no retry comes for, such as a batch whose inserting process
was killed between the table and a view, or a rollup that was lost or has just been made, shows as days in which a level
counts other rows than its source; there the difference is inserted, so that doing it twice does nothing.
"""

from typing import NamedTuple, Protocol

DIMENSIONS = ("writer", "org", "team", "app", "model", "runtime", "status")
SUMS = (
    *("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("gpu_us", "queue_us", "duration_us", "list_cost_nusd", "gpu_cost_nusd", "saved_cost_nusd"),
    *("kv_block_us", "energy_uj"),
)


class Level(NamedTuple):
    """One rollup: its table, where its rows come from, and the expressions for a source row's time and count."""

    table: str
    source: str
    time: str
    start_of: str
    rows: str


LEVELS = (
    Level("usage_by_minute", "usage", "ts", "toStartOfMinute", "1"),
    Level("usage_by_hour", "usage_by_minute", "time", "toStartOfHour", "rows"),
    Level("usage_by_day", "usage_by_hour", "time", "toStartOfDay", "rows"),
)


class Engine(Protocol):
    """What this needs of a store."""

    def execute(self, sql: str, **parameters: object) -> None:
        """Runs one statement; `parameters` fill its `{name:Type}`."""

    def select(self, sql: str, **parameters: object) -> list[tuple[object, ...]]:
        """The rows of one statement."""


def mend(engine: Engine, writer: str) -> int:
    """Makes the rollups of a writer's rows equal to them again and returns how many days of a level were not.

    Nothing may insert rows of that writer meanwhile. What other writers are doing does no harm.
    """
    mended = 0
    for level in LEVELS:
        for (month,) in engine.select(_UNEQUAL_MONTHS[level.table], writer=writer):
            for (day,) in engine.select(_UNEQUAL_DAYS[level.table], writer=writer, month=month):
                engine.execute(_DIFFERENCE[level.table], writer=writer, day=str(day))
                mended += 1
    return mended


# One writer's surplus must not make up for what another lacks, so this reads the column of writers.
def _unequal_months(level: Level) -> str:
    count = "toInt64(count())" if level.rows == "1" else f"sum({level.rows})"
    where = "WHERE writer = {writer:String} GROUP BY partition"
    return (
        f"SELECT partition FROM (SELECT _partition_id AS partition, {count} AS more FROM {level.source} "  # noqa: S608 constants of this file, here and below
        f"{where} UNION ALL SELECT _partition_id AS partition, -sum(rows) AS more FROM {level.table} "
        f"{where}) GROUP BY partition HAVING sum(more) != 0 ORDER BY partition"
    )


def _unequal_days(level: Level) -> str:
    where = "WHERE writer = {writer:String} AND _partition_id = {month:String} GROUP BY day"
    return (
        f"SELECT day FROM (SELECT toDate({level.time}) AS day, sum(toInt64({level.rows})) AS more FROM {level.source} "  # noqa: S608
        f"{where} UNION ALL SELECT toDate(time) AS day, -sum(rows) AS more FROM {level.table} {where}) "
        "GROUP BY day HAVING sum(more) != 0 ORDER BY day"
    )


def _difference(level: Level) -> str:
    keys, names = ", ".join(DIMENSIONS), ("rows", *SUMS)
    had = ", ".join([f"toInt64({level.rows}) AS more_rows", *(f"{name} AS more_{name}" for name in SUMS)])
    has = ", ".join(f"-{name} AS more_{name}" for name in names)
    sums = ", ".join(f"sum(more_{name}) AS sum_{name}" for name in names)
    where = "WHERE writer = {{writer:String}} AND {0} >= {{day:Date}} AND {0} < {{day:Date}} + INTERVAL 1 DAY"
    return (
        f"INSERT INTO {level.table} (time, {keys}, {', '.join(names)}) "  # noqa: S608
        f"SELECT at, {keys}, {sums} FROM ("
        f"SELECT toDateTime({level.start_of}({level.time}), 'UTC') AS at, {keys}, {had} FROM {level.source} "
        f"{where.format(level.time)} UNION ALL "
        f"SELECT time AS at, {keys}, {has} FROM {level.table} {where.format('time')}) "
        f"GROUP BY at, {keys} HAVING {' OR '.join(f'sum_{name} != 0' for name in names)}"
    )


_UNEQUAL_MONTHS = {level.table: _unequal_months(level) for level in LEVELS}
_UNEQUAL_DAYS = {level.table: _unequal_days(level) for level in LEVELS}
_DIFFERENCE = {level.table: _difference(level) for level in LEVELS}
