"""A full disk and a locked store: said once in the log and in /health, limits fail closed, and answers go on."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.server import Server, small_model
from serving.test_sessions import SYSTEM, begin, client
from serving.test_store import store_response
from sqlalchemy import create_engine, event, text
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.errors import DataError
from mm_rec.inference.engine import Session
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.context import RequestLimits
from mm_rec.serving.store_threads import StoreThreads
from mm_rec.store import database
from mm_rec.store.health import StoreUnavailableError
from mm_rec.store.store import Store, today

CHAT: dict[str, Any] = {"model": "mmrec", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
RESPONSE: dict[str, Any] = {"model": "mmrec", "input": "Hi", "max_output_tokens": 2}
Opener = Callable[[str], Store]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds the store locked does not wait."""
    monkeypatch.setattr(database, "BUSY_WAIT", 0.05)


@pytest.fixture
def guarded(
    impatient: None, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server that asks for keys."""
    monkeypatch.setattr("mm_rec.serving.usage._RETRY_SECONDS", 0.05)
    running = Server([small_model("mmrec", chat_tokenizer)], tmp_path, policy=AccessPolicy(require_keys=True))
    yield running
    running.stop()


def locked(server: Server) -> sqlite3.Connection:
    """Lock a server's store against writing, as another program would, until the connection is closed."""
    connection = sqlite3.connect(server.folder / "store.db")
    connection.execute("BEGIN IMMEDIATE")
    return connection


def health(server: Server) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{server.url}/health", timeout=LONGEST)
    return answer.status_code, answer.json()


def test_a_locked_store_is_told_and_limits_fail_closed(
    guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = guarded.context.store
    (free, free_row), (limited, limited_row) = (
        create_key(store, "free"), create_key(store, "limited", tokens_per_day=1_000_000),
    )  # fmt: skip
    assert health(guarded)[0] == 200
    with client(guarded, free) as unlimited, client(guarded, limited) as few, closing(locked(guarded)):
        assert unlimited.post("/v1/chat/completions", json=CHAT).status_code == 200
        _, told = until(lambda: (found := health(guarded))[0] == 503 and found)
        assert told["status"] == "degraded" and told["models"] == ["mmrec"]
        assert told["reason"] == "the store cannot be written: another process keeps it locked"
        assert unlimited.post("/v1/chat/completions", json=CHAT).status_code == 200
        refused = few.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert "limit of tokens a day, and usage cannot be counted now" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        kept = unlimited.post("/v1/responses", json=RESPONSE)
        assert (kept.status_code, kept.json()["error"]["code"]) == (503, "store_unavailable")
        assert str(guarded.folder) not in kept.text + refused.text + str(told)
    until(lambda: health(guarded) == (200, {**health(guarded)[1], "status": "ok"}))
    until(lambda: store.usage(free_row.id, today()).requests == 3)  # nothing was forgotten
    with client(guarded, limited) as few:
        assert few.post("/v1/chat/completions", json=CHAT).status_code == 200
    until(lambda: store.usage(limited_row.id, today()).requests == 1)
    said = [record for record in caplog.records if "cannot be written" in record.message]
    assert [record.levelno for record in said] == [logging.ERROR, logging.WARNING]


def test_a_full_disk_is_told(guarded: Server) -> None:
    store = guarded.context.store
    key, _ = create_key(store, "mine")
    limit = event.listens_for(store._engine, "connect")
    store._engine.dispose()
    limit(lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))  # as many as there are
    with client(guarded, key) as http:
        large = {**RESPONSE, "metadata": {"a": "x" * 500}, "input": "Hello there! " * 2_000}
        answer = http.post("/v1/responses", json=large)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert "the store cannot be written: the disk is full" in answer.json()["error"]["message"]


def test_a_state_that_cannot_be_written_is_told_without_a_path(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = create_key(guarded.context.store, "mine")

    def full(session: Session, path: Path, _: object) -> None:
        raise DataError("the disk is full; nothing was written. Free some space and run it again", path)

    with client(guarded, key) as http:
        with monkeypatch.context() as patched:
            patched.setattr(Session, "save", full)
            answer = http.post("/v1/sessions", json={"model": "mmrec", "messages": [SYSTEM]})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert answer.json()["error"]["message"].endswith("written: the disk is full; ask again later")
        assert health(guarded)[1]["reason"] == "the states of sessions cannot be written: the disk is full"
        guarded.context.sessions._folder.check()
        assert health(guarded)[0] == 200
        assert {path.suffix for path in (guarded.folder / "sessions").iterdir()} == {""}
        begin(http, "mmrec", [SYSTEM])


def test_a_state_that_is_gone_is_told_without_a_path(guarded: Server) -> None:
    key, _ = create_key(guarded.context.store, "mine")
    with client(guarded, key) as http:
        session = begin(http, "mmrec", [SYSTEM])
        guarded.context.sessions._in_memory.clear()
        for path in (guarded.folder / "sessions").glob("*.safetensors"):
            path.unlink()
        answer = http.post("/v1/chat/completions", json={**CHAT, "session": session["id"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_stale")
    assert ".safetensors" not in answer.text and str(guarded.folder) not in answer.text


def test_who_waits_for_the_store_keeps_nobody_from_an_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, waiting = threading.Event(), threading.Semaphore(0)
    create = server.context.store.create_response

    def slowly(*arguments: Any, **more: Any) -> Any:
        waiting.release()
        assert release.wait(LONGEST)
        return create(*arguments, **more)

    monkeypatch.setattr(server.context.store, "create_response", slowly)
    monkeypatch.setattr("mm_rec.serving.store_threads._QUEUE_SECONDS", LONGEST)
    with client(server) as http, ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(http.post, "/v1/responses", json=RESPONSE) for _ in range(9)]
        try:
            for _ in range(8):  # as many as there are threads
                assert waiting.acquire(timeout=LONGEST)
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
            assert not any(answer.done() for answer in answers)
        finally:
            release.set()
        assert [answer.result().status_code for answer in answers] == [200] * 9


def test_a_call_waits_for_a_thread_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm_rec.serving.store_threads._QUEUE_SECONDS", 0.05)
    release, begun = threading.Event(), []

    async def wait_behind() -> None:
        threads = StoreThreads()
        busy = [asyncio.create_task(threads.write(release.wait, LONGEST)) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="too many requests wait"):
            await threads.write(begun.append, 1)
        assert await threads.read(lambda: 2) == 2
        release.set()
        assert await asyncio.gather(*busy) == [True] * 8  # who has begun is waited for
        threads.close()

    asyncio.run(wait_behind())
    assert begun == []


def test_a_lease_that_nobody_waits_for_any_more_is_given_back() -> None:
    begin, left = threading.Event(), threading.Event()

    @contextmanager
    def lease() -> Iterator[None]:
        assert begin.wait(LONGEST)
        yield
        left.set()

    async def give_up() -> None:
        threads = StoreThreads()
        async with AsyncExitStack() as stack:
            entering = asyncio.create_task(threads.enter(lease(), stack))
            await asyncio.sleep(0)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            begin.set()
            assert await asyncio.to_thread(left.wait, LONGEST)
        threads.close()

    asyncio.run(give_up())


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_lease_is_given_back_also_where_no_thread_is_free(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr("mm_rec.serving.store_threads._QUEUE_SECONDS", LONGEST if is_cancelled else 0.05)
    release, left = threading.Event(), threading.Event()

    @contextmanager
    def lease() -> Iterator[None]:
        yield
        left.set()

    async def leave_behind() -> None:
        threads, stack = StoreThreads(), AsyncExitStack()
        await threads.enter(lease(), stack)
        busy = [asyncio.create_task(threads.write(release.wait, LONGEST)) for _ in range(8)]
        await asyncio.sleep(0)
        leaving = asyncio.create_task(stack.aclose())
        await asyncio.sleep(0)
        if is_cancelled:
            leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert not left.is_set()
        release.set()
        assert await asyncio.to_thread(left.wait, LONGEST)
        await asyncio.gather(*busy)
        threads.close()

    asyncio.run(leave_behind())


def test_a_locked_store_is_not_waited_for_long(impatient: None, url: str, opened: Opener) -> None:
    store, engine = opened(url), create_engine(url)
    with engine.connect() as connection:
        if url.startswith("sqlite"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("LOCK TABLE mmrec_responses"))
        with pytest.raises(
            StoreUnavailableError, match="written: another process keeps it locked; ask again"
        ):
            store_response(store)
        assert store.health.fault == "the store cannot be written: another process keeps it locked"
    engine.dispose()
    store_response(store)
    assert store.health.fault is None


class Gate:
    """Lets the engine take so many steps, and then wait."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.passed, self._permits = threading.Event(), threading.Semaphore(steps)
        scheduler = server.context.registry.scheduler
        step = scheduler.step

        def gated() -> None:
            if not self._permits.acquire(blocking=False):
                self.passed.set()
                assert self._permits.acquire(timeout=LONGEST)
            step()

        monkeypatch.setattr(scheduler, "step", gated)

    def open(self) -> None:
        self._permits.release(10**6)


LONG = "Hello there! " * 400
ABORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "two choices": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "n": 2}),
    "stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    "response": ("/v1/responses", {"input": LONG}),
    "scored": ("/v1/completions", {"prompt": LONG, "echo": True, "logprobs": 0, "max_tokens": 0}),
    "embedding": ("/v1/embeddings", {"input": LONG}),
    "session": ("/v1/sessions", {"messages": [{"role": "user", "content": LONG}]}),
}


@pytest.mark.parametrize("kind", ABORTED)
def test_what_was_read_for_a_request_that_was_given_up_is_counted(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    limits = RequestLimits(max_tokens=8, timeout_seconds=LONGEST)
    server = Server([small_model("mmrec", chat_tokenizer)], tmp_path, limits=limits)
    path, body = ABORTED[kind]
    try:
        whole = httpx.post(f"{server.url}/tokenize", json={"prompt": LONG}, timeout=LONGEST).json()["count"]
        gate = Gate(server, monkeypatch, steps=2)

        async def give_up() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=LONGEST) as http:
                asking = asyncio.create_task(http.post(path, json={"model": "mmrec", **body}))
                await asyncio.to_thread(gate.passed.wait, LONGEST)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(give_up())
        gate.open()
        store = server.context.store
        until(lambda: store.usage(None, today()).requests == 1)
        used = store.usage(None, today())
        assert 512 <= used.prompt_tokens <= whole + 50 and used.completion_tokens <= 2 * 8
    finally:
        server.stop()


def test_what_was_written_for_a_request_that_was_given_up_is_counted(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server([small_model("mmrec", chat_tokenizer)], tmp_path)
    never = {str(chat_tokenizer.eos_token_id): -100}
    try:
        gate = Gate(server, monkeypatch, steps=6)
        body = {**CHAT, "max_tokens": 200, "stream": True, "logit_bias": never}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=LONGEST) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert gate.passed.wait(LONGEST)
        gate.open()
        store = server.context.store
        until(lambda: store.usage(None, today()).requests == 1)
        assert 1 <= store.usage(None, today()).completion_tokens < 200
    finally:
        server.stop()
