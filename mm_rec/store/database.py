"""The database behind a URL: a SQLite file, or PostgreSQL."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from mm_rec.errors import ConfigError, needs_extra

BUSY_WAIT = 5  # seconds that a request may wait for another writer, or for a connection
_WAIT = 30  # seconds for another process that opens the same SQLite file
_CONNECT_WAIT = 10  # seconds for a PostgreSQL server to answer
_MIGRATION_LOCK = 0x6D6D726563  # "mmrec": an advisory lock of PostgreSQL


def open_engine(url: str) -> Engine:
    """The engine of a store's URL; raises ConfigError for a URL of no store."""
    forms = "write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # without its value, which may have a password in it
        raise ConfigError(f"the URL of the store cannot be read; {forms}") from error
    if parsed.get_backend_name() == "postgresql":
        return _open_postgresql(parsed)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return _open_sqlite(parsed)
    raise ConfigError(f"a store cannot be in {parsed.render_as_string(hide_password=True)}; {forms}")


def _open_postgresql(url: URL) -> Engine:
    with needs_extra("postgres", "a store in PostgreSQL"):  # SQLAlchemy imports psycopg
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,  # the database may have been restarted
            pool_timeout=BUSY_WAIT,
            connect_args={"connect_timeout": _CONNECT_WAIT, "options": f"-c lock_timeout={BUSY_WAIT}s"},
        )


def _open_sqlite(url: URL) -> Engine:
    engine = create_engine(
        url.set(drivername="sqlite"), pool_timeout=BUSY_WAIT, connect_args={"timeout": BUSY_WAIT}
    )

    @event.listens_for(engine, "connect")
    def enforce_foreign_keys(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    return engine


def is_sqlite(engine: Engine) -> bool:
    """Whether the store is a file."""
    return engine.dialect.name == "sqlite"


def file_of(engine: Engine) -> Path:
    """The file of a SQLite store."""
    return Path(engine.url.database or "")


def describe(engine: Engine) -> str:
    """The URL without the password."""
    return engine.url.render_as_string(hide_password=True)


def make_file(engine: Engine) -> None:
    """A SQLite file that only its user may read, in WAL mode, where readers and a writer do not wait for each other."""
    path = file_of(engine)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    end = time.monotonic() + _WAIT
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as error:
            # SQLite does not wait by itself for another process that makes the same change.
            if "locked" not in str(error.orig) or time.monotonic() > end:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def migration_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction to change the tables in, undone unless it is committed; other processes wait for its end."""
    with engine.connect() as connection:
        if is_sqlite(engine):
            connection.detach()  # from the pool: the next setting ends with this connection
            # A table is changed by making it anew: dropping the old one must not touch rows that refer to it.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(_WAIT * 1000)}")
            # Python's sqlite3 would begin only before the first INSERT, after tables were changed.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # however long another process takes
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        yield connection


def reason(error: Exception) -> str:
    """What went wrong, in one line, without SQLAlchemy's own remarks."""
    said = detail(error)
    if isinstance(error, SQLAlchemyError) and "database is locked" in said:
        said += ": another process writes to it, or brings it up to date; start again when that has ended"
    return said


def detail(error: Exception) -> str:
    """The words of the database itself, for the log: they may name files and hosts."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def fault(error: SQLAlchemyError) -> str:
    """What keeps a store from working, in words that a client may read."""
    said = detail(error).lower()
    known = {
        "another process keeps it locked": ("database is locked", "lock timeout"),
        "the disk is full": ("disk is full", "no space left"),
        "it may not be written": ("readonly", "read-only"),
    }
    return next(
        (words for words, signs in known.items() if any(sign in said for sign in signs)), "it does not answer"
    )
