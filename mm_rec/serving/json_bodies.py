"""JSON bodies: what is no JSON, or JSON that only one of two readers would understand so, is refused with its reason.

A large body is read and validated in a thread, by code that lets the event loop run beside it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from mm_rec.errors import truncated
from mm_rec.serving.errors import ApiError, field_name
from mm_rec.strict_parsing import DuplicateKey, unique_keys

MAX_DEPTH = 256  # of lists and objects in each other; what a field holds has a limit of its own
# Brackets and braces of a body, which bounds its memory: an empty object takes 64 bytes.
MAX_CONTAINERS = 500_000
MAX_KEYS = 10_000  # of one object, which bounds the errors of one body
MAX_DIGITS = 4_300  # of a whole number: Python's own limit
_LARGE_BYTES = 2**16  # read in a thread from here on
# Few: a large body takes several times its size while it is read, and its thread keeps that memory for a while.
_READERS = ThreadPoolExecutor(2, "bodies")
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A body that cannot be read; `place` is the field that it is about, if there is one."""

    def __init__(self, message: str, place: str | None = None) -> None:
        super().__init__(message)
        self.place = place


async def read_json(request: Request, schema: TypeAdapter[Any]) -> Any:
    """Return the body of a request as its schema has it; raises ApiError and RequestValidationError."""
    if not _is_json(request.headers.get("content-type", "")):
        raise ApiError(400, "send a JSON object, with Content-Type: application/json", None, "invalid_json")
    body = await request.body()
    if len(body) < _LARGE_BYTES:
        return _parse_and_validate(body, schema)
    return await asyncio.get_running_loop().run_in_executor(_READERS, _parse_and_validate, body, schema)


def _is_json(content_type: str) -> bool:
    # A page of another site may send a form or plain text without asking, and nothing else.
    message = Message()
    message["content-type"] = content_type
    kind = message.get_content_type()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _parse_and_validate(body: bytes, schema: TypeAdapter[Any]) -> Any:
    try:
        return schema.validate_python(parse_body(body))
    except JsonError as error:
        raise ApiError(400, str(error), error.place, "invalid_json") from error
    except ValidationError as error:
        # Without what was sent: a validator's own error, kept in its context, holds this frame, and the body with it.
        found = error.errors(include_url=False, include_context=False, include_input=False)
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise RequestValidationError(errors) from error


def parse_body(body: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body; raises JsonError."""
    try:
        text = body.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"the byte 0x{body[error.start]:02x} at place {error.start:,}"
        raise JsonError(f"the body is not UTF-8: {where}; send JSON in UTF-8") from error
    return _BODY_READER.parse(text)


class JsonReader:
    """Reads JSON objects within limits; `what` is their name in errors, `max_depth` that of lists and objects."""

    def __init__(self, what: str, max_depth: int) -> None:
        self._what, self._max_depth = what, max_depth
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._whole_number)

    def parse(self, text: str) -> dict[str, Any]:
        """Parse a JSON object; raises JsonError."""
        containers = text.count("[") + text.count("{")
        if containers > MAX_CONTAINERS:
            raise JsonError(f"{self._what} has more than {MAX_CONTAINERS:,} brackets and braces; send less")
        value = self._decode(text)
        if containers > self._max_depth and is_deeper(value, self._max_depth):
            raise self._too_deep()
        if not isinstance(value, dict):
            raise JsonError(f"{self._what} is JSON, but no object; send a JSON object")
        if _SURROGATE.search(text):
            _require_unicode(value)
        return value

    def _decode(self, text: str) -> Any:
        if not text.strip():
            raise JsonError(f"{self._what} is empty; send a JSON object")
        try:
            return self._decoder.decode(text)
        except DuplicateKey as error:
            key = truncated(str(error.key), 100)
            why = f"the key {key!r} stands twice in one object of {self._what}, and one of them would be lost"
            raise JsonError(f"{why}; take one out", key) from error
        except json.JSONDecodeError as error:
            why = f"{self._what} is not JSON: {error.msg}, after {error.pos:,} characters; send a JSON object"
            raise JsonError(why) from error
        except RecursionError as error:
            raise self._too_deep() from error

    def _too_deep(self) -> JsonError:
        return JsonError(
            f"{self._what} has lists and objects more than {self._max_depth} deep in each other; make it flatter"
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MAX_KEYS:
            why = f"an object of {self._what} has {len(pairs):,} keys; the most are {MAX_KEYS:,}"
            raise JsonError(f"{why}; send fewer")
        return unique_keys(pairs)

    def _whole_number(self, text: str) -> int:
        # In Python, so that the event loop has its turns while a list of millions is read.
        if len(text) > MAX_DIGITS:
            why = f"a number of {self._what} has {len(text):,} digits; the most are {MAX_DIGITS:,}"
            raise JsonError(f"{why}; shorten it")
        return int(text)


_BODY_READER = JsonReader("the body", MAX_DEPTH)


def is_deeper(value: Any, most: int) -> bool:
    """Return whether there are more than so many lists and objects in each other, counted level by level."""
    level = _containers([value])
    for _ in range(most):
        level = [
            one
            for container in level
            for one in _containers(container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [one for one in values if isinstance(one, dict | list)]


def _require_unicode(value: Any) -> None:
    for path, text in _strings(value, ()):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = rf"\u{ord(text[error.start]):04x}"
            # A key may be what is broken.
            place = field_name(path).encode("ascii", "backslashreplace").decode()
            raise JsonError(
                f"{place}: {half} at place {error.start:,} is half of a surrogate pair, which is no character; "
                "send both halves, or leave it out",
                place,
            ) from error


def _strings(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield all strings, keys too, each with the keys and indices that lead to it.

    They are put together as a name for the one that is wrong alone: a key may have megabytes, and a million items.
    """
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield (*path, key), key
            yield from _strings(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _strings(one, (*path, number))
