"""What stands before every request: who may come in, how often, and with how much.

Requests are looked at before their body is read. Addresses, keys and sizes are decided here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.keys import Limits, verify_key
from mm_rec.serving.metrics import Figures
from mm_rec.serving.store import Store

OPEN = frozenset({"/", "/health", "/openapi.json"})  # what needs no key: none of it says anything of anybody
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may come in.

    `keys`: only with an API key. `hosts`: only under these names, or any where it is None: a page of another site that
    a browser on this machine shows cannot reach the server under a name of its own. A body may have `body_bytes` and
    take `body_seconds`.
    """

    keys: bool = False
    hosts: Collection[str] | None = LOCAL_HOSTS
    body_bytes: int = 8 * 2**20
    body_seconds: float = 30.0


class Gate:
    """Lets a request in, or answers it with what was wrong; counts what was answered."""

    def __init__(self, app: ASGIApp, store: Store, rules: Rules, figures: Figures) -> None:
        self._app, self._store, self._rules, self._figures = app, store, rules, figures
        self._limits = Limits(store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._figures.count_request(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        try:
            await self._check(scope)
            body = await self._body(Headers(scope=scope), receive)
        except Exception as error:  # noqa: BLE001  # the store may fail too; a client is told in OpenAI's shape
            await as_api_error(error).response()(scope, receive, counted)
            return
        await self._app(scope, _replayed(body, receive), counted)

    async def _check(self, scope: Scope) -> None:
        headers, rules = Headers(scope=scope), self._rules
        host = headers.get("host", "")
        if rules.hosts is not None and _without_port(host) not in rules.hosts:
            raise ApiError(
                403,
                f"this server answers on this machine alone, and not as {host[:100]!r}",
                code="wrong_host",
            )
        if rules.keys and scope["path"] not in OPEN:
            scope.setdefault("state", {})["owner"] = await self._owner(headers)

    async def _owner(self, headers: Headers) -> str:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        key = None
        why = "this server needs an API key: send Authorization: Bearer KEY (mmrec keys create makes one)"
        if scheme.lower() == "bearer" and text:
            key = await asyncio.to_thread(verify_key, self._store, text.strip())
            why = "this API key is unknown, revoked or expired: mmrec keys list shows all, mmrec keys create makes one"
        if key is None:
            raise ApiError(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        refusal = await asyncio.to_thread(self._limits.admit, key)
        if refusal is not None:
            raise ApiError(
                429, refusal.message, code="rate_limit_exceeded", type=refusal.kind,
                headers={"Retry-After": str(refusal.retry_after)},
            )  # fmt: skip
        return key.id

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, as far as it may be long and take time."""
        most = self._rules.body_bytes
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._rules.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client has gone")
                    size += len(message.get("body", b""))
                    if size > most:
                        raise _too_large(most)
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError as error:
            raise ApiError(408, "the body of the request did not come in time", code="timeout") from error


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"a request has at most {most:,} bytes here; send less", code="request_too_large")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and then what else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
