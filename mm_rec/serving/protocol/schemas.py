"""Schemas of the requests. Every field of OpenAI's is honoured, taken without effect, or refused by name.

A field that is not known is refused: what is ignored in silence changes what a program does without a word. The
descriptions say which fields have no effect and which are refused; docs/openai.md is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

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
    expects,
    no_effect,
    refused,
)

# OpenAI's.
MAX_TOOLS = 128
MAX_STOPS = 4
MAX_INPUTS = 2048
MAX_CHOICES = 128
# Ours.
MAX_MESSAGES = 2048
MAX_PARTS = 64  # of the content of one message
MAX_BIASES = 1024
MAX_IDS = 2**22  # as many as a body of 8 MiB can have


class Function(RequestModel):
    """What a tool can be called with; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = Field(
        default=None, description="Where there are none, the function takes none."
    )
    strict: bool | None = no_effect("calls always follow the schema")


class Tool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function
    cache_control: JsonValue = no_effect("what was read before is found by its text")


class CalledFunction(RequestModel):
    """A call, its arguments a string of JSON."""

    name: str
    arguments: str
    parsed_arguments: JsonValue = no_effect("the client's own; arguments are read")


class MessageToolCall(RequestModel):
    """A call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = no_effect("the place in the list counts")


def _text_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "refusal"):
        raise ValueError(f"this model reads text alone, and no part of the type {kind[:40]!r}; leave it out")
    return value


class TextPart(RequestModel):
    """A part of a message: its text, or the words of a refusal."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: JsonList | None = no_effect("they are not read")
    logprobs: JsonList | None = no_effect("they are not read")
    parsed: JsonValue = no_effect("the client's own; text is read")
    cache_control: JsonValue = no_effect("what was read before is found by its text")
    prompt_cache_breakpoint: JsonValue = no_effect("as cache_control")

    @model_validator(mode="after")
    def _has_its_text(self) -> TextPart:
        here, other = ("refusal", "text") if self.type == "refusal" else ("text", "refusal")
        if getattr(self, here) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of the type {self.type} has the field {here}, and not {other}")
        return self


Content = str | Annotated[list[Annotated[TextPart, BeforeValidator(_text_only)]], AtMost(MAX_PARTS, "parts")]


def content_text(content: Content | None) -> str:
    """Return a message's content as one text."""
    if isinstance(content, list):
        return "".join(part.text or part.refusal or "" for part in content)
    return content or ""


# Fields that only messages of one role have.
_ROLES = {
    "tool_calls": "assistant",
    "function_call": "assistant",
    "refusal": "assistant",
    "reasoning_content": "assistant",
    "tool_call_id": "tool",
}


class Message(RequestModel):
    """One message of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = no_effect("the layouts of conversations have no names")
    tool_calls: Annotated[list[MessageToolCall], AtMost(MAX_TOOLS, "calls")] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(
        default=None,
        description="What a model that reasons thought before it said this; its template may use it.",
    )
    annotations: JsonList | None = no_effect("they are not read")
    parsed: JsonValue = no_effect("the client's own; content is read")
    cache_control: JsonValue = no_effect("what was read before is found by its text")
    audio: Refused = refused("there is no sound")

    @model_validator(mode="after")
    def _is_of_its_role(self) -> Message:
        for name, role in _ROLES.items():
            if getattr(self, name) is not None and self.role != role:
                raise ValueError(f"{name} is for messages of the role {role}, and not {self.role}")
        if self.content and self.refusal:
            raise ValueError("a message has content or a refusal, not both")
        return self


class JsonSchema(RequestModel):
    """A named schema; it is always followed strictly."""

    name: FunctionName
    schema_: Annotated[JsonObject, Field(alias="schema")]
    description: str | None = no_effect("the model does not see it")
    strict: bool | None = no_effect("a schema is always followed")


class ResponseFormat(RequestModel):
    """text, json_object, or json_schema with its schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema, and no other, has the field json_schema: name and schema")
        return self


class NamedFunction(RequestModel):
    """The name of a function."""

    name: str


class NamedTool(RequestModel):
    """The tool that must be called, or one that may be."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestModel):
    """Those tools of a request that may be called now."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1), AtMost(MAX_TOOLS, "tools")]


class AllowedToolsChoice(RequestModel):
    """The choice of some tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class StreamOptions(RequestModel):
    """`include_usage`: a last chunk says what was used."""

    include_usage: bool = False
    include_obfuscation: bool | None = no_effect("nothing is padded")


Penalty = Annotated[float, Field(ge=-2, le=2)]


class SamplingRequest(RequestModel):
    """How tokens are chosen, in every kind of request; what is null is as if it were not there."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    user: Identifier | None = no_effect("nothing is counted by it")
    # Beyond OpenAI's, as vLLM and llama.cpp name them.
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None


Stop = Annotated[
    str | Annotated[list[str], AtMost(MAX_STOPS, "texts")],
    expects(f"a text, or a list of at most {MAX_STOPS} texts"),
]


Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], AtMost(MAX_BIASES, "biases of tokens")
]


class CompletionRequestBase(SamplingRequest):
    """What chat and completions have, and responses have not."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | None = None
    stream_options: StreamOptions | None = None


Truncation = Literal["auto", "disabled"]
Messages = Annotated[list[Message], AtMost(MAX_MESSAGES, "messages")]
Tools = Annotated[list[Tool], AtMost(MAX_TOOLS, "tools")]


class ChatRequest(CompletionRequestBase):
    """POST /v1/chat/completions."""

    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], AtMost(MAX_TOOLS, "functions")] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    modalities: Annotated[list[Literal["text"]], AtMost(8, "modalities")] | None = no_effect(
        "text is all there is"
    )
    metadata: Metadata | None = no_effect("chat completions are not kept")
    store: bool | None = no_effect("chat completions are not kept; responses are")
    safety_identifier: Identifier | None = no_effect("nothing is counted by it")
    service_tier: str | None = no_effect("there is one tier")
    prompt_cache_key: Identifier | None = no_effect("what was read before is found by its text")
    prompt_cache_retention: str | None = no_effect("what was read is kept while there is room")
    prompt_cache_options: JsonObject | None = no_effect("as prompt_cache_retention")
    prediction: JsonObject | None = no_effect("it would change the speed alone")
    reasoning_effort: str | None = no_effect("a model reasons as its chat template has it, or not at all")
    verbosity: str | None = no_effect("say in a message how long an answer should be")
    audio: Refused = refused("there is no sound")
    web_search_options: Refused = refused("nothing is searched")
    moderation: Refused = refused("nothing is moderated")
    # Beyond OpenAI's.
    session: str | None = Field(default=None, description="The session that these messages go on with.")
    truncation: Truncation | None = Field(
        default=None, description="auto: the oldest turns are dropped where the context is full."
    )


TokenIds = Annotated[list[int], Field(min_length=1), AtMost(MAX_IDS, "ids")]
Texts = Annotated[list[str], Field(min_length=1), AtMost(MAX_INPUTS, "texts")]
ListsOfIds = Annotated[list[TokenIds], Field(min_length=1), AtMost(MAX_INPUTS, "texts")]
PromptInput = Annotated[
    str | TokenIds | Texts | ListsOfIds,
    expects(
        f"a text, the ids of its tokens, or a list of at most {MAX_INPUTS:,} texts or of ids; a list may not be empty"
    ),
]
EmbeddingInput = Annotated[
    Annotated[str, Field(min_length=1)]
    | TokenIds
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AtMost(MAX_INPUTS, "texts")]
    | ListsOfIds,
    expects(
        f"a text, the ids of its tokens, or a list of at most {MAX_INPUTS:,} texts or ids; none of them may be empty"
    ),
]


def as_list(given: str | TokenIds | list[str] | list[TokenIds]) -> Sequence[str | list[int]]:
    """Return a field that may hold one or several inputs as a list, each as text or as ids."""
    if isinstance(given, str):
        return [given]
    return [given] if isinstance(given[0], int) else given


class CompletionRequest(CompletionRequestBase):
    """POST /v1/completions."""

    prompt: PromptInput
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=None, description="Must be n, where it is given."
    )
    suffix: Refused = refused("these models do not fill in the middle")


class EmbeddingRequest(RequestModel):
    """POST /v1/embeddings."""

    model: str
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Must be the model's own, where it is given."
    )
    user: Identifier | None = no_effect("nothing is counted by it")


class TokenizeRequest(RequestModel):
    """POST /tokenize: a text, or the messages of a conversation as the model reads them."""

    model: str | None = Field(default=None, description="The first model, where it is not given.")
    prompt: str | None = None
    add_special_tokens: bool = Field(
        default=True, description="Whether a prompt gets the tokenizer's own beginning."
    )
    messages: Messages | None = None
    tools: Tools | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        return self


class DetokenizeRequest(RequestModel):
    """POST /detokenize."""

    model: str | None = Field(default=None, description="The first model, where it is not given.")
    tokens: Annotated[list[int], AtMost(MAX_IDS, "ids")]


class SessionRequest(RequestModel):
    """POST /v1/sessions: a new session, which has read these messages."""

    model: str
    messages: Messages | None = None
    tools: Tools | None = None
