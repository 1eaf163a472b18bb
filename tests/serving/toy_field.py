"""A field of chat completions as another package would add it: `one_of`, of whose words an answer is one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mm_rec.serving.protocol.chat_field import ChatField
from mm_rec.serving.protocol.schemas import ChatRequest, JsonSchema, ResponseFormat


def _apply(body: ChatRequest, words: list[str]) -> ChatRequest:
    schema = JsonSchema(name="one_of", schema={"enum": words})
    return body.model_copy(update={"response_format": ResponseFormat(type="json_schema", json_schema=schema)})


FIELD = ChatField(
    "one_of", Annotated[list[str], Field(min_length=1)], "The answer is one of these, as JSON.", _apply
)
