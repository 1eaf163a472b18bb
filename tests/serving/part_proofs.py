"""The parts of fields (a message's name, a schema's strict) that have no effect or are refused; others are honoured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openai.types import chat, responses, shared_params
from openai.types.responses import response_input_param
from openai.types.shared_params.response_format_json_schema import JSONSchema
from serving.openai_requests import CLOCK, TOOLS, WEATHER, Ask, Chat, Responses

from mm_rec.serving.protocol import request_model, response_schemas, schemas


@dataclass(frozen=True)
class Parts:
    """What may stand at one place of a request: in our schema, and in the client's typed dictionaries."""

    ask: type[Ask]
    place: str
    ours: type[request_model.RequestModel]
    theirs: tuple[Any, ...]


ALL = (
    Parts(Chat, "messages[]", schemas.Message, (
        chat.ChatCompletionAssistantMessageParam, chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionFunctionMessageParam, chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionToolMessageParam, chat.ChatCompletionUserMessageParam,
    )),
    Parts(Chat, "messages[].content[]", schemas.TextPart, (
        chat.ChatCompletionContentPartTextParam, chat.ChatCompletionContentPartRefusalParam,
    )),
    Parts(Chat, "messages[].tool_calls[]", schemas.MessageToolCall, (chat.ChatCompletionMessageFunctionToolCallParam,)),
    Parts(Chat, "tools[]", schemas.Tool, (chat.ChatCompletionFunctionToolParam,)),
    Parts(Chat, "tools[].function", schemas.Function, (shared_params.FunctionDefinition,)),
    Parts(Chat, "tool_choice.allowed_tools", schemas.AllowedTools, (chat.ChatCompletionAllowedToolsParam,)),
    Parts(Chat, "response_format.json_schema", schemas.JsonSchema, (JSONSchema,)),
    Parts(Chat, "stream_options", schemas.StreamOptions, (chat.ChatCompletionStreamOptionsParam,)),
    Parts(Responses, "input[]", response_schemas.InputMessage, (
        responses.EasyInputMessageParam, responses.ResponseOutputMessageParam, response_input_param.Message,
    )),
    Parts(Responses, "input[].content[]", schemas.TextPart, (
        responses.ResponseInputTextParam, responses.ResponseOutputTextParam, responses.ResponseOutputRefusalParam,
    )),
    Parts(Responses, "input[function_call]", response_schemas.FunctionCall, (
        responses.ResponseFunctionToolCallParam,
    )),
    Parts(Responses, "input[function_call_output]", response_schemas.FunctionCallOutput, (
        response_input_param.FunctionCallOutput,
    )),
    Parts(Responses, "input[reasoning]", response_schemas.ReasoningItem, (responses.ResponseReasoningItemParam,)),
    Parts(Responses, "tools[]", response_schemas.ResponseTool, (responses.FunctionToolParam,)),
    Parts(Responses, "text", response_schemas.TextSettings, (responses.ResponseTextConfigParam,)),
    Parts(Responses, "text.format", response_schemas.TextFormat, (responses.ResponseFormatTextJSONSchemaConfigParam,)),
)  # fmt: skip

Fields = dict[str, Any]


def _message(**more: Any) -> Fields:
    return {"messages": [{"role": "user", "content": "Hello!", **more}]}


def _assistant(**more: Any) -> Fields:
    said = {"role": "assistant", "content": "Hi.", **more}
    return {"messages": [*_message()["messages"], said, *_message()["messages"]]}


def _part(**more: Any) -> Fields:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!", **more}]}]}


def _chat_call(**more: Any) -> Fields:
    function = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    call = {"id": "call_1", "type": "function", "function": function, **more}
    told = {"role": "tool", "tool_call_id": "call_1", "content": "12:30"}
    return {"messages": [*_message()["messages"], {"role": "assistant", "tool_calls": [call]}, told]}


def _chat_tool(**more: Any) -> Fields:
    return {"tools": [{**TOOLS[0], **more}], "tool_choice": "none"}


def _function(**more: Any) -> Fields:
    return {
        "tools": [{"type": "function", "function": {**TOOLS[0]["function"], **more}}],
        "tool_choice": "none",
    }  # type: ignore[dict-item]


def _json_schema(**more: Any) -> Fields:
    held = {"name": "report", "schema": WEATHER, **more}
    return {"response_format": {"type": "json_schema", "json_schema": held}, "max_tokens": 250}


def _input(**more: Any) -> Fields:
    return {"input": [{"type": "message", "role": "user", "content": "Hello!", **more}]}


def _output_part(**more: Any) -> Fields:
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi.", **more}]}
    return {"input": [*_input()["input"], said, *_input()["input"]]}


def _call(**more: Any) -> Fields:
    made = {
        "type": "function_call",
        "call_id": "call_1",
        "name": "clock",
        "arguments": '{"zone": "UTC"}',
        **more,
    }
    told = {"type": "function_call_output", "call_id": "call_1", "output": "12:30"}
    return {"input": [*_input()["input"], made, told]}


def _called(**more: Any) -> Fields:
    told = {"type": "function_call_output", "call_id": "call_1", "output": "12:30", **more}
    return {"input": [*_call()["input"][:2], told]}


def _reasoning(**more: Any) -> Fields:
    thought = {
        "type": "reasoning",
        "content": [{"type": "reasoning_text", "text": "So."}],
        "summary": [],
        **more,
    }
    said = {"role": "assistant", "content": "Hi."}
    return {"input": [*_input()["input"], thought, said, *_input()["input"]]}


def _tool(**more: Any) -> Fields:
    tool = {"type": "function", "name": "clock", "parameters": CLOCK, **more}
    return {"tools": [tool], "tool_choice": "none"}


def _format(**more: Any) -> Fields:
    held = {"type": "json_schema", "name": "report", "schema": WEATHER, **more}
    return {"text": {"format": held}, "max_output_tokens": 250}


# A request with the part and the value that it is given there.
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "messages[].name": (_message, "Ayşe"),
    "messages[].annotations": (_assistant, []),
    "messages[].cache_control": (_message, {"type": "ephemeral"}),
    "messages[].parsed": (_assistant, {"a": 1}),
    "messages[].content[].annotations": (_part, []),
    "messages[].content[].cache_control": (_part, {"type": "ephemeral"}),
    "messages[].content[].logprobs": (_part, []),
    "messages[].content[].parsed": (_part, {"a": 1}),
    "messages[].tool_calls[].index": (_chat_call, 3),
    "tools[].cache_control": (_chat_tool, {"type": "ephemeral"}),
    "messages[].audio": (_assistant, {"id": "audio_1"}),
    "messages[].content[].prompt_cache_breakpoint": (_part, {"mode": "explicit"}),
    "tools[].function.strict": (_function, True),
    "response_format.json_schema.description": (_json_schema, "The weather."),
    "response_format.json_schema.strict": (_json_schema, False),
    "stream_options.include_obfuscation": (
        lambda **more: {"stream": True, "stream_options": {"include_usage": True, **more}}, True,
    ),
    "input[].id": (_input, "msg_1"),
    "input[].status": (_input, "completed"),
    "input[].phase": (_input, "final_answer"),
    "input[].content[].annotations": (_output_part, []),
    "input[].content[].logprobs": (_output_part, []),
    "input[].content[].prompt_cache_breakpoint": (_output_part, {"mode": "explicit"}),
    "input[].content[].cache_control": (_output_part, {"type": "ephemeral"}),
    "input[].content[].parsed": (_output_part, {"a": 1}),
    "input[function_call].parsed_arguments": (_call, {"zone": "UTC"}),
    "input[reasoning].encrypted_content": (_reasoning, "gAAAA"),
    "input[reasoning].id": (_reasoning, "rs_1"),
    "input[reasoning].status": (_reasoning, "completed"),
    "input[reasoning].summary": (_reasoning, [{"type": "summary_text", "text": "So."}]),
    "input[function_call].id": (_call, "fc_1"),
    "input[function_call].status": (_call, "completed"),
    "input[function_call].namespace": (_call, "time"),
    "input[function_call].caller": (_call, {"type": "direct"}),
    "input[function_call].async": (_call, True),
    "input[function_call_output].id": (_called, "fc_1"),
    "input[function_call_output].status": (_called, "completed"),
    "input[function_call_output].caller": (_called, {"type": "direct"}),
    "input[function_call_output].name": (_called, "clock"),
    "input[function_call_output].namespace": (_called, "time"),
    "tools[].strict": (_tool, True),
    "tools[].async": (_tool, True),
    "tools[].allowed_callers": (_tool, ["direct"]),
    "tools[].defer_loading": (_tool, True),
    "tools[].output_schema": (_tool, {"type": "string"}),
    "text.verbosity": (lambda **more: {"text": more}, "low"),
    "text.format.description": (_format, "The weather."),
    "text.format.strict": (_format, False),
}  # fmt: skip
