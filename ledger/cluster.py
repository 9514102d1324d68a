"""The schema for a ClickHouse cluster: each shipped migration, for shards of replicas.

Every table becomes `<name>_local`, replicated on its shard, and a Distributed table of its own name that statements and
inserts are sent to. Views stand on the shards, from local table to local table. Rows of an organisation share a shard,
and so do the events of a writer, so that its chain is on one; each insert is done when its shard has it, and a shard
knows its token when it comes again.
"""

import re
from collections.abc import Iterator, Sequence

from ledger.migrations import REMEMBER, Migration

SHARDED_BY_WRITER = ("events",)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)\s*(\(.*?\n?\))\s*ENGINE = (\w*)MergeTree\b(.*)", re.DOTALL)
_VIEW = re.compile(
    r"CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO (\w+) AS\n(.*)\nFROM (\w+) AS source\n(.*)", re.DOTALL
)
_COLUMN = re.compile(r"ALTER TABLE (\w+)\s+(ADD COLUMN IF NOT EXISTS .*)", re.DOTALL)
_SETTING = re.compile(r"ALTER TABLE (\w+) (MODIFY SETTING .*)", re.DOTALL)
_CODEC = re.compile(r" CODEC\([^()]*(?:\([^()]*\)[^()]*)*\)")
# Of tables that stand alone; a replicated one remembers tokens of its own.
_WINDOW = "non_replicated_deduplication_window"
_HEAD = """\
-- Bursar's ledger on the cluster {0}: run it in the ledger's database, on any node, then give Bursar the URL of one.
-- The cluster's shards must have <internal_replication>true</internal_replication>, and each node its macros {{shard}}
-- and {{replica}}. Run it again after an upgrade of Bursar: what is there already stays.
"""


class BadCluster(ValueError):
    """No name of a cluster."""


def rendered(migrations: Sequence[Migration], cluster: str) -> str:
    """All statements for a cluster of this name, each ended by a semicolon; BadCluster."""
    if not _NAME.fullmatch(cluster):
        raise BadCluster(f"{cluster!r} is not the name of a cluster: letters, digits, - and _, at most 64")
    return _HEAD.format(cluster) + "".join(f"\n{statement};\n" for statement in statements(migrations, cluster))


def statements(migrations: Sequence[Migration], cluster: str) -> Iterator[str]:
    """The statements one by one, those last by which Bursar knows what has been applied."""
    on = f"ON CLUSTER '{cluster}'"
    for migration in migrations:
        yield from _of_cluster(_COMMENT.sub("", migration.sql).strip(), on, cluster)
    name, columns, _, rest = _parts(_TABLE, REMEMBER.strip())
    # The same rows on every node of every shard.
    engine = "ReplicatedMergeTree('/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}')"
    yield f"CREATE TABLE IF NOT EXISTS {name} {on}\n{columns}\nENGINE = {engine}{rest}"
    for migration in migrations:
        # Under the token the row is inserted once, however often all of this is run.
        yield (
            f"INSERT INTO {name} (version, name, sha256) SETTINGS insert_deduplication_token = '{migration.sha256}' "  # noqa: S608 names of this code
            f"VALUES ({migration.version}, '{migration.name}', '{migration.sha256}')"
        )


def _of_cluster(sql: str, on: str, cluster: str) -> Iterator[str]:
    if _TABLE.fullmatch(sql):
        name, columns, kind, rest = _parts(_TABLE, sql)
        key = "writer" if name in SHARDED_BY_WRITER or "\n    org " not in columns else "org"
        engine = f"Replicated{kind}MergeTree('/clickhouse/tables/{{shard}}/{{database}}/{{table}}', '{{replica}}')"
        rest = rest.replace(_WINDOW, "replicated_deduplication_window")
        yield f"CREATE TABLE IF NOT EXISTS {name}_local {on}\n{columns}\nENGINE = {engine}{rest}"
        distributed = f"Distributed('{cluster}', currentDatabase(), {name}_local, cityHash64({key}))"
        yield f"CREATE TABLE IF NOT EXISTS {name} {on} AS {name}_local\nENGINE = {distributed}"
    elif _VIEW.fullmatch(sql):
        name, target, select, source, rest = _parts(_VIEW, sql)
        to = f"{name}_local {on} TO {target}_local"
        yield f"CREATE MATERIALIZED VIEW IF NOT EXISTS {to} AS\n{select}\nFROM {source}_local AS source\n{rest}"
    elif _COLUMN.fullmatch(sql):
        name, change = _parts(_COLUMN, sql)
        yield f"ALTER TABLE {name}_local {on} {change}"
        yield f"ALTER TABLE {name} {on} {_CODEC.sub('', change)}"
    else:
        name, change = _parts(_SETTING, sql)
        yield f"ALTER TABLE {name}_local {on} {change}"


def _parts(shape: re.Pattern[str], sql: str) -> tuple[str, ...]:
    match = shape.fullmatch(sql)
    assert match is not None, f"no statement for a cluster: {sql}"
    return match.groups()
