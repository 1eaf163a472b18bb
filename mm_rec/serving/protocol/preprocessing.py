"""From the body of a request to the engine's input: messages, prompt, sampling, token limits, constraints."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage, ToolCall
from mm_rec.data.conversations.message_formats import message_runs, order_tool_results
from mm_rec.data.conversations.prompt_parts import prompt_parts
from mm_rec.data.conversations.rendering import reject_special_tokens
from mm_rec.inference.generate import encode_prompt, encode_text
from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.context import RequestContext, RequestLimits
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import EnginePrompt, build_prompt
from mm_rec.serving.json_bodies import JsonError, JsonReader
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.request_model import MAX_JSON_DEPTH, RequestModel
from mm_rec.serving.protocol.schemas import (
    CalledFunction,
    CompletionRequestBase,
    Message,
    SamplingRequest,
    content_text,
)

_FREE_SHARE = 4  # of a context that turns are dropped from, where it is not said how much is to be written
DROP_TURNS = 'Send less, write less, or send "truncation": "auto" to drop the oldest turns'
_ARGUMENTS_READER = JsonReader("the text of the arguments", MAX_JSON_DEPTH)
SEND_LESS = "Send less, or ask for fewer tokens"
ToolSchemas = Sequence[Mapping[str, Any]]  # of tools, as templates and grammars take them


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The fields of a request for its prompt and for the limit of tokens, and the remedy where both do not fit."""

    prompt: str
    max_tokens: str = ""
    remedy: str = SEND_LESS


def tokenize_prompt(variant: ModelVariant, text: str, begin: bool = True) -> list[int]:
    """Return the ids of a plain text, special tokens written out in it too; with `begin`, the tokenizer's own first.

    Raises UnicodeEncodeError for half of a surrogate pair, which no tokenizer takes.
    """
    text.encode()
    return (encode_prompt if begin else encode_text)(variant.model.tokenizer, text)


def require_fields_together(request: RequestModel, **others: str) -> None:
    """Raise ApiError for fields that would do nothing without others: these are named by their values."""
    for name, other in others.items():
        if getattr(request, name) is not None and not getattr(request, other):
            message = f"{name}: it goes with {other}, which is not here; send both, or leave this out"
            raise ApiError(400, message, name, "invalid_value")


def build_sampling(variant: ModelVariant, request: SamplingRequest, most_tokens: int) -> SamplingParams:
    """Build the sampling parameters of a request from its fields of the same names; the defaults are OpenAI's."""
    given = {name: getattr(request, name, None) for name in SamplingParams.model_fields}
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": most_tokens}
    values |= {name: value for name, value in given.items() if value is not None}
    if values["top_p"] == 0:  # the likeliest token alone
        values["top_p"] = 1e-9
    if isinstance(request, CompletionRequestBase):
        values["stop"] = tuple(_stops(request))
        values["logit_bias"] = _biases(variant, request.logit_bias or {})
        values["seed"] = None if request.seed is None else request.seed % 2**63
    return SamplingParams.read(values, where="the request")


def _stops(request: CompletionRequestBase) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return [stop for stop in stops if stop]


def _biases(variant: ModelVariant, biases: Mapping[str, float]) -> dict[int, float]:
    try:
        found = {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        message = "logit_bias: its keys are token ids, written as text"
        raise ApiError(400, message, "logit_bias", "invalid_value") from error
    with errors_in_field("logit_bias"):
        variant.model.engine.require_tokens(found)
    return found


def sampling_per_choice(sampling: SamplingParams, n: int | None, most: int) -> list[SamplingParams]:
    """Return the sampling of each choice: those after the first count on from its seed."""
    if (n or 1) > most:
        raise ApiError(
            400, f"n: this server writes at most {most} answers at once; ask for fewer", "n", "invalid_value"
        )
    if sampling.seed is None:
        return [sampling] * (n or 1)
    return [sampling.replace(seed=(sampling.seed + number) % 2**63) for number in range(n or 1)]


def require_prompt_length(limits: RequestLimits, tokens: int, field: str) -> None:
    """Raise ApiError where all that a request has to be read, in tokens, is more than the server reads."""
    most = limits.max_prompt_tokens
    if tokens > most:
        message = (
            f"{field}: {tokens:,} tokens are more than this server reads; {most:,} are the most. Send less"
        )
        raise ApiError(400, message, field, "context_length_exceeded")


def resolve_max_tokens(
    context: RequestContext, prompt_tokens: int, wanted: int | None, names: FieldNames, least: int = 1,
    read_before: int = 0,
) -> int:  # fmt: skip
    """Return the most tokens of an answer; raises ApiError where the request asks for more, or there is no room.

    Where the request does not say, there must be room for `least`. `read_before`: tokens that a session has read
    already, so that this request does not read them.
    """
    variant, limits = context.variant, context.limits
    require_prompt_length(limits, prompt_tokens - read_before, names.prompt)
    if wanted is not None and wanted > limits.max_tokens:
        most = f"{limits.max_tokens:,} is the most"
        message = f"{names.max_tokens}: {wanted:,} is more than this server writes at once; {most}"
        raise ApiError(400, message, names.max_tokens, "invalid_value")
    limit = variant.model.context_limit
    if limit is None:
        return wanted or limits.max_tokens
    room = limit - prompt_tokens
    if room < (wanted or least):
        raise ContextLengthExceededError(variant, prompt_tokens, wanted, names)
    return wanted or min(room, limits.max_tokens)


class ContextLengthExceededError(ApiError):
    """A conversation that does not fit into the context."""

    def __init__(
        self, variant: ModelVariant, prompt_tokens: int, wanted: int | None, names: FieldNames
    ) -> None:
        asked = f", and {wanted:,} are to be written" if wanted else ""
        super().__init__(
            400,
            f"{names.prompt}: {variant.name} holds at most {variant.model.context_limit:,} tokens; the request has "
            f"{prompt_tokens:,}{asked}. {names.remedy}",
            names.prompt,
            "context_length_exceeded",
        )


def _in_messages(number: int, part: str) -> str:
    return f"messages[{number}].{part}"


def to_chat_messages(
    variant: ModelVariant,
    messages: Sequence[Message],
    name: Callable[[int, str], str] = _in_messages,
    *,
    in_session: bool = False,
) -> list[ChatMessage]:
    """Convert messages to those of the chat templates; raises ApiError for what cannot be read.

    `name`: what the request calls a part (content, tool_calls, …) of the message of that number; `in_session`: what
    came before them is not here.
    """
    found = []
    for number, message in enumerate(messages):
        where = name(number, "tool_calls")
        calls = [_call(variant, call.id, call.function, where) for call in message.tool_calls or []]
        if message.function_call is not None:
            calls.append(_call(variant, "", message.function_call, name(number, "function_call")))
        if message.role == "tool" and message.tool_call_id is None:
            raise _missing(name(number, "tool_call_id"), "the result of a call says of which")
        if message.content is None and message.role != "assistant":
            raise _missing(name(number, "content"), "a message of this role has content")
        text = content_text(message.content) or message.refusal or ""
        require_no_special_tokens(variant, text, name(number, "content"))
        role, reasoning = (
            "tool" if message.role == "function" else message.role,
            message.reasoning_content or "",
        )
        require_no_special_tokens(variant, reasoning, name(number, "reasoning_content"))
        found.append(ChatMessage(role, text, tuple(calls), message.tool_call_id or "", reasoning=reasoning))
    _require_calls(found, name, in_session)
    return order_tool_results(found)


def _missing(where: str, why: str) -> ApiError:
    return ApiError(400, f"{where}: {why}", where, "missing_required_parameter")


def _call(variant: ModelVariant, call_id: str, function: CalledFunction, where: str) -> ToolCall:
    try:
        arguments = _ARGUMENTS_READER.parse(function.arguments or "{}")
    except JsonError as error:
        raise ApiError(400, f"{where}: {error}", where, "invalid_value") from error
    require_no_special_tokens(variant, json.dumps([function.name, arguments], ensure_ascii=False), where)
    return ToolCall(function.name, arguments, call_id)


def _require_calls(
    messages: Sequence[ChatMessage], name: Callable[[int, str], str], in_session: bool
) -> None:
    """Raise ApiError for the result of a call that is not in the message before; a session may have read that."""
    for start, stop in message_runs(messages):
        begins_with_result = messages[start].role == "tool"
        if begins_with_result and in_session:
            continue
        known = {call.id for call in messages[start].tool_calls}
        for number in range(start if begins_with_result else start + 1, stop):
            call_id = messages[number].tool_call_id
            if call_id not in known:
                where = name(number, "tool_call_id")
                message = (
                    f"{where}: the message before it has no call {call_id[:100]!r}; send the message of the "
                    "assistant with that call before its result"
                )
                raise ApiError(400, message, where, "invalid_value")


def fit_prompt(
    context: RequestContext, messages: Sequence[ChatMessage], tools: ToolSchemas, wanted: int | None,
    names: FieldNames, truncate: bool,
) -> tuple[EnginePrompt, int]:  # fmt: skip
    """Return the prompt of a conversation, and the most tokens of its answer.

    With `truncate` and a full context whole turns are dropped, the oldest first, and no more than must be: so many that
    a quarter of the context is free where the request does not say how much it wants. The system messages that open
    the conversation, and its last turn, stay.
    """
    starts = [place for place, message in enumerate(messages) if message.role == "user"]
    truncate = truncate and len(starts) > 1
    variant = context.variant
    free = min(context.limits.max_tokens, (variant.model.context_limit or 0) // _FREE_SHARE)

    def without(dropped: int) -> EnginePrompt:
        kept = [*messages[: starts[0]], *messages[starts[dropped] :]] if dropped else messages
        with errors_in_field(names.prompt):
            return build_prompt(variant, prompt_parts(context.tokenizer, kept, tools), context.prefix_owner)

    def room(prompt: EnginePrompt, least: int) -> int:
        return resolve_max_tokens(context, prompt.length, wanted, names, least)

    def fits(dropped: int) -> bool:
        try:
            return room(without(dropped), max(1, free)) > 0
        except ContextLengthExceededError:
            return False

    prompt = without(0)
    try:
        return prompt, room(prompt, max(1, free) if truncate else 1)
    except ContextLengthExceededError:
        if not truncate:
            raise
    dropped = bisect.bisect_left(range(len(starts)), True, lo=1, hi=len(starts) - 1, key=fits)
    prompt = without(dropped)
    return prompt, room(prompt, 1)


def require_no_special_tokens(variant: ModelVariant, text: str, where: str) -> None:
    """Raise ApiError where a text of the request's cannot stand in a conversation."""
    with errors_in_field(where):
        reject_special_tokens(variant.model.tokenizer, [text])
