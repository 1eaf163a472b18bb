"""Access control before every request: host names, API keys, rate limits and body sizes.

Headers are checked before the body is read, and its size while it is read (`bodies.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mm_rec.serving.api_keys import RateLimiter, verify_key
from mm_rec.serving.api_route import find_route, require_known_queries, require_method
from mm_rec.serving.bodies import BodyLimit, limit_of, read_body
from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.store_threads import StoreThreads
from mm_rec.serving.usage import UsageRecorder
from mm_rec.store.store import Store
from mm_rec.store.tables import ApiKey

# Served without a key: none of it says anything of anybody.
PUBLIC_PATHS = frozenset({"/", "/health", "/openapi.json"})
_BODY_LIMIT = BodyLimit(bytes=8 * 2**20, seconds=30.0)
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Which requests are let in.

    `require_keys`: only those with an API key. `allowed_hosts`: only those whose Host header is one of these, or any
    where it is None: so a page of another site, shown by a browser on this machine, cannot reach the server under a
    name of its own (DNS rebinding). `body_limit` is that of the routes that have none of their own; where a route's
    bodies go to disk, it is into `upload_folder`.
    """

    require_keys: bool = False
    allowed_hosts: Collection[str] | None = LOCAL_HOSTS
    body_limit: BodyLimit = _BODY_LIMIT
    upload_folder: Path = Path("serving/uploads")


class AccessMiddleware:
    """ASGI middleware: pass a request on or answer it with an error."""

    def __init__(
        self, app: ASGIApp, store: Store, policy: AccessPolicy, usage: UsageRecorder, threads: StoreThreads
    ) -> None:
        self._app, self._store, self._policy = app, store, policy
        self._rate_limiter, self._threads = RateLimiter(usage), threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async with contextlib.AsyncExitStack() as stack:
            try:
                route, other_methods = find_route(scope)
                if route is not None:
                    scope["state"]["record"].route = route.path
                await self._check(scope)
                require_method(other_methods)
                if route is not None:
                    require_known_queries(scope, route)
                limit = limit_of(route, self._policy.body_limit)
                body = read_body(scope, receive, limit, self._policy.upload_folder)
                replay = await stack.enter_async_context(body)
            except Exception as error:  # noqa: BLE001  # the store may fail too; a client is told in OpenAI's shape
                await as_api_error(error).response()(scope, receive, send)
                return
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # uvicorn, which has the other, leaves the body out
            await self._app(scope, replay, send)

    async def _check(self, scope: Scope) -> None:
        headers, policy = Headers(scope=scope), self._policy
        host = headers.get("host", "")
        if policy.allowed_hosts is not None and _without_port(host) not in policy.allowed_hosts:
            raise ApiError(
                403,
                f"this server answers on this machine alone, and not as {host[:100]!r}",
                code="wrong_host",
            )
        if policy.require_keys and scope["path"] not in PUBLIC_PATHS:
            key = await self._authenticate(headers)
            scope["state"]["owner"], scope["state"]["record"].key = key.id, key.name

    async def _authenticate(self, headers: Headers) -> ApiKey:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        key = None
        why = "this server needs an API key: send Authorization: Bearer KEY (mmrec keys create makes one)"
        if scheme.lower() == "bearer" and text:
            key = await self._threads.read(verify_key, self._store, text.strip())
            why = "this API key is unknown, revoked or expired: mmrec keys list shows all, mmrec keys create makes one"
        if key is None:
            raise ApiError(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        exceeded = await self._threads.read(self._rate_limiter.hit, key)
        if exceeded is not None:
            raise ApiError(
                429, exceeded.message, code="rate_limit_exceeded", type=exceeded.kind,
                headers={"Retry-After": str(exceeded.retry_after)},
            )  # fmt: skip
        return key


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
