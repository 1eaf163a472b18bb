"""The bodies of requests: each route says how large its own may be, and whether they go to disk.

A body is read before its route begins. One that goes to disk is written as it comes, so that memory stays flat however
large it is, into a file without a name: nothing of it is left, however the request or the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from fastapi import Request
from fastapi.routing import RouteContext
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from mm_rec.serving.errors import ApiError

CHUNK_BYTES = 2**20  # written to disk, and read from it, at once
RESERVED_BYTES = 2**28  # of the disk: left free for the store and the sessions
_ATTRIBUTE = "body_limit"  # of a route's function
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """What a route takes: a body of at most so many bytes, which arrives in time.

    `seconds`: the longest time of the whole body; where it goes `to_disk`, of the silence between two chunks.
    """

    bytes: int
    seconds: float
    to_disk: bool = False


def body_limit(limit: BodyLimit) -> Callable[[_Endpoint], _Endpoint]:
    """Give a route its limit; stands below `@router.post(…)`."""

    def mark(endpoint: _Endpoint) -> _Endpoint:
        setattr(endpoint, _ATTRIBUTE, limit)
        return endpoint

    return mark


def limit_of(route: RouteContext | None, default: BodyLimit) -> BodyLimit:
    """Return the limit of a route; the default where there is none, or it says nothing."""
    limit: BodyLimit = getattr(route and route.endpoint, _ATTRIBUTE, default)
    return limit


def body_file(request: Request) -> IO[bytes]:
    """Return the body of a request to a route with `to_disk`, as a file at its beginning; it is closed at the end."""
    file: IO[bytes] = request.state.body_file
    return file


@contextlib.asynccontextmanager
async def read_body(scope: Scope, receive: Receive, limit: BodyLimit, folder: Path) -> AsyncIterator[Receive]:
    """Read a body within its limit; yields a `receive` that gives it again, then what comes after it.

    `folder`: where bodies go to disk. Raises ApiError: 413 for too large a body, 408 for too slow a one, 415 for a
    compressed one, 499 where the client has gone, 507 where the disk is full.
    """
    headers = Headers(scope=scope)
    if (encoding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
        why = f"Content-Encoding {encoding[:40]!a} is not read here; send the body as it is"
        raise ApiError(415, why, code="unsupported_encoding", headers={"Accept-Encoding": "identity"})
    length = headers.get("content-length", "0")
    announced = int(length[:20]) if length.isascii() and length.isdigit() else 0
    if announced > limit.bytes:
        raise _too_large(limit)
    async with contextlib.aclosing(_chunks(receive, limit)) as chunks:
        if not limit.to_disk:
            yield _replay(_one(b"".join([chunk async for chunk in chunks])), receive)
            return
        with await asyncio.to_thread(_open_file, folder, announced) as file:
            await _write(chunks, file, folder)
            scope.setdefault("state", {})["body_file"] = file
            yield _replay(_file_chunks(file), receive)


async def _chunks(receive: Receive, limit: BodyLimit) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a body as they come, within its limit."""
    loop, size, has_more = asyncio.get_running_loop(), 0, True
    deadline = loop.time() + limit.seconds
    while has_more:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise ApiError(408, "the body of the request did not come in time", code="timeout") from error
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client has gone")
        chunk, has_more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit.bytes:
            raise _too_large(limit)
        yield chunk
        if limit.to_disk:
            deadline = loop.time() + limit.seconds


def _too_large(limit: BodyLimit) -> ApiError:
    return ApiError(
        413, f"a request has at most {limit.bytes:,} bytes here; send less", code="request_too_large"
    )


def _open_file(folder: Path, announced: int) -> IO[bytes]:
    """Open a new file that nobody else can read, where there is room for what is announced."""
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, announced)
    return tempfile.TemporaryFile(dir=folder)


async def _write(chunks: AsyncIterator[bytes], file: IO[bytes], folder: Path) -> None:
    """Write a body to disk as it comes."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= CHUNK_BYTES:
            await asyncio.to_thread(_append, held, file, folder)
            held = bytearray()
    await asyncio.to_thread(_append, held, file, folder)
    file.seek(0)


def _append(data: bytearray, file: IO[bytes], folder: Path) -> None:
    _require_space(folder, len(data))
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        raise


def _require_space(folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size + RESERVED_BYTES:
        raise _disk_full()


def _disk_full() -> ApiError:
    return ApiError(
        507, "the disk of this server is full; send less, or free some space there",
        code="insufficient_storage", type="server_error",
    )  # fmt: skip


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _file_chunks(file: IO[bytes]) -> AsyncGenerator[bytes, None]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk


def _replay(chunks: AsyncGenerator[bytes, None], receive: Receive) -> Receive:
    """Return a `receive` that gives the chunks of a body already read, then whatever comes after it."""
    is_over = False

    async def again() -> Message:
        nonlocal is_over
        if is_over:
            return await receive()
        chunk = await anext(chunks, None)
        is_over = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": not is_over}

    return again
