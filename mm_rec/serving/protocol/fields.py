"""The fields of chat completions that are modules of their own."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from mm_rec.errors import ConfigError
from mm_rec.serving.protocol.chat_field import ChatField
from mm_rec.serving.protocol.schemas import ChatRequest

_OWN: tuple[ChatField, ...] = ()
_FIELDS = {field.name: field for field in _OWN}


def register(field: ChatField) -> ChatField:
    """Add a field of another package, before the server is made; raises ConfigError where there is one of its name."""
    if field.name in ChatRequest.model_fields or _FIELDS.get(field.name, field) is not field:
        raise ConfigError(f"chat completions have a field {field.name!r} already. Give this one another name")
    return _FIELDS.setdefault(field.name, field)


def chat_request_type() -> type[ChatRequest]:
    """Return the schema of requests with all registered fields."""
    if not _FIELDS:
        return ChatRequest
    given: dict[str, Any] = {
        field.name: (field.type | None, Field(default=None, description=field.description))
        for field in _FIELDS.values()
    }
    return create_model("ChatRequest", __base__=ChatRequest, __doc__=ChatRequest.__doc__, **given)


def apply_fields(body: ChatRequest) -> ChatRequest:
    """Return a request as its registered fields change it, in the order of their registration."""
    for field in _FIELDS.values():
        value = getattr(body, field.name, None)
        if value is not None:
            body = field.apply(body, value)
    return body
