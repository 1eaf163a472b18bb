"""The server's store, in a SQLite file and in a real PostgreSQL server: rows, owners, threads, processes, kills."""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from serving.processes import release, start
from waiting import LONGEST

from mm_rec.errors import ConfigError, MissingExtraError
from mm_rec.serving.api_keys import create_key
from mm_rec.store.store import Store, today
from mm_rec.store.tables import SavedSession, StoredResponse, new_id, new_session_file

Opener = Callable[[str], Store]
HOSTILE = [
    "",
    "\0",
    "resp_\0",
    "\ud800",
    "'; DROP TABLE mmrec_responses; --",
    "../../etc/passwd",
    "x" * 1_000_000,
]


def store_response(
    store: Store, owner: str | None = None, after: StoredResponse | None = None
) -> StoredResponse:
    """Store a response, whose text is its id."""
    response_id = new_id("resp")
    return store.create_response(
        owner,
        response_id,
        model="tiny",
        input_items=[{"role": "user", "content": "Kim o?"}],
        response={"text": response_id},
        previous_response_id=None if after is None else after.id,
    )


def store_session(store: Store, owner: str | None = None) -> SavedSession:
    name = new_session_file()
    return store.create_session(owner, model="tiny", adapter=None, length=7, file_name=name, size=100)


def lease(store: Store, session_id: str, owner: str | None = None) -> SavedSession | None:
    return store.lease_session(owner, session_id, new_id("turn"), seconds=60)


def owners(store: Store) -> tuple[str, str, None]:
    """Two keys' ids and the owner of a server without keys."""
    return create_key(store, "Ayşe")[1].id, create_key(store, "Işık")[1].id, None


def test_a_response_comes_back_as_it_was_and_is_there_after_opening_again(url: str, opened: Opener) -> None:
    odd = [{"z": 1, "a": [None, True, 0.1, 2**70]}, "ığüşöç İ 🙂 \0 \ud800", [], {}]
    store, response_id, before = opened(url), new_id("resp"), int(time.time())
    made = store.create_response(None, response_id, model="tiny", input_items=odd, response={"output": odd})
    store.close()
    found = opened(url).get_response(None, response_id)
    assert found is not None and found.input_items == odd and found.response == {"output": odd}
    assert list(found.input_items[0]) == ["z", "a"]
    assert found.created == made.created and before <= found.created <= time.time()
    assert (found.model, found.previous_response_id) == ("tiny", None)


def test_a_deleted_response_is_gone_and_others_stay(store: Store) -> None:
    first, second = store_response(store), store_response(store)
    gone = store.delete_response(None, first.id)
    assert gone is not None and gone.id == first.id
    assert store.delete_response(None, first.id) is None
    assert store.get_response(None, first.id) is None
    assert [row.id for row in store.list_responses(None).rows] == [second.id]


def test_pages_are_newest_first_and_together_hold_every_row_once(store: Store) -> None:
    made = [store_response(store).id for _ in range(7)]
    seen, after, sizes = [], None, []
    while True:
        page = store.list_responses(None, after, limit=3)
        seen += [row.id for row in page.rows]
        sizes.append(len(page.rows))
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == made[::-1] and sizes == [3, 3, 1]
    assert not store.list_responses(None, limit=7).has_more
    assert store.list_responses(None, after=made[0]).rows == []


def test_a_page_after_a_row_that_is_not_there_is_refused(store: Store) -> None:
    mine, other, _ = owners(store)
    foreign = store_response(store, other)
    for after in (new_id("resp"), foreign.id, "x\0"):
        with pytest.raises(ConfigError, match="give the last id of the page before"):
            store.list_responses(mine, after)


def test_a_chain_holds_a_response_and_all_before_it_oldest_first(store: Store) -> None:
    first = store_response(store)
    second = store_response(store, after=first)
    branch = store_response(store, after=first)
    third = store_response(store, after=second)
    assert [row.id for row in store.response_chain(None, third.id)] == [first.id, second.id, third.id]
    assert [row.id for row in store.response_chain(None, branch.id)] == [first.id, branch.id]
    assert store.response_chain(None, new_id("resp")) == []
    store.delete_response(None, first.id)
    left = store.response_chain(None, third.id)
    assert [row.id for row in left] == [second.id, third.id] and left[0].previous_response_id == first.id


def test_the_sizes_of_responses_are_known_before_they_are_read(store: Store) -> None:
    mine, other, _ = owners(store)
    first = store_response(store, mine)
    second, foreign = store_response(store, mine, after=first), store_response(store, other)
    assert store.response_chain_size(mine, second.id) == first.bytes + second.bytes > 0
    assert store.response_chain_size(other, second.id) == store.response_chain_size(mine, "x\0") == 0
    ids = {first.id, second.id, foreign.id, "x\0"}
    assert store.responses_size(mine, ids) == first.bytes + second.bytes
    assert store.responses_size(mine, set()) == 0


def test_a_chain_does_not_lead_to_a_row_of_another_owner(store: Store) -> None:
    mine, other, _ = owners(store)
    foreign = store_response(store, other)
    own = store_response(store, mine, after=foreign)
    assert [row.id for row in store.response_chain(mine, own.id)] == [own.id]


def test_a_session_is_continued_in_a_new_file_listed_and_deleted(store: Store) -> None:
    first, second, name = store_session(store), store_session(store), new_session_file()
    assert first.id != second.id and first.file_name != second.file_name
    leased = lease(store, first.id)
    assert leased is not None
    moved = store.update_session(leased, length=50_000, file_name=name, size=200)
    assert moved is not None and (moved.length, moved.file_name, moved.bytes) == (50_000, name, 200)
    found = store.get_session(None, first.id)
    assert found is not None and (found.length, found.file_name) == (50_000, name)
    assert [row.id for row in store.list_sessions(None).rows] == [second.id, first.id]
    assert store.session_files() == {name, second.file_name}
    gone = store.delete_session(None, first.id)
    assert gone is not None and gone.file_name == name
    assert store.session_files() == {second.file_name}
    assert store.update_session(moved, length=1, file_name=name, size=1) is None


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a.safetensors", "", "x" * 32 + ".safetensors", f"{'0' * 32}.safetensors\n"]
)
def test_a_session_takes_no_file_name_but_the_servers_own(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="new_session_file"):
        store.create_session(None, model="m", adapter=None, length=1, file_name=name, size=1)
    session = store_session(store)
    with pytest.raises(ValueError, match="new_session_file"):
        store.update_session(session, length=1, file_name=name, size=1)


def test_nobody_sees_or_changes_the_rows_of_another_owner(store: Store) -> None:
    everybody = owners(store)
    responses = {owner: store_response(store, owner) for owner in everybody}
    sessions = {owner: store_session(store, owner) for owner in everybody}
    for owner in everybody:
        assert [row.id for row in store.list_responses(owner).rows] == [responses[owner].id]
        assert [row.id for row in store.list_sessions(owner).rows] == [sessions[owner].id]
        for other in everybody:
            theirs, kept = responses[other].id, sessions[other].id
            assert (store.get_response(owner, theirs) is not None) == (owner == other)
            assert (store.get_session(owner, kept) is not None) == (owner == other)
            assert bool(store.response_chain(owner, theirs)) == (owner == other)
            if owner != other:
                assert store.delete_response(owner, theirs) is None
                assert store.delete_session(owner, kept) is None
                assert lease(store, kept, owner) is None
    assert all(store.get_response(owner, row.id) for owner, row in responses.items())
    assert all(store.get_session(owner, row.id) for owner, row in sessions.items())


@pytest.mark.parametrize("id_", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_id_finds_nothing_and_breaks_nothing(store: Store, id_: str) -> None:
    kept = store_response(store)
    assert store.get_response(None, id_) is None and store.get_session(None, id_) is None
    assert store.delete_response(None, id_) is None and store.delete_session(None, id_) is None
    assert store.response_chain(None, id_) == [] and store.revoke_key(id_) is None
    assert lease(store, id_) is None
    assert store.get_response(None, kept.id) is not None


def test_usage_adds_up_by_key_and_day(store: Store) -> None:
    mine, other, nobody = owners(store)
    before = int(time.time())
    yesterday = today() - timedelta(days=1)
    for owner in (mine, mine, nobody):
        store.count_usage(owner, today(), prompt_tokens=2**33, completion_tokens=3)
    store.count_usage(mine, yesterday, 1, 1)
    used = store.usage(mine, today())
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (2, 2**34, 6)
    assert used.tokens == 2**34 + 6
    assert store.usage(mine, yesterday).tokens == 2
    assert store.usage(nobody, today()).requests == 1
    assert (store.usage(other, today()).requests, store.usage(other, today()).tokens) == (0, 0)
    last_used = {key.id: key.last_used for key in store.list_keys()}
    assert last_used[other] is None and before <= (last_used[mine] or 0) <= time.time()


def test_fifty_threads_counting_lose_nothing(store: Store) -> None:
    key, _, nobody = owners(store)

    def work() -> None:
        for owner in (key, nobody) * 3:
            store.count_usage(owner, today(), prompt_tokens=2, completion_tokens=1)
            store_response(store, owner)

    failures: list[object] = []
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = [threading.Thread(target=work) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert failures == []
    for owner in (key, nobody):
        used = store.usage(owner, today())
        assert (used.requests, used.prompt_tokens, used.completion_tokens) == (150, 300, 150)
        assert len(store.list_responses(owner, limit=200).rows) == 150


def test_processes_that_open_a_new_store_at_once_count_together(url: str, opened: Opener) -> None:
    script = "s = Store(sys.argv[1])\nfor _ in range(40): s.count_usage(None, today(), 1, 1)\ns.close()"
    children = [start(script, url) for _ in range(3)]
    release(*children)
    assert [child.communicate(timeout=LONGEST)[0] for child in children] == [""] * 3
    assert [child.returncode for child in children] == [0] * 3
    assert opened(url).usage(None, today()).requests == 120


def test_a_store_whose_writer_was_killed_opens_with_all_that_was_done(url: str, opened: Opener) -> None:
    script = (
        "s = Store(sys.argv[1])\n"
        "while True:\n"
        "    id = new_id('resp')\n"
        "    s.create_response(None, id, model='m', input_items=['x' * 100_000], response={'id': id})\n"
        "    s.count_usage(None, today(), 1, 1)\n"
        "    print(id, flush=True)"
    )
    done: list[str] = []
    for writes in (1, 5, 12):
        child = start(script, url)
        release(child)
        assert child.stdout is not None
        done += [child.stdout.readline().strip() for _ in range(writes)]
        child.send_signal(signal.SIGKILL)
        done += child.communicate()[0].split()
    store = opened(url)
    rows = store.list_responses(None, limit=1_000).rows
    assert {row.id for row in rows} >= set(done) and len(rows) <= len(done) + 3
    assert all(row.input_items == ["x" * 100_000] and row.response == {"id": row.id} for row in rows)
    assert len(done) <= store.usage(None, today()).requests <= len(rows)
    store_response(store)


def test_a_store_whose_maker_was_killed_opens(url: str, opened: Opener) -> None:
    for delay in (0.01, 0.03, 0.06):  # seconds: before, while and after the tables are made
        child = start("Store(sys.argv[1])\nsys.stdin.readline()", url)
        release(child)
        time.sleep(delay)
        child.kill()
        child.communicate()
    store = opened(url)
    assert store.get_response(None, store_response(store).id) is not None


def test_a_sqlite_store_is_in_wal_mode_and_only_its_users(tmp_path: Path, opened: Opener) -> None:
    store = opened(f"sqlite:///{tmp_path}/a/b/store.db")
    store_response(store)
    files = list((tmp_path / "a/b").iterdir())
    assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    connection = sqlite3.connect(tmp_path / "a/b/store.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_what_is_no_store_is_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is no database. " * 100)
    (tmp_path / "folder").mkdir()
    refused = {
        "store.db": "cannot be read; write sqlite:///FILE or postgresql://",
        "postgresql://me:secret@host:port/x": "cannot be read; write",
        "sqlite://": "a store cannot be in sqlite://; write sqlite:///FILE",
        "sqlite:///:memory:": "a store cannot be in",
        "mysql://me:secret@host/x": r"a store cannot be in mysql://me:\*\*\*@host/x; write",
        f"sqlite:///{tmp_path}/text.db": "text.db cannot be opened: file is not a database",
        f"sqlite:///{tmp_path}/folder": "folder cannot be opened: unable to open database file",
        f"sqlite:///{tmp_path}/text.db/store.db": "store.db cannot be opened: .*(exists|Not a directory)",
        f"postgresql://me:secret@/x?host={tmp_path}": r"postgresql\+psycopg://me:\*\*\*@/x.*cannot be opened: conn",
    }
    for url, message in refused.items():
        with pytest.raises(ConfigError, match=message) as caught:
            Store(url)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "text.db").read_text().startswith("This is no database.")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"a store in PostgreSQL .*'mm-rec\[postgres\]'"):
        Store("postgresql://localhost/x")
