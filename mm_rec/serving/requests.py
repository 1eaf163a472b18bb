"""What requests ask for in the engine's terms: messages, sampling, grammars."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.conversation import ToolCall as Call
from mm_rec.data.conversations.messages import in_call_order
from mm_rec.data.conversations.rendering import require_plain
from mm_rec.data.conversations.turns import prompt_parts
from mm_rec.errors import UserError
from mm_rec.inference.constrained import Constraint
from mm_rec.inference.sampling import Sampling
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import Prompt, prompt_for
from mm_rec.serving.models import Served
from mm_rec.serving.schemas import CalledFunction, Message, Penalised, Sampled, text_of

_FREE_SHARE = 4  # of a context that turns are dropped from, where it is not said how much is to be written
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    `answer_tokens`: the most that are written, and as many where a request does not say; `prompt_tokens`: the most that
    are read; `seconds`: the longest time.
    """

    answer_tokens: int = 8_192
    prompt_tokens: int = 262_144
    seconds: float = 600.0


def sampling_of(request: Sampled, most_tokens: int) -> Sampling:
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
        values["logit_bias"] = _biases(request.logit_bias or {})
        values["seed"] = None if request.seed is None else request.seed % 2**63
    return Sampling.read(values, where="the request")


def _stops(request: Penalised) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return [stop for stop in stops if stop]


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in biases.items()}
    except ValueError as error:
        raise ApiError(400, "logit_bias: its keys are token ids, written as text", "logit_bias") from error


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
    served: Served, prompt_tokens: int, wanted: int | None, limits: Limits, field: str, least: int = 1
) -> int:
    """How many tokens an answer may have; raises ApiError where the request asks for more, or there is no room.

    Where the request does not say, there must be room for `least`.
    """
    if prompt_tokens > limits.prompt_tokens:
        message = (
            f"the request has {prompt_tokens:,} tokens; this server reads at most {limits.prompt_tokens:,}"
        )
        raise ApiError(400, f"{message}. Send less", None, "context_length_exceeded")
    if wanted is not None and wanted > limits.answer_tokens:
        message = f"{field}: {wanted:,} is more than this server writes at once; {limits.answer_tokens:,} is the most"
        raise ApiError(400, message, field, "invalid_value")
    limit = served.model.context_limit
    if limit is None:
        return wanted or limits.answer_tokens
    room = limit - prompt_tokens
    if room < (wanted or least):
        raise ContextFullError(served, prompt_tokens, wanted)
    return wanted or min(room, limits.answer_tokens)


class ContextFullError(ApiError):
    """A conversation that does not fit."""

    def __init__(self, served: Served, prompt_tokens: int, wanted: int | None) -> None:
        asked = f", and {wanted:,} are to be written" if wanted else ""
        super().__init__(
            400,
            f"{served.name} holds at most {served.model.context_limit:,} tokens; the request has {prompt_tokens:,}"
            f'{asked}. Send less, write less, or send "truncation": "auto" to drop the oldest turns',
            None,
            "context_length_exceeded",
        )


def chat_messages(served: Served, messages: Sequence[Message]) -> list[ChatMessage]:
    """Messages as the templates take them; raises ApiError with the place of what cannot be read."""
    found = []
    for place, message in enumerate(messages):
        calls = [
            _call(call.id, call.function, f"messages[{place}].tool_calls")
            for call in message.tool_calls or []
        ]
        if message.function_call is not None:
            calls.append(_call("", message.function_call, f"messages[{place}].function_call"))
        role = "tool" if message.role == "function" else message.role
        if role == "tool" and message.role == "tool" and message.tool_call_id is None:
            where = f"messages[{place}].tool_call_id"
            raise ApiError(
                400, f"{where}: the result of a call says of which", where, "missing_required_parameter"
            )
        if message.content is None and role != "assistant":
            where = f"messages[{place}].content"
            raise ApiError(
                400, f"{where}: a message of this role has content", where, "missing_required_parameter"
            )
        text = text_of(message.content) or message.refusal or ""
        _require_plain(served, text, f"messages[{place}].content")
        found.append(ChatMessage(role, text, tuple(calls), message.tool_call_id or ""))
    return in_call_order(found) if found else found


def _require_plain(served: Served, text: str, where: str) -> None:
    try:
        require_plain(served.model.tokenizer, [text])
    except UserError as error:
        raise ApiError(400, f"{where}: {error}", where, "invalid_value") from error


def _call(call_id: str, function: CalledFunction, where: str) -> Call:
    try:
        arguments = json.loads(function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, f"{where}: the arguments are not JSON ({error})", where, "invalid_value"
        ) from error
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}: the arguments are no JSON object", where, "invalid_value")
    return Call(function.name, arguments, call_id)


def conversation_prompt(
    served: Served, messages: Sequence[ChatMessage], tools: Tools, wanted: int | None, limits: Limits, field: str,
    shorten: bool,
) -> tuple[Prompt, int]:  # fmt: skip
    """The prompt of a conversation, and how many tokens may be written.

    With `shorten` and a full context whole turns are dropped, the oldest first, and no more than must be: so many that
    a quarter of the context is free where the request does not say how much it wants. The system messages that open
    the conversation, and its last turn, stay.
    """
    least = min(limits.answer_tokens, (served.model.context_limit or 0) // _FREE_SHARE) if shorten else 1

    def room(tokens: int, least: int = least) -> int:
        return answer_tokens(served, tokens, wanted, limits, field, max(1, least))

    prompt = prompt_for(served, prompt_parts(served.model.tokenizer, messages, tools))
    turns = [place for place, message in enumerate(messages) if message.role == "user"]
    if len(turns) < 2:
        shorten = False
    try:
        return prompt, room(prompt.length, least if shorten else 1)
    except ContextFullError:
        if not shorten:
            raise

    def without(dropped: int) -> Prompt:
        kept = [*messages[: turns[0]], *messages[turns[dropped] :]]
        return prompt_for(served, prompt_parts(served.model.tokenizer, kept, tools))

    def fits(dropped: int) -> bool:
        try:
            return room(without(dropped).length) > 0
        except ContextFullError:
            return False

    dropped = bisect.bisect_left(range(len(turns)), True, lo=1, hi=len(turns) - 1, key=fits)
    prompt = without(dropped)
    return prompt, room(prompt.length, 1)


@dataclass(frozen=True, slots=True)
class Calling:
    """What tools may be called: `choice` is "auto", "required" or the name of one, of `tools`."""

    tools: Tools
    choice: str
    parallel: bool


def constrainer(
    served: Served, calling: Calling | None, json_schema: Mapping[str, Any] | None
) -> Callable[[], Constraint] | None:
    """What makes the constraint of an answer: calls, JSON of a schema, or none; raises ApiError for both."""
    if calling is not None and json_schema is not None:
        message = 'a format cannot be held to together with tools; send "tool_choice": "none", or no tools'
        raise ApiError(400, message, "response_format", "invalid_value")
    if calling is not None:
        return lambda: served.model.grammars.tool_calls(calling.tools, calling.choice, calling.parallel)
    if json_schema is not None:
        return lambda: served.model.grammars.json_schema(json_schema)
    return None
