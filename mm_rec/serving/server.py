"""Running the server, and stopping it without cutting anybody off."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from mm_rec.errors import ConfigError
from mm_rec.runtime import trim_malloc
from mm_rec.serving.connections import ConnectionLimits, ConnectionPool, LimitedProtocol, resolve_limits
from mm_rec.serving.model_registry import ModelRegistry

GRACE_SECONDS = 10.0  # for running requests when the server is to stop
_SWITCH_SECONDS = 0.0005
_TRIM_TICKS = 100  # of uvicorn, ten to a second
_BACKLOG = 2048  # connections that wait to be taken
_ACCEPTED_AT_ONCE = 16  # before their limits are looked at
_CLOSE_SECONDS = 5  # for the rest to get their error


class GracefulServer(uvicorn.Server):
    """Lets answers be finished for a while, then ends them with an error that their clients understand.

    `on_stopping` is called, where there are any, with how many are being finished. Asked to stop again, it ends
    them at once.
    """

    def __init__(
        self,
        app: FastAPI,
        grace_seconds: float = GRACE_SECONDS,
        on_stopping: Callable[[int], None] = lambda answers: None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        limits = limits or resolve_limits()
        count = app.state.context.metrics.count_request
        self._connections = ConnectionPool(limits, partial(count, "other"))
        protocol = partial(LimitedProtocol, self._connections)
        limit = math.ceil(grace_seconds) + _CLOSE_SECONDS
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", protocol),  # anything that makes one will do
                ws="none",
                backlog=_ACCEPTED_AT_ONCE,
                timeout_keep_alive=limits.idle_seconds,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=limit,
            )
        )
        self._registry: ModelRegistry = app.state.context.registry
        self._grace_seconds, self._on_stopping = grace_seconds, on_stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections; the system keeps more of them waiting than are taken at once."""
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        for one in sockets or []:
            one.listen(_BACKLOG)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Called by asyncio for an error that nobody awaits, such as that no file can be opened for a connection."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            for _ in range(_ACCEPTED_AT_ONCE):
                self._connections.make_room()
        loop.default_exception_handler(context)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for a signal to stop."""
        if self.should_exit:  # not uvicorn's way, which cuts its streams off
            threading.Thread(target=self._registry.close, daemon=True).start()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second: whether to stop."""
        if counter % _TRIM_TICKS == 0:
            asyncio.get_running_loop().run_in_executor(None, trim_malloc)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, and wait for those that are being answered."""
        if answers := self._registry.scheduler.num_running + self._registry.scheduler.num_waiting:
            self._on_stopping(answers)
        loop = asyncio.get_running_loop()
        end = loop.call_later(self._grace_seconds, lambda: loop.run_in_executor(None, self._registry.close))
        await super().shutdown(sockets)
        end.cancel()


def run(
    app: FastAPI,
    host: str,
    port: int,
    limits: ConnectionLimits,
    on_listening: Callable[[str], None],
    on_stopping: Callable[[int], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM; raises ConfigError where the address cannot be had.

    `on_listening` gets the address once it is open, `on_stopping` the number of answers that are still being
    finished at the end.
    """
    # What is loaded stays: a collection that looks through all of it stops every thread for a quarter of a second.
    gc.collect()
    gc.freeze()
    # At each wait the loop gives up the GIL, and gets it back after so long while a grammar or a body is worked on.
    sys.setswitchinterval(_SWITCH_SECONDS)
    with listen(host, port) as opened:
        shown = f"[{host}]" if ":" in host else host
        on_listening(f"http://{shown}:{opened.getsockname()[1]}")
        GracefulServer(app, on_stopping=on_stopping, limits=limits).run(sockets=[opened])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ConfigError where the address cannot be had."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.create_server(info[4][:2], family=info[0], backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(_bind_error(host, port, error)) from error
    # asyncio sets TCP_NODELAY where a socket says that it speaks TCP, and create_server leaves that open: without it
    # every answer on a kept connection waits 40 ms for the client's acknowledgement.
    return socket.socket(opened.family, opened.type, socket.IPPROTO_TCP, opened.detach())


def _bind_error(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"something listens at {host}:{port} already, perhaps another mmrec serve. Choose another port: "
            f"--port {port + 1}, or --port 0 for any that is free"
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine. --host 127.0.0.1 is its own, 0.0.0.0 all that it has"
    reason = os.strerror(error.errno or 0)
    return f"the server cannot listen at {host}:{port} ({reason}). Choose another port: --port 8000"
