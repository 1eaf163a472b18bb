"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.prompt_parts import continuation_text
from mm_rec.data.conversations.rendering import prompt_text
from mm_rec.inference.generate import encode_rendered
from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.api_route import ApiRoute
from mm_rec.serving.context import RequestContext, request_context
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import EnginePrompt, TokenUsage, start_choices
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.answer_form import (
    ToolCallOptions,
    ToolChoice,
    answer_parsers,
    constraint_factory,
    output_schema,
    template_tools,
    tool_call_options,
)
from mm_rec.serving.protocol.chat_encoder import ChatEncoder
from mm_rec.serving.protocol.encoding import respond
from mm_rec.serving.protocol.events import Answer
from mm_rec.serving.protocol.fields import apply_fields, chat_request_type
from mm_rec.serving.protocol.preprocessing import (
    DROP_TURNS,
    SEND_LESS,
    FieldNames,
    ToolSchemas,
    build_sampling,
    fit_prompt,
    require_fields_together,
    resolve_max_tokens,
    sampling_per_choice,
    to_chat_messages,
)
from mm_rec.serving.protocol.schemas import ChatRequest, NamedFunction, NamedTool, ResponseFormat, Tool
from mm_rec.serving.protocol.tool_calls import needs_special_tokens
from mm_rec.serving.sessions import SessionTurn
from mm_rec.serving.streaming import cancel_on_disconnect


def make_router() -> APIRouter:
    """Make the route, for requests with the fields that are registered now."""
    router = APIRouter(route_class=ApiRoute)

    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(apply_fields(body), request)

    create_chat_completion.__annotations__["body"] = chat_request_type()
    router.add_api_route("/v1/chat/completions", create_chat_completion, methods=["POST"])
    return router


async def _answer(body: ChatRequest, request: Request) -> Response:
    async with contextlib.AsyncExitStack() as stack:
        context = stack.enter_context(request_context(request, body.model))
        _require_together(body)
        turn = await _open_session(context, body, stack)
        begun = _begin(context, body, turn, stack)
        answer = await cancel_on_disconnect(request.receive, begun, context.seconds_left)
        return await respond(
            request, context, answer, ChatEncoder(context, body, len(answer.choices)), stream=bool(body.stream),
            stack=stack, on_end=partial(_commit, context, answer, turn),
        )  # fmt: skip


async def _open_session(
    context: RequestContext, body: ChatRequest, stack: contextlib.AsyncExitStack
) -> SessionTurn | None:
    """Return a turn of the session that a request names; the stack holds the session until the answer is over."""
    if body.session is None:
        return None
    manager = context.server.sessions.turn(context.owner, body.session, context.variant)
    return await context.server.store_threads.enter(manager, stack)


async def _begin(
    context: RequestContext, body: ChatRequest, turn: SessionTurn | None, stack: contextlib.AsyncExitStack
) -> Answer:
    """Read the request and start its choices."""
    variant = context.variant
    tools = _tools_of(variant, body)
    call_options, schema = _tool_call_options(body, tools), _output_schema(body)
    prompt, samplings = await asyncio.to_thread(_prepare, context, body, tools, turn)
    choices = await start_choices(
        variant, prompt, samplings, context.seconds_left, context.meter,
        constrain=constraint_factory(context, call_options, schema, "response_format", prompt),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        with_special_tokens=needs_special_tokens(variant, call_options is not None),
    )  # fmt: skip
    for choice in choices:
        stack.callback(choice.cancel)
    parsers = answer_parsers(variant, prompt, call_options, schema, len(choices))
    return Answer(choices, parsers, TokenUsage(prompt.length, prompt.cached_tokens))


async def _commit(context: RequestContext, answer: Answer, turn: SessionTurn | None) -> None:
    """Store the state of a session after its turn."""
    if turn is None:
        return
    [choice] = answer.choices
    finished = None if choice is None else choice.finished_session()
    assert finished is not None  # there are no stop strings
    commit = context.server.sessions.commit
    await context.server.store_threads.write(commit, context.owner, turn, context.variant, finished)


def _require_together(body: ChatRequest) -> None:
    """Raise ApiError for fields that have no effect beside the others, or contradict them."""
    require_fields_together(
        body, stream_options="stream", top_logprobs="logprobs", function_call="functions", parallel_tool_calls="tools"
    )  # fmt: skip
    refused: list[tuple[object, str, str]] = []  # whether, which field, and why
    refused += [(body.functions and body.tools, "functions", "give tools or functions, not both")]
    refused += [(body.functions and body.tool_choice, "tool_choice", "of functions it is function_call")]
    if body.session is not None:
        refused += [((body.n or 1) > 1, "n", "a session goes on in one way; fork it for another")]
        refused += [(body.stop, "stop", "a session goes on after whole answers; leave this out")]
        refused += [(body.truncation == "auto", "truncation", "a session is never shortened; leave this out")]
    for is_given, name, why in refused:
        if is_given:
            raise ApiError(400, f"{name}: {why}", name, "invalid_value")


def _tools_of(variant: ModelVariant, body: ChatRequest) -> ToolSchemas:
    """Return the tools of a request, or its deprecated functions as tools."""
    if body.functions:
        tools = [Tool(type="function", function=function) for function in body.functions]
        return template_tools(variant, tools, "functions")
    return template_tools(variant, body.tools)


def _tool_call_options(body: ChatRequest, tools: ToolSchemas) -> ToolCallOptions | None:
    if not body.functions:
        return tool_call_options(tools, body.tool_choice, body.parallel_tool_calls is not False)
    choice: ToolChoice = body.function_call if isinstance(body.function_call, str) else None
    if isinstance(body.function_call, NamedFunction):
        choice = NamedTool(type="function", function=body.function_call)
    return tool_call_options(tools, choice, False, "functions", "function_call")


def _output_schema(body: ChatRequest) -> Mapping[str, Any] | None:
    wanted = body.response_format or ResponseFormat()
    return output_schema(wanted.type, wanted.json_schema.schema_ if wanted.json_schema else None)


def _prepare(
    context: RequestContext, body: ChatRequest, tools: ToolSchemas, turn: SessionTurn | None
) -> tuple[EnginePrompt, list[SamplingParams]]:
    """Return the prompt, and the sampling of each choice."""
    variant = context.variant
    truncate = body.truncation == "auto" if body.truncation else context.server.truncate
    remedy = SEND_LESS if truncate or turn else DROP_TURNS
    wanted, names = body.max_tokens, FieldNames("messages", "max_tokens", remedy)
    if body.max_completion_tokens is not None:
        wanted, names = body.max_completion_tokens, FieldNames("messages", "max_completion_tokens", remedy)
    messages = to_chat_messages(
        variant, body.messages, in_session=turn is not None and turn.session.length > 0
    )
    if turn is None:
        prompt, most = fit_prompt(context, messages, tools, wanted, names, truncate)
    else:
        prompt = _session_prompt(context.tokenizer, turn, messages, tools)
        most = resolve_max_tokens(context, prompt.length, wanted, names, read_before=prompt.cached_tokens)
    return prompt, sampling_per_choice(
        build_sampling(variant, body, most), body.n, variant.model.scheduler.max_running
    )


def _session_prompt(
    tokenizer: PreTrainedTokenizerBase, turn: SessionTurn, messages: Sequence[ChatMessage], tools: ToolSchemas
) -> EnginePrompt:
    """Return the prompt of a turn: the new messages alone, in an empty session after the tools."""
    is_new = not turn.session.length
    with errors_in_field("messages"):
        text = prompt_text(tokenizer, messages, tools) if is_new else continuation_text(tokenizer, messages)
    return EnginePrompt(turn.session, [encode_rendered(tokenizer, text)])
