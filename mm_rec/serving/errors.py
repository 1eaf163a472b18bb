"""Errors as OpenAI's clients know them: {"error": {message, type, param, code}}, all four keys always there."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mm_rec.errors import DataError, UserError
from mm_rec.inference.scheduler import QueueFullError
from mm_rec.inference.token_stream import RequestAbortedError, RequestTimeoutError
from mm_rec.serving.sse import SafeJSONResponse
from mm_rec.store.health import StoreUnavailableError

_log = logging.getLogger(__name__)
_MAX_NAME = 200  # characters of a field's name in an answer
_RETRY_SECONDS = 2  # Retry-After where the queue is full
_STORE_RETRY_SECONDS = 10  # Retry-After where the store fails
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
}
# Parts of a pydantic `loc` that name no field: body, query or path, and the member of a union that was tried.
_TAG = re.compile(r"body|query|path|str|int|float|bool|list|dict|none|[A-Z]\w*|.*[\[(].*", re.DOTALL)
METHOD_NOT_ALLOWED = "this address does not take this method; docs/openai.md lists what there is"
_NOT_FOUND = "there is nothing at this address; the API's begin with /v1, and docs/openai.md lists them"


class ApiError(Exception):
    """An error response; `param` is the field of the request that it is about, `code` a word for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, *,
        type: str = "invalid_request_error", headers: dict[str, str] | None = None,  # noqa: A002  # OpenAI's name
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> SafeJSONResponse:
        """Return the HTTP response."""
        return SafeJSONResponse(self.body, self.status, self.headers)


@contextlib.contextmanager
def errors_in_field(field: str) -> Iterator[None]:
    """Turn an error of a user's input raised inside into an ApiError that names the field of the request."""
    try:
        yield
    except (UserError, UnicodeEncodeError) as error:
        raise ApiError(400, f"{field}: {_message_of(error)}", field, "invalid_value") from error


def as_api_error(error: Exception) -> ApiError:
    """Return the ApiError that a client gets for an error; details of internal errors go to the log alone."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # a union has several
            return _from_validation_error(deepest)
        case QueueFullError() | RequestTimeoutError() | RequestAbortedError() | StoreUnavailableError():
            return _from_own_error(error)
        case UserError() | UnicodeEncodeError():
            return ApiError(400, _message_of(error), code="invalid_value")
        case HTTPException():
            # Only FastAPI's own 404 comes here: other methods are refused, and bodies read, before it is asked.
            said = _NOT_FOUND if error.status_code == 404 else str(error.detail)
            return ApiError(error.status_code, said, code="not_found", headers=dict(error.headers or {}))
        case _:
            return _internal_error(error)


def _from_own_error(
    error: QueueFullError | RequestTimeoutError | RequestAbortedError | StoreUnavailableError,
) -> ApiError:
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(_RETRY_SECONDS)}
        return ApiError(429, str(error), code="queue_full", type="rate_limit_error", headers=headers)
    if isinstance(error, RequestTimeoutError):
        return ApiError(408, str(error), code="timeout")
    if isinstance(error, StoreUnavailableError):
        headers = {"Retry-After": str(_STORE_RETRY_SECONDS)}
        return ApiError(503, str(error), code="store_unavailable", type="server_error", headers=headers)
    return ApiError(503, str(error), code="shutting_down", type="server_error")


def _internal_error(error: Exception) -> ApiError:
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed; its log says more", type="server_error")


def _message_of(error: UserError | UnicodeEncodeError) -> str:
    found = error if isinstance(error, UnicodeEncodeError) else error.__cause__
    if isinstance(found, UnicodeEncodeError):  # other layers say what a person at a terminal can do
        half = rf"\u{ord(found.object[found.start]):04x}"
        return f"a text holds {half}, half of a surrogate pair, which is no character; leave it out"
    if isinstance(error, DataError) and error.path is not None:  # no path of the server's in an answer
        return str(error).replace(str(error.path), error.path.name)
    return str(error)


def field_name(path: Iterable[str | int]) -> str:
    """Return a place in a body as messages[0].content, shortened: a client may choose a key of megabytes."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:_MAX_NAME]}" for part in path)
    return "".join(parts).removeprefix(".")[:_MAX_NAME]


def _from_validation_error(found: dict[str, Any]) -> ApiError:
    """Return one of pydantic's errors as an ApiError."""
    kind = found["type"]
    *path, last = found["loc"]
    named = [part for part in path if isinstance(part, int) or not _TAG.fullmatch(part)]
    if isinstance(last, int) or kind in ("missing", "extra_forbidden") or not _TAG.fullmatch(last):
        named.append(last)
    param = field_name(named)
    message = found["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "this field is not known here; leave it out"
    return ApiError(
        400, f"{param}: {message}" if param else message, param or None, _CODES.get(kind, "invalid_value")
    )


def add_exception_handlers(app: FastAPI) -> None:
    """Answer every error that is expected in OpenAI's shape; RequestLogMiddleware answers the others."""

    async def answer(request: Request, error: Exception) -> SafeJSONResponse:
        return as_api_error(error).response()

    for kind in (
        ApiError,
        RequestValidationError,
        QueueFullError,
        RequestTimeoutError,
        RequestAbortedError,
        StoreUnavailableError,
        UserError,
        UnicodeEncodeError,
        HTTPException,
    ):
        app.add_exception_handler(kind, answer)
