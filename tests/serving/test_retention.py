"""What is kept of a key is bounded by count, bytes and age, and shown; what is one key's, no other is told of."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.server import MIB, Server, small_model
from serving.test_sessions import SYSTEM, begin, client, turn
from serving.test_store import lease, store_response
from sqlalchemy import create_engine, text
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.sessions import SessionManager
from mm_rec.store.retention import QuotaExceededError, Retention
from mm_rec.store.store import Store
from mm_rec.store.tables import SavedSession, new_id, new_session_file

DAY = 86_400
SECRET = "The word of the day is heliotrope, and nobody else may know it."


def store_of(url: str, **changes: int) -> Store:
    return Store(url, Retention(**changes))


def store_session(store: Store, size: int = 10, owner: str | None = None) -> SavedSession:
    name = new_session_file()
    return store.create_session(owner, model="tiny", adapter=None, length=7, file_name=name, size=size)


def test_the_oldest_responses_of_a_key_make_room(url: str) -> None:
    with closing(store_of(url, max_responses=3)) as store:
        mine, theirs = (create_key(store, name)[1].id for name in ("mine", "theirs"))
        other = store_response(store, theirs)
        made = [store_response(store, mine).id for _ in range(5)]
        assert [row.id for row in store.list_responses(mine).rows] == made[:1:-1]
        assert [row.id for row in store.list_responses(theirs).rows] == [other.id]


def test_responses_of_a_key_take_no_more_bytes_than_they_may(url: str) -> None:
    with closing(store_of(url, max_bytes=5_000)) as store:
        made = []
        for _ in range(6):
            made.append(new_id("resp"))
            store.create_response(None, made[-1], model="m", input_items=["x" * 1_500], response={})
        assert [row.id for row in store.list_responses(None).rows] == made[:2:-1]
        store.create_response(None, new_id("resp"), model="m", input_items=["x" * 9_000], response={})
        [alone] = store.list_responses(None).rows
        assert alone.bytes > 9_000, "the newest is kept, however large"
        assert store.count_kept() == {"responses": (1, alone.bytes), "sessions": (0, 0)}


def age(url: str, days: float) -> None:
    """Let everything be so much older."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for table, column in (("responses", "created"), ("sessions", "used")):
            connection.execute(text(f"UPDATE mmrec_{table} SET {column} = {column} - {int(days * DAY)}"))
    engine.dispose()


def test_what_is_too_old_goes_when_a_server_starts_but_a_session_in_a_turn(url: str, tmp_path: Path) -> None:
    with closing(store_of(url, max_days=30)) as store:
        folder = tmp_path / "sessions"
        SessionManager(store, folder, MIB).close()
        store_response(store)
        old, busy = store_session(store), store_session(store)
        for one in (old, busy):
            (folder / one.file_name).write_bytes(b"state")
        age(url, 29)
        SessionManager(store, folder, MIB).close()
        assert store.count_kept() == {
            "responses": (1, store.list_responses(None).rows[0].bytes),
            "sessions": (2, 20),
        }
        age(url, 1.1)
        assert lease(store, busy.id) is not None
        new = store_session(store)
        SessionManager(store, folder, MIB).close()
        assert store.list_responses(None).rows == []
        assert {row.id for row in store.list_sessions(None).rows} == {busy.id, new.id}
        assert [path.name for path in folder.glob("*.safetensors")] == [busy.file_name]


def test_a_race_makes_no_session_too_many(url: str) -> None:
    def create(store: Store) -> bool:
        try:
            store_session(store)
        except QuotaExceededError:
            return False
        return True

    with closing(store_of(url, max_sessions=20)) as first, closing(store_of(url, max_sessions=20)) as second:
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(create, [first, second] * 25))
        assert sum(made) == 20 and first.count_kept()["sessions"] == (20, 200)
        owner = create_key(first, "another")[1].id
        assert store_session(first, owner=owner).key_id == owner


@pytest.fixture
def small(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Server]:
    """A server that keeps little of each key."""
    model = small_model("mmrec", chat_tokenizer)
    running = Server([model], tmp_path, retention=Retention(max_responses=2, max_sessions=2, max_bytes=10**6))
    yield running
    running.stop()


def test_a_session_too_many_is_refused_and_leaves_no_file(small: Server) -> None:
    with client(small) as http:
        made = [begin(http, "mmrec", [SYSTEM]) for _ in range(2)]
        refused = http.post("/v1/sessions", json={"model": "mmrec"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_sessions")
        assert "there are 2 sessions of this key already" in refused.json()["error"]["message"]
        assert "larger --keep-sessions" in refused.json()["error"]["message"]
        assert len(list((small.folder / "sessions").glob("*.safetensors"))) == 2
        http.delete(f"/v1/sessions/{made[0]['id']}")
        begin(http, "mmrec", [SYSTEM])


def test_sessions_that_take_too_much_are_refused(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(small) as http:
        session = begin(http, "mmrec", [SYSTEM])
        monkeypatch.setattr(small.context.store, "retention", Retention(max_bytes=session["bytes"] - 1))
        body = {"model": "mmrec", "messages": [turn("Hi")], "session": session["id"], "max_tokens": 1}
        for path, sent in (("/v1/sessions", {"model": "mmrec"}), ("/v1/chat/completions", body)):
            refused = http.post(path, json=sent)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_sessions")
            message = refused.json()["error"]["message"]
            assert f"{session['bytes'] - 1:,} are kept" in message and "larger --keep-disk" in message
            assert "with this one" not in message  # a session that is there takes no more by a turn


def test_metrics_show_what_is_kept(small: Server) -> None:
    with client(small) as http:
        session = begin(http, "mmrec", [SYSTEM])
        for _ in range(3):
            body = {"model": "mmrec", "input": "Hi", "max_output_tokens": 1}
            assert http.post("/v1/responses", json=body).status_code == 200
        told = http.get("/metrics").text
    assert 'mmrec_stored{kind="responses"} 2.0' in told and 'mmrec_stored{kind="sessions"} 1.0' in told
    found = re.search(r'^mmrec_stored_bytes{kind="sessions"} (\S+)$', told, re.MULTILINE)
    assert found is not None and float(found[1]) == session["bytes"]


def cached(server: Server, key: str, system: str) -> int:
    """How much of a conversation that begins so was read before."""
    messages = [{"role": "system", "content": system}, turn(f"Hi, it is {time.monotonic()}")]
    body = {"model": "mmrec", "messages": messages, "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=LONGEST)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("shared", [False, True])
def test_a_key_is_not_told_what_another_wrote_unless_prefixes_are_shared(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, shared: bool
) -> None:
    policy: Any = AccessPolicy(require_keys=True)
    server = Server([small_model("mmrec", chat_tokenizer)], tmp_path, policy=policy, share_prefixes=shared)
    try:
        mine, theirs = (create_key(server.context.store, name)[0] for name in ("mine", "theirs"))
        assert cached(server, mine, SECRET) == 0
        assert cached(server, mine, SECRET) > 0
        assert (cached(server, theirs, SECRET) > 0) is shared
    finally:
        server.stop()


def test_without_keys_all_share_what_was_read(small: Server) -> None:
    assert cached(small, "", SECRET) == 0 and cached(small, "", SECRET) > 0
