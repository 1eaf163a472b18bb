"""Fuzzing: whatever a client sends, it has an answer or an end, and nothing of it is left on the server.

MMREC_FUZZ_EXAMPLES=N tries N examples of each kind, others each time; CONTRIBUTING.md says how long that takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from serving.fuzzing import bodies, streams
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.inference.scheduler import Scheduler
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.bodies import BodyLimit
from mm_rec.serving.connections import ConnectionLimits
from mm_rec.serving.context import RequestLimits

BY_HAND = os.environ.get("MMREC_FUZZ_EXAMPLES")
# Sent last: the server closes the connection when it has answered all, or has waited in vain for the rest of something.
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
fuzz = pytest.mark.seldom(
    covers=["mm_rec/serving/*", "mm_rec/store/*", "mm_rec/inference/grammar/*", "tests/serving/fuzzing.py"]
)


def examples(count: int) -> Callable[[Any], Any]:
    """So many of them, the same ones each time; by hand as many as are asked for, and others."""
    return settings(
        max_examples=int(BY_HAND or count),
        deadline=None,
        derandomize=BY_HAND is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Errors(logging.Handler):
    """What is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def serve(tokenizer: PreTrainedTokenizerBase, folder: Path, **given: Any) -> Server:
    scheduler = Scheduler()
    models = [small_model(name, tokenizer, context=512, scheduler=scheduler) for name in ("mmrec", "llama")]
    return Server(models, folder, limits=RequestLimits(max_tokens=16, max_prompt_tokens=2_000), **given)


@pytest.fixture(scope="module")
def server(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    running = serve(chat_tokenizer, tmp_path_factory.mktemp("fuzzed"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def hasty(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One that waits for nobody long: many requests are not whole."""
    running = serve(
        chat_tokenizer,
        tmp_path_factory.mktemp("hasty"),
        policy=AccessPolicy(body_limit=BodyLimit(bytes=2**20, seconds=0.2)),
        connections=ConnectionLimits(head_seconds=0.2, idle_seconds=1),
    )
    yield running
    running.stop()


def open_sockets() -> int:
    """How many of this process's descriptors are sockets, or files without a name."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return sum(one.startswith("socket:") or one.endswith("(deleted)") for one in found)


@contextlib.contextmanager
def at_rest(server: Server) -> Iterator[None]:
    """At the end the server answers, works on nothing, holds nothing open and has logged no error."""
    httpx.get(f"{server.url}/v1/sessions")
    until(lambda: not server.open_connections())
    before, errors = open_sockets(), Errors()
    logging.getLogger().addHandler(errors)
    try:
        yield
        assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
        scheduler = server.context.registry.scheduler
        until(lambda: scheduler.num_running == scheduler.num_waiting == 0)
        until(lambda: not server.open_connections() and open_sockets() <= before)
    finally:
        logging.getLogger().removeHandler(errors)
    assert not errors.said, "\n".join(errors.said)


def statuses(server: Server, pieces: list[bytes]) -> list[int]:
    """The statuses of what the server answers to some bytes, until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), LONGEST) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # it was closed before all was sent
            for piece in (*pieces, LAST):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(2**16):
                answer += received
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


@fuzz
def test_bytes_that_are_almost_http(hasty: Server) -> None:
    @examples(1_200)
    @given(pieces=streams())
    def send(pieces: list[bytes]) -> None:
        assert all(status < 500 for status in statuses(hasty, pieces))

    with at_rest(hasty):
        send()


@fuzz
def test_bodies_that_are_almost_right(server: Server) -> None:
    with at_rest(server), httpx.Client(base_url=server.url) as client:

        @examples(800)
        @given(request=bodies())
        def send(request: tuple[str, bytes]) -> None:
            path, body = request
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        send()


@fuzz
def test_whatever_the_document_allows_or_forbids_has_an_answer(server: Server) -> None:
    """Requests that schemathesis makes of the server's OpenAPI document, right ones and wrong ones."""
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found: dict[str, set[int]] = {}

    def try_out(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode) -> None:
        @examples(30)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(timeout=LONGEST)
            found.setdefault(operation.label, set()).add(answer.status_code)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        ask()

    with at_rest(server):
        for result in document.get_all_operations():
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                with contextlib.suppress(Unsatisfiable):  # there is nothing to be wrong where nothing is sent
                    try_out(result.ok(), mode)
    assert len(found) >= 18
