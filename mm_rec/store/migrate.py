"""The numbered migrations bring a store's tables from any earlier version to the newest.

A file of migrations/ is one migration, an Alembic revision. All that are due run in one transaction, in one process at
a time, so a store is of its old version or of the newest, also where a migration fails or is killed.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import sqlite3
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from mm_rec.errors import ConfigError
from mm_rec.runs.files import atomic_path, remove
from mm_rec.store.database import describe, file_of, is_sqlite, migration_transaction, reason
from mm_rec.store.tables import SavedSession, Schema, StoredResponse

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "mmrec_version"
_log = logging.getLogger(__name__)

# The columns by which versions differ that were made before versions were numbered.
_UNNUMBERED = {
    frozenset({"output_items", "session_id", "template"}): "0001",
    frozenset({"response", "session_id", "template"}): "0002",
    frozenset({"response"}): "0003",
}
_DIFFERING = frozenset().union(*_UNNUMBERED)


def migrate(engine: Engine) -> None:
    """Make the tables, or bring them to the newest version; raises ConfigError where that cannot be."""
    scripts = ScriptDirectory(str(MIGRATIONS), version_locations=[str(MIGRATIONS)])
    with migration_transaction(engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "fn": functools.partial(_steps, scripts)}
        )
        version, newest = _find_version(connection, context), scripts.get_current_head()
        if version is None:
            _run(connection, context)
        elif version != newest:
            _require_known(engine, scripts, version)
            _upgrade(connection, context, scripts, version)


def _steps(scripts: ScriptDirectory, version: tuple[str, ...], _: MigrationContext) -> list[RevisionStep]:
    """The migrations that are due, in order; asked for by Alembic."""
    due = list(scripts.iterate_revisions("head", version or "base"))
    return [MigrationStep.upgrade_from_script(scripts.revision_map, script) for script in reversed(due)]


def _run(connection: Connection, context: MigrationContext) -> None:
    with Operations.context(context):
        context.run_migrations()
    connection.commit()


def _find_version(connection: Connection, context: MigrationContext) -> str | None:
    """The version of the tables; None where there are none."""
    version: str | None = context.get_current_revision()
    if version is None and inspect(connection).has_table(Schema.__tablename__):
        return _find_unnumbered_version(connection)
    return version


def _find_unnumbered_version(connection: Connection) -> str:
    names = [StoredResponse.__tablename__, SavedSession.__tablename__]
    tables = inspect(connection).get_multi_columns(filter_names=names)
    columns = {column["name"] for table in tables.values() for column in table}
    for differing, version in _UNNUMBERED.items():
        if columns & _DIFFERING == differing:
            return version
    raise ConfigError(
        f"the store {describe(connection.engine)} has tables that no version of mmrec made; give another store with "
        "--store"
    )


def _require_known(engine: Engine, scripts: ScriptDirectory, version: str) -> None:
    if version not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigError(
            f"the store {describe(engine)} is of version {version}, written by a newer mmrec; this one knows versions "
            f"up to {scripts.get_current_head()}. Update mm-rec, or give another store with --store"
        )


def _upgrade(
    connection: Connection, context: MigrationContext, scripts: ScriptDirectory, version: str
) -> None:
    """Copy a SQLite file, and run what is due; raises ConfigError where it fails, which changes nothing."""
    store, newest, copied = describe(connection.engine), scripts.get_current_head(), ""
    try:
        if is_sqlite(connection.engine):
            copied = f" A copy of it is in {_copy_file(file_of(connection.engine), version)}."
        if context.get_current_revision() is None:
            context.stamp(scripts, version)
        _run(connection, context)
    except (SQLAlchemyError, CommandError, OSError, ValueError) as error:
        raise ConfigError(
            f"the store {store} cannot be brought from version {version} to {newest}: {reason(error)}. It is as it was."
            f"{copied} Mend that and start again, or go on with mmrec {_last_reader(scripts, version)}, the last that "
            "reads this version"
        ) from error
    _log.warning("the store %s was brought from version %s to %s.%s", store, version, newest, copied)


def _last_reader(scripts: ScriptDirectory, version: str) -> str:
    """The last mmrec whose newest version this was."""
    following = next(script for script in scripts.walk_revisions() if script.down_revision == version)
    last: str = following.module.last_reader
    return last


def _copy_file(path: Path, version: str) -> Path:
    """Copy a SQLite file beside itself, as it is now that nobody else can write to it."""
    copy = path.with_name(f"{path.name}.version-{version}")
    for left in path.parent.glob(f".{glob.escape(copy.name)}.*.tmp*"):  # by a killed process
        remove(left)
    with atomic_path(copy) as temporary:
        temporary.touch(mode=0o600)
        # A connection of its own, which reads: SQLite does not copy for one that has begun to write.
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(temporary)) as target,
        ):
            source.backup(target)
    return copy
