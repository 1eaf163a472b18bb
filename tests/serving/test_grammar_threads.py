"""Grammars are compiled by threads of their own, for a bounded time, and only while somebody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from waiting import LONGEST

from mm_rec.serving import grammar_threads
from mm_rec.serving.errors import ApiError
from mm_rec.serving.grammar_threads import GrammarThreads

Check = Callable[[], None]


def test_what_is_compiled_is_given_and_its_errors_raised() -> None:
    threads = GrammarThreads()

    def fail(check: Check) -> None:
        raise KeyError("a")

    async def both() -> str:
        with pytest.raises(KeyError):
            await threads.compile(fail, "tools")
        return await threads.compile(lambda check: threading.current_thread().name, "tools")

    assert asyncio.run(both()).startswith("grammar")
    threads.close()


def test_too_long_a_work_is_refused_with_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_threads, "MAX_SECONDS", 0.0)
    threads = GrammarThreads()
    with pytest.raises(
        ApiError, match=r"^tools: it takes more than 0 seconds to prepare\. Make it smaller$"
    ) as error:
        asyncio.run(threads.compile(lambda check: [check() for _ in iter(int, 1)], "tools"))
    assert (error.value.status, error.value.body["error"]["param"]) == (400, "tools")
    threads.close()


def test_nothing_is_compiled_for_who_has_left() -> None:
    threads, begun, ended = GrammarThreads(), threading.Event(), threading.Event()

    def work(check: Check) -> None:
        begun.set()
        try:
            while True:
                check()
        finally:
            ended.set()

    async def leave() -> None:
        waiting = asyncio.create_task(threads.compile(work, "tools"))
        await asyncio.to_thread(begun.wait, LONGEST)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert ended.wait(LONGEST)
    threads.close()
