"""What requests ask for in the engine's terms: messages, sampling, grammars."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.conversation import ToolCall as Call
from mm_rec.data.conversations.messages import in_call_order, turns
from mm_rec.data.conversations.rendering import require_plain
from mm_rec.data.conversations.turns import prompt_parts
from mm_rec.inference.constrained import Constraint
from mm_rec.inference.sampling import Sampling
from mm_rec.inference.text_stream import plain_ids, prompt_ids
from mm_rec.serving.errors import ApiError, about
from mm_rec.serving.generation import Prompt, prompt_for
from mm_rec.serving.models import Served
from mm_rec.serving.schemas import (
    AllowedToolsChoice,
    Body,
    CalledFunction,
    Message,
    NamedTool,
    Penalised,
    Sampled,
    Tool,
    text_of,
)

_FREE_SHARE = 4  # of a context that turns are dropped from, where it is not said how much is to be written
DROP_TURNS = 'Send less, write less, or send "truncation": "auto" to drop the oldest turns'
SEND_LESS = "Send less, or ask for fewer tokens"
Schemas = Sequence[Mapping[str, Any]]  # of tools, as templates and grammars take them


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    `answer_tokens`: the most that are written, and as many where a request does not say; `prompt_tokens`: the most that
    are read; `seconds`: the longest time.
    """

    answer_tokens: int = 8_192
    prompt_tokens: int = 262_144
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Names:
    """What a request calls that which is read and the most that is written, and what helps where both do not fit."""

    read: str
    write: str = ""
    remedy: str = SEND_LESS


def text_ids(served: Served, text: str, begin: bool = True) -> list[int]:
    """The ids of a plain text, special tokens that are written out in it too, begun as the tokenizer begins one.

    Raises UnicodeEncodeError for half of a surrogate pair, which no tokenizer takes.
    """
    text.encode()
    return (prompt_ids if begin else plain_ids)(served.model.tokenizer, text)


def require_with(request: Body, **others: str) -> None:
    """Raise ApiError for fields that would do nothing without others: these are named by their values."""
    for name, other in others.items():
        if getattr(request, name) is not None and not getattr(request, other):
            message = f"{name}: it goes with {other}, which is not here; send both, or leave this out"
            raise ApiError(400, message, name, "invalid_value")


def sampling_of(served: Served, request: Sampled, most_tokens: int) -> Sampling:
    """How tokens are chosen; OpenAI's defaults for what is not said."""
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": most_tokens}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        if (value := getattr(request, name)) is not None:
            values[name] = value
    if values["top_p"] == 0:  # the likeliest token alone
        values["top_p"] = 1e-9
    if isinstance(request, Penalised):
        values["stop"] = tuple(_stops(request))
        for name in ("frequency_penalty", "presence_penalty"):
            values[name] = getattr(request, name) or 0.0
        values["logit_bias"] = _biases(served, request.logit_bias or {})
        values["seed"] = None if request.seed is None else request.seed % 2**63
    return Sampling.read(values, where="the request")


def _stops(request: Penalised) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return [stop for stop in stops if stop]


def _biases(served: Served, biases: Mapping[str, float]) -> dict[int, float]:
    try:
        found = {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        message = "logit_bias: its keys are token ids, written as text"
        raise ApiError(400, message, "logit_bias", "invalid_value") from error
    with about("logit_bias"):
        served.model.engine.require_tokens(found)
    return found


def samplings(sampling: Sampling, n: int | None, most: int) -> list[Sampling]:
    """One sampling for each answer: those after the first go on from its seed."""
    if (n or 1) > most:
        raise ApiError(
            400, f"n: this server writes at most {most} answers at once; ask for fewer", "n", "invalid_value"
        )
    if sampling.seed is None:
        return [sampling] * (n or 1)
    return [sampling.changed(seed=(sampling.seed + number) % 2**63) for number in range(n or 1)]


def answer_tokens(
    served: Served, prompt_tokens: int, wanted: int | None, limits: Limits, names: Names, least: int = 1
) -> int:
    """How many tokens an answer may have; raises ApiError where the request asks for more, or there is no room.

    Where the request does not say, there must be room for `least`.
    """
    if prompt_tokens > limits.prompt_tokens:
        most = f"{limits.prompt_tokens:,} are the most. Send less"
        message = f"{names.read}: {prompt_tokens:,} tokens are more than this server reads; {most}"
        raise ApiError(400, message, names.read, "context_length_exceeded")
    if wanted is not None and wanted > limits.answer_tokens:
        most = f"{limits.answer_tokens:,} is the most"
        message = f"{names.write}: {wanted:,} is more than this server writes at once; {most}"
        raise ApiError(400, message, names.write, "invalid_value")
    limit = served.model.context_limit
    if limit is None:
        return wanted or limits.answer_tokens
    room = limit - prompt_tokens
    if room < (wanted or least):
        raise ContextFullError(served, prompt_tokens, wanted, names)
    return wanted or min(room, limits.answer_tokens)


class ContextFullError(ApiError):
    """A conversation that does not fit."""

    def __init__(self, served: Served, prompt_tokens: int, wanted: int | None, names: Names) -> None:
        asked = f", and {wanted:,} are to be written" if wanted else ""
        super().__init__(
            400,
            f"{names.read}: {served.name} holds at most {served.model.context_limit:,} tokens; the request has "
            f"{prompt_tokens:,}{asked}. {names.remedy}",
            names.read,
            "context_length_exceeded",
        )


def _in_messages(number: int, part: str) -> str:
    return f"messages[{number}].{part}"


def chat_messages(
    served: Served, messages: Sequence[Message], name: Callable[[int, str], str] = _in_messages
) -> list[ChatMessage]:
    """Messages as the templates take them; raises ApiError for what cannot be read.

    `name`: what the request calls a part (content, tool_calls, …) of the message of that number.
    """
    found = []
    for number, message in enumerate(messages):
        where = name(number, "tool_calls")
        calls = [_call(served, call.id, call.function, where) for call in message.tool_calls or []]
        if message.function_call is not None:
            calls.append(_call(served, "", message.function_call, name(number, "function_call")))
        if message.role == "tool" and message.tool_call_id is None:
            raise _missing(name(number, "tool_call_id"), "the result of a call says of which")
        if message.content is None and message.role != "assistant":
            raise _missing(name(number, "content"), "a message of this role has content")
        text = text_of(message.content) or message.refusal or ""
        require_no_special(served, text, name(number, "content"))
        role, reasoning = (
            "tool" if message.role == "function" else message.role,
            message.reasoning_content or "",
        )
        require_no_special(served, reasoning, name(number, "reasoning_content"))
        found.append(ChatMessage(role, text, tuple(calls), message.tool_call_id or "", reasoning=reasoning))
    _require_calls(found, name)
    return in_call_order(found)


def _missing(where: str, why: str) -> ApiError:
    return ApiError(400, f"{where}: {why}", where, "missing_required_parameter")


def _call(served: Served, call_id: str, function: CalledFunction, where: str) -> Call:
    try:
        arguments = json.loads(function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        message = f"{where}: the arguments are not JSON ({error})"
        raise ApiError(400, message, where, "invalid_value") from error
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}: the arguments are no JSON object", where, "invalid_value")
    require_no_special(served, json.dumps([function.name, arguments], ensure_ascii=False), where)
    return Call(function.name, arguments, call_id)


def _require_calls(messages: Sequence[ChatMessage], name: Callable[[int, str], str]) -> None:
    """Raise ApiError for the result of a call that is not in the message before; a session may have read that."""
    for start, stop in turns(messages):
        if messages[start].role == "tool":
            continue
        known = {call.id for call in messages[start].tool_calls}
        for number in range(start + 1, stop):
            call_id = messages[number].tool_call_id
            if call_id and call_id not in known:
                where = name(number, "tool_call_id")
                message = (
                    f"{where}: the message before has no call {call_id[:100]!r}; results follow their calls"
                )
                raise ApiError(400, message, where, "invalid_value")


def conversation_prompt(
    served: Served, messages: Sequence[ChatMessage], tools: Schemas, wanted: int | None, limits: Limits, names: Names,
    shorten: bool,
) -> tuple[Prompt, int]:  # fmt: skip
    """The prompt of a conversation, and how many tokens may be written.

    With `shorten` and a full context whole turns are dropped, the oldest first, and no more than must be: so many that
    a quarter of the context is free where the request does not say how much it wants. The system messages that open
    the conversation, and its last turn, stay.
    """
    starts = [place for place, message in enumerate(messages) if message.role == "user"]
    shorten = shorten and len(starts) > 1
    free = min(limits.answer_tokens, (served.model.context_limit or 0) // _FREE_SHARE)

    def without(dropped: int) -> Prompt:
        kept = [*messages[: starts[0]], *messages[starts[dropped] :]] if dropped else messages
        with about(names.read):
            return prompt_for(served, prompt_parts(served.model.tokenizer, kept, tools))

    def room(prompt: Prompt, least: int) -> int:
        return answer_tokens(served, prompt.length, wanted, limits, names, least)

    def fits(dropped: int) -> bool:
        try:
            return room(without(dropped), max(1, free)) > 0
        except ContextFullError:
            return False

    prompt = without(0)
    try:
        return prompt, room(prompt, max(1, free) if shorten else 1)
    except ContextFullError:
        if not shorten:
            raise
    dropped = bisect.bisect_left(range(len(starts)), True, lo=1, hi=len(starts) - 1, key=fits)
    prompt = without(dropped)
    return prompt, room(prompt, 1)


@dataclass(frozen=True, slots=True)
class Calling:
    """What tools may be called: `choice` is "auto", "required" or the name of one; `field` is that of the tools."""

    tools: Schemas
    choice: str
    parallel: bool
    field: str


def template_tools(
    served: Served, tools: Sequence[Tool] | None, field: str = "tools"
) -> list[dict[str, Any]]:
    """Tools as the model sees them: without what has no effect; raises ApiError for special tokens in them."""
    shown = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools or []]
    require_no_special(served, json.dumps(shown, ensure_ascii=False), field)
    return shown


def require_no_special(served: Served, text: str, where: str) -> None:
    """Raise ApiError where a text of the request's cannot stand in a conversation."""
    with about(where):
        require_plain(served.model.tokenizer, [text])


ToolChoice = str | NamedTool | AllowedToolsChoice | None


def calling_of(
    tools: Schemas,
    choice: ToolChoice,
    parallel: bool,
    field: str = "tools",
    choice_field: str = "tool_choice",
) -> Calling | None:
    """Which of the tools may be called; None where none may. Raises ApiError for a choice that is not there."""
    if not tools and choice not in (None, "none", "auto"):
        message = f"{choice_field}: there are no {field} to choose from"
        raise ApiError(400, message, choice_field, "invalid_value")
    if not tools or choice == "none":
        return None
    if isinstance(choice, NamedTool):
        name = choice.function.name
        return Calling(_allowed(tools, {name}, choice_field), name, False, field)
    if isinstance(choice, AllowedToolsChoice):
        names = {tool.function.name for tool in choice.allowed_tools.tools}
        return Calling(_allowed(tools, names, choice_field), choice.allowed_tools.mode, parallel, field)
    return Calling(tools, choice or "auto", parallel, field)


def _allowed(tools: Schemas, names: set[str], field: str) -> Schemas:
    """The tools of these names."""
    known = [tool["function"]["name"] for tool in tools]
    if missing := names.difference(known):
        message = f"{field}: there is no tool {min(missing)[:64]!r}; there are {', '.join(known)}"
        raise ApiError(400, message, field, "invalid_value")
    return [tool for tool in tools if tool["function"]["name"] in names]


def schema_of(kind: str, schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What an answer must follow: of json_schema its schema, of json_object any object; None for text."""
    return {"type": "object"} if kind == "json_object" else schema


def constrainer(
    served: Served, calling: Calling | None, schema: Mapping[str, Any] | None, field: str, prompt: Prompt
) -> Callable[[], Constraint] | None:
    """What makes the constraint of an answer to a prompt: calls, JSON of a schema, or none; raises ApiError for both.

    `field`: that of the schema.
    """
    if calling is not None and schema is not None:
        message = (
            f'{field}: a format and tools cannot be held to together; send "tool_choice": "none", or no tools'
        )
        raise ApiError(400, message, field, "invalid_value")

    def for_calls(calling: Calling) -> Constraint:
        with about(calling.field):
            return served.model.grammars.tool_calls(
                calling.tools, calling.choice, calling.parallel, prompt.ending
            )

    def for_schema(schema: Mapping[str, Any]) -> Constraint:
        with about(field):
            return served.model.grammars.json_schema(schema, prompt.ending)

    if calling is not None:
        return partial(for_calls, calling)
    return None if schema is None else partial(for_schema, schema)
