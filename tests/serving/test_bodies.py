"""Bodies that go to disk: toy routes of the real server with the real middleware, asked message by message."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase

from mm_rec.serving import bodies
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.bodies import BodyLimit, body_file, body_limit

MIB = 2**20
toys = APIRouter()
seen: list[Any] = []  # what the toy routes saw of a body, beyond what they answer


class Broken(Exception):
    """What a toy route raises."""


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time can be moved on."""

    skipped = 0.0  # seconds

    def time(self) -> float:
        """The time in seconds."""
        return super().time() + self.skipped


def digest_of(chunks: Iterable[bytes]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return {"sha256": digest.hexdigest(), "size": size}


@toys.post("/toys/{name}")
@body_limit(BodyLimit(bytes=400 * MIB, seconds=60, to_disk=True))
async def upload(name: str, request: Request) -> dict[str, Any]:
    """A toy, as a file."""
    file = body_file(request)
    seen.append((file, stat.S_IMODE(os.fstat(file.fileno()).st_mode)))
    if name == "broken":
        raise Broken
    return digest_of(iter(lambda: file.read(MIB), b""))


@toys.post("/streamed")
@body_limit(BodyLimit(bytes=3 * MIB, seconds=60, to_disk=True))
async def streamed(request: Request) -> dict[str, Any]:
    """A toy, chunk by chunk."""
    return digest_of([chunk async for chunk in request.stream()])


@toys.post("/small")
@body_limit(BodyLimit(bytes=10, seconds=60))
async def small(request: Request) -> dict[str, Any]:
    """A toy in memory."""
    return digest_of([await request.body()])


class Told(NamedTuple):
    status: int
    body: Any


@pytest.fixture(scope="module")
def running(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bodies")
    policy = AccessPolicy(upload_folder=folder / "uploads")
    server = Server([small_model("llama", chat_tokenizer)], folder, policy=policy)
    server.app.include_router(toys)
    yield server
    server.stop()


@pytest.fixture
def app(running: Server) -> Iterator[FastAPI]:
    """The server's application; afterwards nothing of a body may be left."""
    seen.clear()
    yield running.app
    assert not list((running.folder / "uploads").glob("*"))
    assert all(file.closed for file, _ in seen)


def ask(
    app: FastAPI, path: str, chunks: AsyncIterator[bytes | None], headers: dict[str, str] | None = None
) -> Told:
    """The answer to a body that comes in these chunks; at None the client is gone."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        chunk = await anext(chunks, b"")
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost", **(headers or {})}
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    # What nobody expects is told, and raised again for the log.
    with contextlib.suppress(Broken), asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(app(scope, receive, send))
    return Told(sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent[1:])))


async def pieces(size: int, step: int = 64 * 1024, pause: float = 0.0) -> AsyncIterator[bytes | None]:
    """A body of that many bytes, none of them kept; `pause`: seconds before each chunk."""
    for start in range(0, size, step):
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        loop.skipped += pause
        for _ in range(5):  # time for what the clock has woken
            await asyncio.sleep(0)
        yield os.urandom(1) * min(step, size - start)


def code_of(told: Told) -> tuple[int, str]:
    error = told.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return told.status, error["code"]


def test_a_body_of_300_megabytes_is_never_in_memory(app: FastAPI) -> None:
    body = bytes(range(256)) * 256

    async def chunks() -> AsyncIterator[bytes | None]:
        for number in range(300 * MIB // len(body)):
            yield number.to_bytes(4) + body[4:]

    asked = hashlib.sha256()
    for number in range(300 * MIB // len(body)):
        asked.update(number.to_bytes(4) + body[4:])
    tracemalloc.start()
    told = ask(app, "/toys/a", chunks())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told == (200, {"sha256": asked.hexdigest(), "size": 300 * MIB})
    assert peak < 16 * MIB
    assert seen[0][1] == 0o600


def test_a_route_reads_a_body_from_disk_as_it_reads_any_other(app: FastAPI) -> None:
    assert ask(app, "/streamed", pieces(5 * MIB // 2)).body["size"] == 5 * MIB // 2
    assert ask(app, "/streamed", pieces(0)).body["size"] == 0


def test_each_route_has_its_own_limit(app: FastAPI) -> None:
    for path, most in (("/small", 10), ("/streamed", 3 * MIB), ("/tokenize", 8 * MIB)):
        announced = ask(app, path, pieces(0), {"content-length": str(most + 1)})
        assert code_of(announced) == (413, "request_too_large")
        assert f"{most:,} bytes" in announced.body["error"]["message"]
        assert code_of(ask(app, path, pieces(most + 1))) == (413, "request_too_large")
        assert ask(app, path, pieces(most)).status != 413


def test_no_more_than_the_limit_is_taken_from_the_client(app: FastAPI) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes | None]:
        nonlocal taken
        while True:
            taken += MIB
            yield b"x" * MIB

    assert code_of(ask(app, "/streamed", endless())) == (413, "request_too_large") and taken == 4 * MIB


def test_an_upload_may_take_long_but_not_be_silent(app: FastAPI) -> None:
    assert ask(app, "/toys/a", pieces(8, 1, pause=20.0)).body["size"] == 8
    assert code_of(ask(app, "/small", pieces(8, 1, pause=20.0))) == (408, "timeout")
    assert code_of(ask(app, "/toys/a", pieces(8, 1, pause=600.0))) == (408, "timeout")


def test_nothing_is_left_where_the_client_goes_or_the_route_fails(app: FastAPI) -> None:
    async def gone() -> AsyncIterator[bytes | None]:
        yield b"x" * 2 * MIB
        yield None

    assert ask(app, "/toys/a", gone()).status == 499 and not seen
    assert ask(app, "/toys/broken", pieces(MIB)).status == 500 and seen


def test_a_full_disk_is_told_before_it_is_full(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [bodies.RESERVED_BYTES + 2 * MIB]
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free[0]))
    assert ask(app, "/toys/a", pieces(MIB), {"content-length": str(MIB)}).status == 200
    full = ask(app, "/toys/a", pieces(0), {"content-length": str(3 * MIB)})
    assert code_of(full) == (507, "insufficient_storage")
    free[0] = bodies.RESERVED_BYTES + MIB // 2
    assert code_of(ask(app, "/toys/a", pieces(4 * MIB))) == (507, "insufficient_storage")


def test_an_upload_over_the_network(app: FastAPI, running: Server) -> None:
    body = os.urandom(5 * MIB)
    told = httpx.post(f"{running.url}/toys/a", content=body).json()
    assert told == digest_of([body])


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from mm_rec.serving.bodies import BodyLimit, read_body

chunks = iter([b"x" * 2**21] * 3)

async def receive():
    for chunk in chunks:
        return {"type": "http.request", "body": chunk, "more_body": True}
    os.kill(os.getpid(), signal.SIGKILL)

async def read():
    limit = BodyLimit(bytes=2**30, seconds=60, to_disk=True)
    async with read_body({"type": "http", "headers": []}, receive, limit, Path(sys.argv[1])):
        pass

asyncio.run(read())
"""


@pytest.mark.seldom(covers=["mm_rec/serving/bodies.py"])
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_nothing_is_left_where_the_server_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert folder.is_dir() and not list(folder.iterdir())
