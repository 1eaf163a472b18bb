"""Connections: limits in all and of an address, those that say nothing, and those that are kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Response
from serving.server import Server, small_model
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.errors import ConfigError
from mm_rec.models.loading import save_model
from mm_rec.serving import connections
from mm_rec.serving.connections import ConnectionLimits, resolve_limits
from mm_rec.serving.log_format import RepeatFilter, TextFormatter
from mm_rec.serving.server import listen

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(server: Server, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), LONGEST, source_address=(address, 0))


def ask(connection: socket.socket) -> int:
    """The status of a request on a connection, whose answer is read to its end."""
    connection.sendall(GET)
    return int(read_answer(connection)[0].split()[1])


def read_answer(connection: socket.socket) -> tuple[str, bytes]:
    """The head and the body of an answer."""
    with connection.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n")).decode().lower()
        return head, file.read(int(re.findall(r"content-length: (\d+)", head)[0]))


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection without another word; waits for it."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


@pytest.fixture
def serve(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(**limits: Any) -> Server:
            model = small_model("llama", chat_tokenizer)
            server = Server([model], tmp_path, connections=ConnectionLimits(**limits))
            stack.callback(server.stop)
            return server

        yield start


def test_answers_on_a_kept_connection_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on what it accepts, since the listening socket names its protocol."""

    async def accepted() -> int:
        taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Told(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                own = transport.get_extra_info("socket")
                taken.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with listen("127.0.0.1", 0) as listening:
            server = await asyncio.get_running_loop().create_server(Told, sock=listening)
            with socket.create_connection(listening.getsockname()):
                value = await taken
            server.close()
            return value

    assert asyncio.run(accepted()) == 1


def test_a_connection_without_a_request_is_closed(serve: Any) -> None:
    server = serve(head_seconds=0.3, idle_seconds=1)
    silent, slow, kept = (connect(server) for _ in range(3))
    with silent, slow, kept:
        assert ask(kept) == 200
        with contextlib.suppress(ConnectionError):
            for byte in GET * 1000:  # far more bytes than the time allows: each of them prolongs nothing
                slow.send(bytes([byte]) if byte != 10 else b"x")
                slow.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    assert slow.recv(1) == b""
                    break
            else:
                raise AssertionError("it was never closed")
        assert is_closed(silent) and is_closed(kept)


def test_an_answer_takes_as_long_as_it_takes(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are those of a request that has not begun."""
    server = serve(head_seconds=0.2)
    never = {str(server.context.registry.models[0].loaded.tokenizer.eos_token_id): -100}
    body = {
        "model": "llama",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 200,
        "logit_bias": never,
    }
    scheduler, write = server.context.registry.scheduler, server.context.registry.scheduler.step

    def slowly() -> None:
        time.sleep(0.005)
        write()

    monkeypatch.setattr(scheduler, "step", slowly)
    assert (
        httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 200
    )


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(serve: Any) -> None:
    server = serve(stalled_seconds=0.3)
    toys = APIRouter()

    @toys.get("/large")
    async def large() -> Response:
        return Response(bytes(64 * 2**20))  # more than the buffers between hold

    server.app.include_router(toys)
    with connect(server) as connection:
        connection.sendall(GET.replace(b"/health", b"/large"))
        until(server.open_connections)
        until(lambda: not server.open_connections())
    assert len(httpx.get(f"{server.url}/large").content) == 64 * 2**20  # who takes it, gets it


def test_the_longest_silent_connection_makes_room(serve: Any) -> None:
    server = serve(total=20, per_address=10)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(connect(server)) for _ in range(10)]
        until(lambda: len(server.open_connections()) == 10)
        assert ask(first[0]) == 200  # now the one whose last request is the latest
        more = [stack.enter_context(connect(server)) for _ in range(3)]
        assert all(ask(one) == 200 for one in more)
        assert all(is_closed(one) for one in first[1:4])
        assert ask(first[0]) == ask(first[4]) == 200
        for _ in range(15):
            with connect(server, "127.0.0.2") as other:
                assert ask(other) == 200


def post(path: str, body: bytes, announced: int | None = None) -> bytes:
    """A request; `announced`: a body of so many bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {announced or len(body)}\r\n\r\n".encode() + body


def test_a_body_that_does_not_come_makes_room(serve: Any) -> None:
    server = serve(total=6, per_address=3)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(3)]
        for one in slow:
            one.sendall(post("/tokenize", b"{", announced=100))
        until(lambda: sum(not one.is_idle for one in server.open_connections()) == 3)
        assert ask(stack.enter_context(connect(server))) == 200
        assert is_closed(slow[0])


def test_where_all_are_being_answered_the_next_is_told(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(total=6, per_address=3)
    scheduler, goes_on = server.context.registry.scheduler, threading.Event()
    write = scheduler.step

    def held() -> None:
        goes_on.wait()
        write()

    monkeypatch.setattr(scheduler, "step", held)
    body = b'{"model": "llama", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}'
    with contextlib.ExitStack() as stack:
        busy: list[socket.socket] = []

        def keep_busy(address: str) -> None:
            for _ in range(3):
                busy.append(stack.enter_context(connect(server, address)))
                busy[-1].sendall(post("/v1/chat/completions", body))
            until(lambda: sum(not one.is_waiting for one in server.open_connections()) == len(busy))

        def refusal(address: str) -> tuple[str, bytes]:
            with connect(server, address) as connection:
                return read_answer(connection)

        keep_busy("127.0.0.1")
        head, told = refusal("127.0.0.1")
        assert "429 too many requests" in head and b"--max-per-address" in told
        assert "x-request-id: req_" in head and "retry-after" in head
        keep_busy("127.0.0.2")
        head, told = refusal("127.0.0.3")
        assert "503 service unavailable" in head and b'"code":"too_many_connections"' in told
        goes_on.set()
        assert all("200 ok" in read_answer(one)[0] for one in busy)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_refused_connection_is_logged_with_its_id_and_counted(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    name = 'mmrec_requests_total{route="other",status="400"}'

    def counted() -> float:
        lines = server.context.metrics.render().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before, ids = counted(), []
    for _ in range(3):
        with connect(server) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            ids.append(read_answer(connection)[0].partition("x-request-id: ")[2].split()[0])
    assert counted() == before + 3
    logged = [record for record in caplog.records if "refused" in record.getMessage()]
    assert [vars(record)["request_id"] for record in logged] == ids
    said = TextFormatter().format(logged[0])
    assert "WARNING a connection was refused: 400 invalid_http, 127.0.0.1" in said and ids[0] in said
    repeats = RepeatFilter()
    assert [repeats.filter(record) for record in logged] == [True, False, False]


def test_what_is_no_http_is_told_so(serve: Any) -> None:
    server = serve()
    for sent in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 2**17,
        b"\x16\x03\x01\x02\x00\x01",
    ):
        with connect(server) as connection:
            connection.sendall(sent + b"\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                head, body = read_answer(connection)
                assert "400 bad request" in head and b'"code":"invalid_http"' in body
    assert httpx.get(f"{server.url}/health").status_code == 200


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# What fuzzing found: bytes that are no HTTP within a request.
BROKEN = {
    # The request's own refusal was sent after that of the bytes: a traceback.
    "a request that is refused": POST.replace(b"localhost", b"other") + CHUNKED + b"x\r\n",
    "a request that goes on": POST + CHUNKED + b"1\r\n{\r\nx\r\n",
    # The refusal had a body, and what HEAD asks for may have none: a traceback.
    "HEAD": b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"+3\r\n",
    # The event loop did nothing else for half a second with each 256 KB.
    "a body in tiny chunks": POST + CHUNKED + b"1\r\n \r\n" * 2_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_http_within_a_request_is_refused_once(
    server: Server, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with connect(server) as connection:
        connection.sendall(BROKEN[name])
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert re.findall(rb"HTTP/1\.1 (\d{3})", answer) == [b"400"]
    until(lambda: not server.open_connections())
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_body_in_many_chunks_of_a_usual_size_is_read(server: Server) -> None:
    text = json.dumps({"model": "llama", "prompt": "a" * 200_000}).encode()
    parts = [text[at : at + 100] for at in range(0, len(text), 100)]
    answer = httpx.post(
        f"{server.url}/tokenize", content=iter(parts), headers={"Content-Type": "application/json"}
    )
    assert len(parts) > 2_000 and answer.status_code == 200


def test_limits_follow_from_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(files: int | None, *given: int | None) -> tuple[int, int]:
        monkeypatch.setattr(connections, "_max_open_files", lambda: files)
        found = resolve_limits(*given)
        return found.total, found.per_address

    assert limits(None) == limits(1_048_576) == (1_024, 512)
    assert limits(1_024) == (896, 448) and limits(128) == (32, 16)
    assert (
        limits(1_024, 100) == (100, 50) and limits(1_024, 100, 90) == (100, 90) and limits(1_024, 1) == (1, 1)
    )
    assert limits(None, 5_000) == (5_000, 2_500)
    with pytest.raises(ConfigError, match=r"--max-connections 5,000 .* 1,024 files.*ulimit -n 5128"):
        limits(1_024, 5_000)
    with pytest.raises(
        ConfigError, match=r"--max-per-address 5,000 .* 896 .* in all.*--max-connections 5000"
    ):
        limits(1_024, None, 5_000)
    with pytest.raises(ConfigError, match=r"--max-per-address 101 .* 100 connections"):
        limits(1_024, 100, 101)


# It may have 128 files open; at SIGUSR1 it uses up what is left of them, at SIGUSR2 it gives that back.
FEW = """
import os, resource, signal
from mm_rec.cli.main import main

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
held = []

def use_up(*_):
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass

def give_back(*_):
    while held:
        os.close(held.pop())

signal.signal(signal.SIGUSR1, use_up)
signal.signal(signal.SIGUSR2, give_back)
main()
"""


class Child:
    """`mmrec serve` with few files, and what it logs."""

    def __init__(self, model: Path) -> None:
        self._log = model.with_name("log")
        command = [sys.executable, "-c", FEW, "serve", str(model), "--port", "0", "--log-format", "json"]
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(command, cwd=model.parent, stderr=stderr)
        self.url = until(
            lambda: re.findall(r"(http://127.0.0.1:\d+)/v1", self._log.read_text()), self.is_alive
        )[0]
        self.port = int(self.url.rpartition(":")[2])

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged: all of it is JSON, the address too."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def times_said(self, words: str) -> int:
        return sum(words in line["message"] for line in self.lines())


@pytest.fixture(scope="module")
def child(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Child]:
    model = tmp_path_factory.mktemp("few") / "model"
    save_model(build_small("llama", vocabulary=len(chat_tokenizer)).float(), chat_tokenizer, model)
    running = Child(model)
    yield running
    running.process.kill()
    running.process.wait()


def test_300_silent_connections_do_not_stop_a_server_of_128_files(child: Child) -> None:
    before = len(child.lines())
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", child.port), LONGEST))
        for address in ("127.0.0.1", "127.0.0.2"):
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as http:
                assert all(http.get(f"{child.url}/health").status_code == 200 for _ in range(20))
    assert httpx.get(f"{child.url}/v1/models").status_code == 200
    until(lambda: len(child.lines()) > before, child.is_alive)
    assert [line["path"] for line in child.lines()[before:]] == ["/v1/models"]


def test_where_no_file_can_be_opened_the_server_says_it_once_and_goes_on(child: Child) -> None:

    def is_full() -> (
        bool
    ):  # asked again and again: one that was open when the others were taken may have been closed
        child.process.send_signal(signal.SIGUSR1)
        return len(list(Path(f"/proc/{child.process.pid}/fd").iterdir())) == 128

    until(is_full, child.is_alive)
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", child.port), LONGEST))
            for _ in range(20)
        ]
        until(lambda: child.times_said("socket.accept() out of system resource"), child.is_alive)
        child.process.send_signal(signal.SIGUSR2)
        assert all(ask(one) == 200 for one in waiting[-5:])
    assert child.times_said("socket.accept() out of system resource") == 1


def test_one_client_with_many_connections_is_served(server: Server) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= 1_024
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(server)) for _ in range(128)]
        assert all(ask(one) == 200 for one in opened * 2)
