"""Two servers on one store and one folder of sessions: no turn is lost or doubled, and no file of another store's."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from serving.server import MIB, Server, small_model
from serving.test_sessions import QUESTIONS, SYSTEM, Unbroken, ask, begin, client, turn
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

from mm_rec.errors import ConfigError
from mm_rec.serving.errors import ApiError
from mm_rec.serving.session_folder import MARKER
from mm_rec.serving.sessions import SessionManager
from mm_rec.store.store import Store
from mm_rec.store.tables import SavedSession, new_id, new_session_file

Opener = Callable[[str], Store]
HOURS = 3_600


@pytest.fixture
def pair(
    url: str, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Iterator[tuple[Server, Server]]:
    """Two servers of the same model on one store and one folder."""
    servers = [Server([small_model("mmrec", chat_tokenizer)], tmp_path, store=url) for _ in range(2)]
    yield servers[0], servers[1]
    for server in servers:
        server.stop()


@dataclass
class Turn:
    """One turn that was answered: what the session had read before, what was asked, what was said."""

    length: int
    question: str
    answer: str


def talk(servers: tuple[Server, Server], sessions: list[str], turns: int, threads: int) -> list[list[Turn]]:
    """Have turns of sessions through both servers at random; returns those of each session in their order."""
    answered: list[list[Turn]] = [[] for _ in sessions]
    numbers = iter(range(turns))
    lock = threading.Lock()

    def work(seed: int) -> None:
        choose = random.Random(seed)
        https = [client(server) for server in servers]
        while (number := next_number()) is not None:
            place, question = choose.randrange(len(sessions)), f"Question {number}?"
            body = {"model": "mmrec", "messages": [turn(question)], "session": sessions[place]}
            body |= {"temperature": 0, "max_tokens": 16}
            while (answer := choose.choice(https).post("/v1/chat/completions", json=body)).status_code == 409:
                assert (
                    answer.json()["error"]["code"] == "session_busy" and answer.headers["retry-after"] == "1"
                )
            assert answer.status_code == 200, answer.text
            told = answer.json()
            length = told["usage"]["prompt_tokens_details"]["cached_tokens"]
            with lock:
                answered[place].append(Turn(length, question, told["choices"][0]["message"]["content"]))
        for http in https:
            http.close()

    def next_number() -> int | None:
        with lock:
            return next(numbers, None)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(threads)):
            pass
    assert sum(map(len, answered)) == turns
    return [sorted(one, key=lambda done: done.length) for one in answered]


def check_sessions(pair: tuple[Server, Server], count: int, turns: int, threads: int) -> None:
    """Every session has read each of its turns once, in one order, and answered as one that nobody shares."""
    with client(pair[0]) as http:
        sessions = [begin(http, "mmrec", [SYSTEM])["id"] for _ in range(count)]
    answered = talk(pair, sessions, turns, threads)
    with client(pair[1]) as http:
        for session, of_session in zip(sessions, answered, strict=True):
            unbroken = Unbroken(pair[0], "mmrec")
            unbroken.begin()
            for done in of_session:
                assert done.length == unbroken.session.length
                assert done.answer == unbroken.ask(done.question)
            assert http.get(f"/v1/sessions/{session}").json()["length"] == unbroken.session.length
    states = list((pair[0].folder / "sessions").glob("*.safetensors"))
    assert len(states) == count


def test_turns_through_both_servers_are_all_read_once(pair: tuple[Server, Server]) -> None:
    check_sessions(pair, count=4, turns=60, threads=6)


@pytest.mark.seldom(covers=["mm_rec/serving/*", "mm_rec/inference/*"])
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_two_thousand_turns_of_fifty_sessions_are_all_read_once(pair: tuple[Server, Server]) -> None:
    check_sessions(pair, count=50, turns=2_000, threads=16)


def test_a_turn_through_the_other_server_is_seen(pair: tuple[Server, Server]) -> None:
    with client(pair[0]) as first, client(pair[1]) as second:
        session = begin(first, "mmrec", [SYSTEM])["id"]
        read = [
            ask(http, "mmrec", session, turn(question))["usage"]["prompt_tokens_details"]["cached_tokens"]
            for http, question in zip((first, second, first), QUESTIONS, strict=True)
        ]
        assert read[0] < read[1] < read[2]


def test_a_session_in_a_turn_is_refused_by_the_other_server(pair: tuple[Server, Server]) -> None:
    variants = [server.context.registry.find("mmrec") for server in pair]
    first, second = (server.context.sessions for server in pair)
    with client(pair[0]) as http:
        session = begin(http, "mmrec", [SYSTEM])["id"]
    with first.turn(None, session, variants[0]):
        body = {"model": "mmrec", "messages": [turn("Hi")], "session": session, "max_tokens": 1}
        refused = httpx.post(f"{pair[1].url}/v1/chat/completions", json=body, timeout=LONGEST)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
        assert int(refused.headers["retry-after"]) >= 1
    with second.turn(None, session, variants[1]) as free:
        assert free.row.version == 0


def test_a_turn_that_lost_its_lease_changes_nothing(pair: tuple[Server, Server]) -> None:
    """As where a server hung for longer than a lease."""
    variants = [server.context.registry.find("mmrec") for server in pair]
    first, second = (server.context.sessions for server in pair)
    with client(pair[0]) as http:
        session = begin(http, "mmrec", [SYSTEM])["id"]
    with first.turn(None, session, variants[0]) as hanging:
        pair[0].context.store.renew_leases([str(hanging.row.lease_holder)], seconds=-2)
        with second.turn(None, session, variants[1]) as other:
            for commit in (False, True):
                if commit:
                    other.session.prefill([5, 6, 7])
                    second.commit(None, other, variants[1], other.session)
                with pytest.raises(ApiError) as refused:
                    first.commit(None, hanging, variants[0], hanging.session)
                assert refused.value.status == 409
    [row] = pair[0].context.store.list_sessions(None).rows
    assert (row.length, row.version, row.lease_holder) == (other.session.length, 1, None)
    assert [path.name for path in (pair[0].folder / "sessions").glob("*.safetensors")] == [row.file_name]


def made(store: Store) -> SavedSession:
    name = new_session_file()
    return store.create_session(None, model="tiny", adapter=None, length=7, file_name=name, size=10)


def test_the_lease_of_a_killed_server_ends(store: Store) -> None:
    session = made(store)
    assert store.lease_session(None, session.id, new_id("turn"), seconds=60) is not None
    assert store.lease_session(None, session.id, new_id("turn"), seconds=60) is None
    session = made(store)
    assert store.lease_session(None, session.id, new_id("turn"), seconds=-2) is not None
    assert store.lease_session(None, session.id, new_id("turn"), seconds=60) is not None


def test_a_lease_is_renewed_and_given_back(store: Store) -> None:
    session, holder = made(store), new_id("turn")
    store.lease_session(None, session.id, holder, seconds=-2)
    store.renew_leases([holder], seconds=60)
    assert store.lease_session(None, session.id, new_id("turn"), seconds=60) is None
    store.release_session(holder)
    assert store.lease_session(None, session.id, new_id("turn"), seconds=60) is not None


def opened_folder(store: Store, folder: Path) -> None:
    """Open a folder of sessions as a server does, and let go of it."""
    SessionManager(store, folder, MIB).close()


def write(folder: Path, name: str, hours_ago: float = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"state")
    changed = time.time() - hours_ago * HOURS
    os.utime(path, (changed, changed))
    return path


def test_the_folder_of_another_store_is_refused_and_left_as_it_is(opened: Opener, tmp_path: Path) -> None:
    mine, theirs = (opened(f"sqlite:///{tmp_path}/{name}.db") for name in ("mine", "theirs"))
    folder = tmp_path / "sessions"
    opened_folder(theirs, folder)
    state = write(folder, made(theirs).file_name, hours_ago=50)
    half = write(folder, f".{state.name}.7-7.tmp", hours_ago=50)
    os.utime(folder / MARKER, (0, 0))
    with pytest.raises(ConfigError, match=r"the sessions of another store than .*mine\.db.* with --sessions"):
        opened_folder(mine, folder)
    assert state.exists() and half.exists() and (folder / MARKER).read_text() == theirs.id
    opened_folder(theirs, folder)


def test_a_former_folder_is_adopted_by_the_store_that_knows_it(opened: Opener, tmp_path: Path) -> None:
    mine, theirs = (opened(f"sqlite:///{tmp_path}/{name}.db") for name in ("mine", "theirs"))
    folder = tmp_path / "sessions"
    known = write(folder, made(theirs).file_name, hours_ago=50)
    unknown = write(folder, new_session_file(), hours_ago=50)
    with pytest.raises(
        ConfigError, match=r"the states of 2 sessions that the store .*mine\.db does not know"
    ):
        opened_folder(mine, folder)
    assert not (folder / MARKER).exists()
    opened_folder(theirs, folder)
    assert known.exists() and unknown.exists(), "nobody can say whose it is"
    assert (folder / MARKER).read_text() == theirs.id


def test_what_killed_servers_left_is_removed(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    opened_folder(store, folder)
    os.utime(folder / MARKER, (0, 0))  # the folder has long been this store's
    kept = [write(folder, made(store).file_name, hours_ago=50)]
    kept += [
        write(folder, new_session_file()),
        write(folder, f".{new_session_file()}.7-7.tmp"),
    ]  # just written
    kept += [write(folder, "notes.txt", hours_ago=50)]
    left = [write(folder, new_session_file(), hours_ago=50)]
    left += [write(folder, f".{new_session_file()}.7-7.tmp", hours_ago=50)]
    opened_folder(store, folder)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)


def test_a_marker_that_was_not_written_is_written_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_rec.serving.session_folder._READ_SECONDS", 0.05)
    write(tmp_path / "sessions", MARKER).write_text("")
    opened_folder(store, tmp_path / "sessions")
    assert (tmp_path / "sessions" / MARKER).read_text() == store.id


def test_a_store_keeps_its_identifier(url: str, opened: Opener, tmp_path: Path) -> None:
    first, again, other = opened(url), opened(url), opened(f"sqlite:///{tmp_path}/other.db")
    assert first.id == again.id != other.id
