"""Migrations: numbered SQL files, one statement each, applied in order and remembered in the store."""

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

SCHEMA_DIRECTORY = Path(__file__).parent / "schema"
REMEMBER = """
CREATE TABLE IF NOT EXISTS schema_migrations
(version UInt32, name String, sha256 String, applied_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC'))
ENGINE = MergeTree ORDER BY version SETTINGS fsync_after_insert = 1
"""


class SchemaRefused(Exception):
    """The store's schema is not one this code may write to."""


class Migration(NamedTuple):
    """One file of the schema."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest by which an edit of an applied migration shows."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class Engine(Protocol):
    """What a migration needs of a store."""

    def execute(self, sql: str) -> None:
        """Runs one statement."""

    def select(self, sql: str) -> list[tuple[object, ...]]:
        """The rows of one statement."""


def shipped(directory: Path = SCHEMA_DIRECTORY) -> list[Migration]:
    """The migrations of this code, in order."""
    return [
        Migration(int(path.name.split("_", 1)[0]), path.stem, path.read_text(encoding="utf-8"))
        for path in sorted(directory.glob("*.sql"))
    ]


def migrate(engine: Engine, migrations: list[Migration]) -> list[str]:
    """Applies what is missing and returns its names; SchemaRefused, with nothing changed, for an unknown schema."""
    engine.execute(REMEMBER)
    done = []
    for migration in missing(engine, migrations):
        engine.execute(migration.sql)
        engine.execute(
            f"INSERT INTO schema_migrations (version, name, sha256) "  # noqa: S608 the values are file names of this code
            f"VALUES ({migration.version}, '{migration.name}', '{migration.sha256}')"
        )
        done.append(migration.name)
    return done


def missing(engine: Engine, migrations: list[Migration]) -> list[Migration]:
    """What is to be applied; SchemaRefused for a schema that was made by other files."""
    known = {migration.version: migration for migration in migrations}
    applied = {int(str(row[0])): (str(row[1]), str(row[2])) for row in _applied(engine)}
    newest = max(applied, default=0)
    if newest > max(known, default=0):
        raise SchemaRefused(f"the ledger's schema is at version {newest}, newer than this Bursar: upgrade Bursar")
    for version, (name, sha256) in applied.items():
        if version not in known or known[version].sha256 != sha256:
            raise SchemaRefused(
                f"the ledger was made with another {name}.sql: use the Bursar that made it, or a new path"
            )
    return [migration for migration in migrations if migration.version not in applied]


def _applied(engine: Engine) -> list[tuple[object, ...]]:
    return engine.select("SELECT version, name, sha256 FROM schema_migrations ORDER BY version")
