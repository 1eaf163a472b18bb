"""Stores of every earlier version, in both databases, are brought to today's; what fails or is killed loses nothing.

stores/ has what the mmrec of each version wrote: its tables, and rows of every kind.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from serving.processes import release, start
from sqlalchemy import Connection, MetaData, create_engine, inspect, make_url, text
from sqlalchemy.exc import IntegrityError
from waiting import LONGEST

from mm_rec.errors import ConfigError
from mm_rec.store import database, migrate
from mm_rec.store.store import Store
from mm_rec.store.tables import Base

STORES = Path(__file__).parent / "stores"
VERSIONS = sorted({path.name[:4] for path in STORES.glob("*.sql")})
SCRIPTS = ScriptDirectory(str(migrate.MIGRATIONS), version_locations=[str(migrate.MIGRATIONS)])
NEWEST = str(SCRIPTS.get_current_head())
TOY = f"""
from alembic import op
revision, down_revision, last_reader = "toy", "{NEWEST}", "0.2.0"
def upgrade():
    op.execute("INSERT INTO mmrec_usage VALUES ('toy', '2026-01-01', 1, 0, 0)")
"""
Opener = Callable[[str], Store]
Schema = dict[str, dict[str, Any]]
MINE = "key_00000000000000000000000000000001"


def write_store(url: str, version: str) -> None:
    """Write a store as the mmrec of a version left it."""
    script = (STORES / f"{version}.{make_url(url).get_backend_name()}.sql").read_text("utf-8")
    if url.startswith("sqlite"):
        file_of(url).parent.mkdir(exist_ok=True)
        with contextlib.closing(sqlite3.connect(file_of(url))) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(script)
    else:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute(script.encode())


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@contextlib.contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def rows_of(url: str) -> dict[str, list[str]]:
    """All that is in a database, by table."""
    with connected(url) as connection:
        tables = inspect(connection).get_table_names()
        return {name: sorted(map(str, connection.execute(text(f"SELECT * FROM {name}")))) for name in tables}


def schema_of(url: str) -> Schema:
    """All that is known of the tables, in no order; without the one that Alembic makes by itself."""
    with connected(url) as connection:
        inspector = inspect(connection)
        return {
            table: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["default"])
                    for column in inspector.get_columns(table)
                },
                "key": inspector.get_pk_constraint(table),
                "foreign keys": sorted(map(str, inspector.get_foreign_keys(table))),
                "unique": sorted(map(str, inspector.get_unique_constraints(table))),
                "indexes": sorted(map(str, inspector.get_indexes(table))),
            }
            for table in inspector.get_table_names()
            if table != migrate.VERSION_TABLE
        }


def drop_tables(url: str) -> None:
    with connected(url) as connection:
        found = MetaData()
        found.reflect(connection)
        found.drop_all(connection)


def version_of(url: str) -> str:
    with connected(url) as connection:
        return str(connection.scalar(text(f"SELECT version_num FROM {migrate.VERSION_TABLE}")))


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of migrations, for a test to change, in place of the folder itself."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    return folder


def test_every_earlier_version_is_tested() -> None:
    versions = {script.revision for script in SCRIPTS.walk_revisions()}
    assert {*VERSIONS, NEWEST} == versions, "what the version before wrote belongs into stores/"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_an_earlier_version_is_brought_to_the_newest(
    url: str, opened: Opener, version: str
) -> None:
    write_store(url, version)
    before = rows_of(url)
    store = opened(url)
    assert version_of(url) == NEWEST
    after = rows_of(url)
    for table in before.keys() - {migrate.VERSION_TABLE}:
        assert len(after[table]) == len(before[table])
    assert after["mmrec_api_keys"] == before["mmrec_api_keys"]
    assert after["mmrec_usage"] == before["mmrec_usage"]
    assert after["mmrec_schema"] == ["(2,)"]  # which an mmrec of before these versions refuses
    if url.startswith("sqlite"):
        with connected(url) as connection:
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
            assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    check_rows(store)
    made = store.create_response(MINE, f"resp_{'f' * 32}", model="m", input_items=[], response={})
    assert made.number == 4, "rows are counted on"


def check_rows(store: Store) -> None:
    """A store has what each of stores/ has."""
    other, mine = store.list_keys()
    assert (mine.id, mine.name, mine.tokens_per_day, mine.revoked) == (MINE, "Ayşe", 100_000, None)
    assert (other.name, other.revoked) == ("Işık", 1_795_000_004)
    used = store.usage(MINE, date(2026, 11, 21))
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (2, 2**33 + 7, 10)
    [session] = store.list_sessions(MINE).rows
    assert (session.name, session.length, session.file_name) == ("tiny:poet", 7, f"{1:032x}.safetensors")
    assert store.session_files() == {f"{number:032x}.safetensors" for number in (1, 2)}
    [second, first] = store.list_responses(MINE).rows
    assert [row.id for row in store.response_chain(MINE, second.id)] == [first.id, second.id]
    [asked], [called] = first.input_items, first.response["output"]
    said = "Ankara'da hava nasıl? ığüşöç İ 🙂 ' \" \0 \ud800"
    assert asked["content"] == [{"type": "input_text", "text": said}] and asked["status"] == "completed"
    assert (called["name"], called["arguments"]) == ("weather", '{"city": "Ankara"}')
    [result], [message] = second.input_items, second.response["output"]
    assert (result["call_id"], result["output"], result["status"]) == ("call_1", "12°", "completed")
    assert message["content"][0]["text"] == "On iki derece."
    for row in (first, second):
        shown = row.response
        assert (shown["id"], shown["object"], shown["status"]) == (row.id, "response", "completed")
        assert (shown["previous_response_id"], shown["model"]) == (row.previous_response_id, "tiny")
    [cut] = store.list_responses(None).rows
    assert cut.response["status"] == "incomplete"
    assert cut.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["content"][0]["text"] for item in cut.input_items] == ["Kim o?", "Ben.", "Kim?"]


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_the_tables_of_every_store_are_those_of_the_classes(
    url: str, opened: Opener, version: str | None
) -> None:
    if version is not None:
        write_store(url, version)
    opened(url).close()
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrate.VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
    migrated = schema_of(url)
    drop_tables(url)
    with connected(url) as connection:
        Base.metadata.create_all(connection)
    assert migrated == schema_of(url)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_migration_makes_the_tables_that_its_version_had(
    url: str, opened: Opener, version: str, migrations: Path
) -> None:
    write_store(url, version)
    written = schema_of(url)
    drop_tables(url)
    for file in migrations.glob("0*.py"):
        if file.name[:4] > version:
            file.unlink()
    opened(url).close()
    assert version_of(url) == version
    assert schema_of(url) == written


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE mmrec_responses", "UPDATE mmrec_responses", "UPDATE mmrec_schema"]
)
def test_a_store_whose_migration_was_killed_is_as_it_was_and_opens(
    url: str, opened: Opener, statement: str
) -> None:
    write_store(url, "0001")
    before = rows_of(url)
    script = """
import os, signal
from sqlalchemy import Engine, event
@event.listens_for(Engine, "before_cursor_execute")
def kill(connection, cursor, statement, *_):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1])
"""
    child = start(script, url, statement)
    release(child)
    child.communicate(timeout=LONGEST)
    assert child.returncode == -signal.SIGKILL
    assert rows_of(url) == before
    check_rows(opened(url))
    assert version_of(url) == NEWEST


@pytest.mark.parametrize("version", VERSIONS)
def test_processes_that_open_an_earlier_store_at_once_migrate_it_once(
    url: str, opened: Opener, version: str, migrations: Path
) -> None:
    (migrations / "9999_toy.py").write_text(TOY)  # which fails the second time
    write_store(url, version)
    script = (
        "from pathlib import Path\nfrom mm_rec.store import migrate\n"
        "migrate.MIGRATIONS = Path(sys.argv[2])\nStore(sys.argv[1]).close()"
    )
    children = [start(script, url, str(migrations)) for _ in range(3)]
    release(*children)
    assert [child.communicate(timeout=LONGEST)[0] for child in children] == [""] * 3
    assert [child.returncode for child in children] == [0] * 3
    check_rows(opened(url))


def test_a_migration_is_a_file(url: str, opened: Opener, migrations: Path) -> None:
    """Also one that SQLite makes a table anew for, to which rows of others refer."""
    write_store(url, "0003")
    opened(url).close()
    change = "    with op.batch_alter_table('mmrec_api_keys') as table: table.alter_column('name', nullable=True)\n"
    (migrations / "9999_toy.py").write_text(TOY + change)
    store = opened(url)
    check_rows(store)
    assert version_of(url) == "toy"
    assert store.usage("toy", date(2026, 1, 1)).requests == 1
    assert schema_of(url)["mmrec_api_keys"]["columns"]["name"][1], "the column may be null now"
    with pytest.raises(IntegrityError):
        store.create_response("key_of_nobody", "resp_1", model="m", input_items=[], response={})


def test_a_newer_store_is_refused_and_left_as_it_is(
    url: str, opened: Opener, migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        (migrations / "9999_toy.py").write_text(TOY)
        newer.setattr(migrate, "MIGRATIONS", migrations)
        opened(url).close()
    (migrations / "9999_toy.py").unlink()
    before = rows_of(url)
    content = file_of(url).read_bytes() if url.startswith("sqlite") else b""
    message = rf"is of version toy, written by a newer mmrec; this one knows versions up to {NEWEST}\. Update mm-rec"
    with pytest.raises(ConfigError, match=message):
        Store(url)
    assert rows_of(url) == before and version_of(url) == "toy"
    if url.startswith("sqlite"):
        assert file_of(url).read_bytes() == content
        assert [path.name for path in file_of(url).parent.glob("*version*")] == []


def test_a_migration_that_fails_says_what_to_do_and_changes_nothing(url: str, opened: Opener) -> None:
    write_store(url, "0001")
    with connected(url) as connection:
        connection.execute(text("UPDATE mmrec_responses SET output_items = 'cut off' WHERE number = 2"))
    before = rows_of(url)
    with pytest.raises(
        ConfigError, match=rf"from version 0001 to {NEWEST}: Expecting value.*It is as it was"
    ) as caught:
        Store(url)
    assert "go on with mmrec 0.1.0, the last that reads this version" in str(caught.value)
    assert ("A copy of it is in" in str(caught.value)) == url.startswith("sqlite")
    assert "\n" not in str(caught.value)
    assert rows_of(url) == before
    with connected(url) as connection:
        connection.execute(text("UPDATE mmrec_responses SET output_items = '[]' WHERE number = 2"))
    assert len(opened(url).list_responses(MINE).rows) == 2


def test_a_store_with_tables_that_nobody_made_is_refused(url: str) -> None:
    write_store(url, "0003")
    with connected(url) as connection:
        connection.execute(text("ALTER TABLE mmrec_responses DROP COLUMN response"))
    before = rows_of(url)
    with pytest.raises(ConfigError, match="tables that no version of mmrec made; give another store"):
        Store(url)
    assert rows_of(url) == before


def test_a_sqlite_store_is_copied_before_it_is_migrated(
    tmp_path: Path, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/kept/store [1].db"
    write_store(url, "0001")
    before = rows_of(url)
    copy = tmp_path / "kept/store [1].db.version-0001"
    left = [copy.with_name(f".{copy.name}.7-7.tmp{end}") for end in ("", "-journal")]
    for file in left:  # by a killed process
        file.write_text("half a copy")
    with caplog.at_level(logging.WARNING):
        opened(url).close()
    assert f"was brought from version 0001 to {NEWEST}. A copy of it is in {copy}." in caplog.text
    assert copy.stat().st_mode & 0o777 == 0o600 and not any(file.exists() for file in left)
    assert rows_of(f"sqlite:///{copy}") == before
    check_rows(opened(f"sqlite:///{copy}"))
    caplog.clear()
    opened(url)
    assert caplog.text == ""


def test_a_store_that_another_process_migrates_for_long_is_refused_in_plain_words(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    opened(url).close()
    monkeypatch.setattr(database, "_WAIT", 0.05)
    engine = database.open_engine(url)
    with (
        database.migration_transaction(engine),
        pytest.raises(ConfigError, match=r"brings it up to date; start again when that has ended"),
    ):
        Store(url)
    opened(url)
