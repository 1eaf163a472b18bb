"""Schemas of requests to the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from mm_rec.serving.protocol.request_model import (
    AtMost,
    FunctionName,
    Identifier,
    JsonList,
    JsonObject,
    JsonValue,
    Metadata,
    Refused,
    RequestModel,
    no_effect,
    refused,
)
from mm_rec.serving.protocol.schemas import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    Content,
    SamplingRequest,
    StreamOptions,
    Truncation,
)


class InputMessage(RequestModel):
    """A message, also one that a response held."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content
    id: str | None = no_effect("what is in the message counts")
    status: str | None = no_effect("as id")


class FunctionCall(RequestModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    parsed_arguments: JsonValue = no_effect("the client's own; arguments are read")
    id: str | None = no_effect("the call_id counts")
    status: str | None = no_effect("as id")


class FunctionCallOutput(RequestModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = no_effect("the call_id counts")
    status: str | None = no_effect("as id")


class ReasoningText(RequestModel):
    """What a model thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(RequestModel):
    """What a model thought before the message or call that follows."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], AtMost(MAX_PARTS, "parts")] | None = None
    summary: JsonList | None = no_effect("the content is read")
    encrypted_content: str | None = no_effect("as summary")
    id: str | None = no_effect("what is in the item counts")
    status: str | None = no_effect("as id")


class ItemReference(RequestModel):
    """An item of a response that was kept, in its place."""

    type: Literal["item_reference"]
    id: str


_ITEMS = {
    "message": "InputMessage",
    "function_call": "FunctionCall",
    "function_call_output": "FunctionCallOutput",
    "reasoning": "ReasoningItem",
    "item_reference": "ItemReference",
}


def _known_item(value: Any) -> Any:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _ITEMS:
        raise ValueError(f"an item of the type {kind[:40]!r} cannot be read here; give {', '.join(_ITEMS)}")
    return value


def _tag(value: Any) -> str:
    """Which of the items a value is read as; what is none fails as a message."""
    kind = value.get("type") if isinstance(value, dict) else None
    return _ITEMS.get(str(kind), "InputMessage")


InputItem = Annotated[
    Annotated[InputMessage, Tag("InputMessage")]
    | Annotated[FunctionCall, Tag("FunctionCall")]
    | Annotated[FunctionCallOutput, Tag("FunctionCallOutput")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")]
    | Annotated[ItemReference, Tag("ItemReference")],
    Discriminator(_tag),
    BeforeValidator(_known_item),
]


class ResponseTool(RequestModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = no_effect("calls always follow the schema")


class ChosenTool(RequestModel):
    """The tool that must be called, or one that may be."""

    type: Literal["function"]
    name: str


class AllowedResponseTools(RequestModel):
    """Those tools of a request that may be called now."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1), AtMost(MAX_TOOLS, "tools")]


class TextFormat(RequestModel):
    """text, json_object, or json_schema with its name and schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: FunctionName | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    description: str | None = no_effect("the model does not see it")
    strict: bool | None = no_effect("a schema is always followed")

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        for given in (self.name, self.schema_):
            if (self.type == "json_schema") != (given is not None):
                raise ValueError("the type json_schema, and no other, has the fields name and schema")
        return self


class TextSettings(RequestModel):
    """How the text is to be."""

    format: TextFormat | None = None
    verbosity: str | None = no_effect("say in a message how long an answer should be")


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseRequest(SamplingRequest):
    """POST /v1/responses."""

    input: str | Annotated[list[InputItem], AtMost(MAX_MESSAGES, "items")]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[ResponseTool], AtMost(MAX_TOOLS, "tools")] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedResponseTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Included], AtMost(8, "words")] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    truncation: Truncation | None = None
    stream_options: StreamOptions | None = no_effect("the last event says what was used")
    reasoning: JsonObject | None = no_effect("a model reasons as its chat template has it, or not at all")
    safety_identifier: Identifier | None = no_effect("nothing is counted by it")
    service_tier: str | None = no_effect("there is one tier")
    prompt_cache_key: Identifier | None = no_effect("what was read before is found by its text")
    prompt_cache_retention: str | None = no_effect("what was read is kept while there is room")
    prompt_cache_options: JsonObject | None = no_effect("as prompt_cache_retention")
    max_tool_calls: int | None = no_effect("there are no built-in tools, which alone it counts")
    background: Annotated[
        Literal[False] | None, Field(description="Refused where it is true: answers come at once.")
    ] = None
    conversation: Refused = refused("use previous_response_id, or a session")
    prompt: Refused = refused("there are no stored prompts")
    context_management: Refused = refused("use truncation")
    moderation: Refused = refused("nothing is moderated")
    background_options: Refused = refused("answers come at once")
    access_programs: Refused = refused("there are none")
    image: Refused = refused("these models read text alone")
