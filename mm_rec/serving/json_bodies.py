"""JSON bodies: what is no JSON, or JSON that only one of two readers would understand so, is refused with its reason.

A large body is read and validated in a thread, by code that lets the event loop run beside it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
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
MAX_CONTAINERS = (
    500_000  # brackets and braces of a body, which bounds its memory: an empty object takes 64 bytes
)
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
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(errors) from error


def parse_body(body: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body; raises JsonError."""
    try:
        text = body.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"the byte 0x{body[error.start]:02x} at place {error.start:,}"
        raise JsonError(f"the body is not UTF-8: {where}; send JSON in UTF-8") from error
    containers = text.count("[") + text.count("{")
    if containers > MAX_CONTAINERS:
        raise JsonError(f"the body has more than {MAX_CONTAINERS:,} brackets and braces; send less")
    value = _decode(text)
    if containers > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    if not isinstance(value, dict):
        raise JsonError("the body is JSON, but no object; send a JSON object")
    if _SURROGATE.search(text):
        _require_unicode(value)
    return value


def _decode(text: str) -> Any:
    if not text.strip():
        raise JsonError("the body is empty; send a JSON object")
    try:
        return _DECODER.decode(text)
    except DuplicateKey as error:
        key = truncated(str(error.key), 100)
        why = f"the key {key!r} stands twice in one object of the body, and one of them would be lost; take one out"
        raise JsonError(why, key) from error
    except json.JSONDecodeError as error:
        raise JsonError(f"the body is not JSON: {error.msg}, after {error.pos:,} characters") from error
    except RecursionError as error:
        raise _too_deep() from error


def _too_deep() -> JsonError:
    return JsonError(
        f"the body has lists and objects more than {MAX_DEPTH} deep in each other; make it flatter"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise JsonError(f"an object of the body has {len(pairs):,} keys; the most are {MAX_KEYS:,}")
    return unique_keys(pairs)


def _whole_number(text: str) -> int:
    # In Python, so that the event loop has its turns while a list of millions is read.
    if len(text) > MAX_DIGITS:
        raise JsonError(f"a number of the body has {len(text):,} digits; the most are {MAX_DIGITS:,}")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)


def is_deeper(value: Any, most: int) -> bool:
    """Return whether there are more than so many lists and objects in each other, counted level by level."""
    level = [value]
    for _ in range(most):
        level = [one for container in level for one in _values(container) if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _values(container: Any) -> Any:
    return (
        container.values()
        if isinstance(container, dict)
        else container
        if isinstance(container, list)
        else ()
    )


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
