"""Running the server, and stopping it without cutting anybody off."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from mm_rec.errors import ConfigError
from mm_rec.serving.models import Registry

FINISH_SECONDS = 10.0  # for answers that are being written when the server is to stop
_TRIM_TICKS = 100  # of uvicorn, ten to a second
_CLOSE_SECONDS = 5  # for the rest to be told


class GracefulServer(uvicorn.Server):
    """Lets answers be finished for a while, then ends them with an error that their clients understand."""

    def __init__(self, app: FastAPI, finish_seconds: float = FINISH_SECONDS) -> None:
        limit = math.ceil(finish_seconds) + _CLOSE_SECONDS
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=limit,
            )
        )
        self._registry: Registry = app.state.service.registry
        self._finish_seconds = finish_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second: whether to stop."""
        if counter % _TRIM_TICKS == 0:
            asyncio.get_running_loop().run_in_executor(None, return_freed_memory)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, and wait for those that are being answered."""
        loop = asyncio.get_running_loop()
        end = loop.call_later(self._finish_seconds, lambda: loop.run_in_executor(None, self._registry.close))
        await super().shutdown(sockets)
        end.cancel()


def return_freed_memory() -> None:
    """Give freed tensors back to the system: the C library would keep gigabytes of the states of ended sessions."""
    with contextlib.suppress(OSError, AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def run(app: FastAPI, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `tell` gets the address once it is open. Raises ConfigError where it is taken."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.create_server(info[4][:2], family=info[0], backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"the server cannot listen at {host}:{port} ({error.strerror}). Choose another: --port {port + 1}"
        ) from error
    with opened:
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{opened.getsockname()[1]}")
        GracefulServer(app).run(sockets=[opened])
