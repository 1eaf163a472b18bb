"""The smaller routes: models, tokens, sessions, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter, Request, Response

from mm_rec import __version__
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.prompt_parts import require_known_layout
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.inference.generate import encode_rendered
from mm_rec.inference.request import GenerationRequest
from mm_rec.serving.api_route import ApiRoute, Limit
from mm_rec.serving.context import (
    RequestContext,
    ServerContext,
    get_context,
    get_owner,
    request_context,
)
from mm_rec.serving.errors import errors_in_field
from mm_rec.serving.generation import TokenUsage, prefill_only
from mm_rec.serving.metrics import CONTENT_TYPE
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.answer_form import template_tools
from mm_rec.serving.protocol.preprocessing import (
    FieldNames,
    require_prompt_length,
    resolve_max_tokens,
    to_chat_messages,
    tokenize_prompt,
)
from mm_rec.serving.protocol.schemas import DetokenizeRequest, SessionRequest, TokenizeRequest
from mm_rec.serving.sse import SafeJSONResponse
from mm_rec.serving.streaming import cancel_on_disconnect
from mm_rec.store.health import StoreUnavailableError
from mm_rec.store.tables import SavedSession

router = APIRouter(route_class=ApiRoute)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """All names that a request may give."""
    context = get_context(request)
    names = [*context.registry.variants, *context.registry.aliases]
    rows = [_model(context, name) for name in names]
    return SafeJSONResponse({"object": "list", "data": rows})


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> Response:
    """One of them."""
    return SafeJSONResponse(_model(get_context(request), name))


def _model(context: ServerContext, name: str) -> dict[str, Any]:
    variant = context.registry.find(name)
    return {
        "id": name,
        "object": "model",
        "created": variant.model.created,
        "owned_by": "mm-rec",
        "root": variant.name,
        "context_limit": variant.model.context_limit,
        "answer_limit": context.limits.max_tokens,
    }


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The ids of a text, or of a conversation, as the model reads them."""
    variant = _named(request, body.model)

    def ids() -> list[int]:
        tokenizer = variant.model.tokenizer
        if body.messages is None:
            with errors_in_field("prompt"):
                return tokenize_prompt(variant, body.prompt or "", begin=body.add_special_tokens)
        messages, tools = to_chat_messages(variant, body.messages), template_tools(variant, body.tools)
        with errors_in_field("messages"):
            return encode_rendered(tokenizer, prompt_text(tokenizer, messages, tools))

    limits = get_context(request).limits
    tokens = await cancel_on_disconnect(request.receive, asyncio.to_thread(ids), limits.timeout_seconds)
    require_prompt_length(limits, len(tokens), "prompt" if body.messages is None else "messages")
    return SafeJSONResponse(
        {"tokens": tokens, "count": len(tokens), "context_limit": variant.model.context_limit}
    )


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """What a client must know to use this server's tokenizer as its own, as lm-eval does."""
    tokenizer = _named(request, model).model.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "chat_template")
    return SafeJSONResponse({name: getattr(tokenizer, name) for name in names})


def _named(request: Request, name: str | None) -> ModelVariant:
    """Return the model of a name, or the first; only its tokenizer is used, which needs no lease."""
    return get_context(request).registry.find(name)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of ids, special tokens too."""
    variant, limits = _named(request, body.model), get_context(request).limits
    require_prompt_length(limits, len(body.tokens), "tokens")
    with errors_in_field("tokens"):
        variant.model.engine.require_tokens(body.tokens)
    decoded = asyncio.to_thread(
        variant.model.tokenizer.decode,
        body.tokens,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    text = await cancel_on_disconnect(request.receive, decoded, limits.timeout_seconds)
    return SafeJSONResponse({"prompt": text})


@router.post("/v1/sessions")
async def create_session(body: SessionRequest, request: Request) -> Response:
    """Begin a session, which has read these messages, or nothing yet."""
    with request_context(request, body.model) as context:
        created = _create(context, body)
        return SafeJSONResponse(await cancel_on_disconnect(request.receive, created, context.seconds_left))


async def _create(context: RequestContext, body: SessionRequest) -> dict[str, Any]:
    variant, tokenizer, sessions = context.variant, context.tokenizer, context.server.sessions
    with errors_in_field("model"):
        require_known_layout(tokenizer)

    def ids() -> list[int]:
        if not body.messages and not body.tools:
            return []
        messages, tools = to_chat_messages(variant, body.messages or []), template_tools(variant, body.tools)
        with errors_in_field("messages"):
            return encode_rendered(
                tokenizer, conversation_text(tokenizer, Conversation(tuple(messages), tuple(tools)))
            )

    read = await asyncio.to_thread(ids)
    resolve_max_tokens(context, len(read), None, FieldNames("messages"))
    session = variant.session()
    if read:
        prefill = GenerationRequest(session=session, prompt_ids=[read])
        await prefill_only(variant, prefill, context.seconds_left, context.meter)
        context.record_usage(TokenUsage(len(read)))
    row = await context.server.store_threads.write(sessions.create, context.owner, variant, session)
    return sessions.to_object(row, variant)


@router.get("/v1/sessions")
async def list_sessions(request: Request, after: str | None = None, limit: Limit = 20) -> Response:
    """The sessions, newest first, from the one after the id `after` on."""
    context = get_context(request)
    with errors_in_field("after"):
        page = await context.store_threads.read(context.store.list_sessions, get_owner(request), after, limit)
    rows = [_session_object(context, row) for row in page.rows]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return SafeJSONResponse({"object": "list", "data": rows, "has_more": page.has_more, **ends})


@router.get("/v1/sessions/{session_id}")
async def get_session(session_id: str, request: Request) -> Response:
    """One session."""
    context = get_context(request)
    row = await context.store_threads.read(context.sessions.get, get_owner(request), session_id)
    return SafeJSONResponse(_session_object(context, row))


@router.post("/v1/sessions/{session_id}/fork")
async def fork_session(session_id: str, request: Request) -> Response:
    """A new session that has read the same."""
    context, owner = get_context(request), get_owner(request)

    def fork() -> dict[str, Any]:
        with context.registry.lease(context.sessions.get(owner, session_id).name) as variant:
            return context.sessions.to_object(context.sessions.fork(owner, session_id, variant), variant)

    return SafeJSONResponse(await context.store_threads.write(fork))


@router.delete("/v1/sessions/{session_id}")
async def delete_session(session_id: str, request: Request) -> Response:
    """Forget a session."""
    context = get_context(request)
    await context.store_threads.write(context.sessions.delete, get_owner(request), session_id)
    return SafeJSONResponse({"id": session_id, "object": "session.deleted", "deleted": True})


def _session_object(context: ServerContext, row: SavedSession) -> dict[str, Any]:
    """Return a session as the API shows it; its model may not be served now."""
    return context.sessions.to_object(row, context.registry.variants.get(row.name))


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the server is at work, and on what: 503, and why, where it cannot keep what it should."""
    context = get_context(request)
    body = {"status": "ok", "version": __version__, "models": list(context.registry.variants)}
    if (fault := context.store.health.fault) is not None:
        return SafeJSONResponse({**body, "status": "degraded", "reason": fault}, 503)
    return SafeJSONResponse(body)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The metrics of the server, for Prometheus."""
    context = get_context(request)
    with contextlib.suppress(StoreUnavailableError):  # the rest is known without it
        context.metrics.set_stored(await context.store_threads.read(context.store.count_kept))
    return Response(context.metrics.render(), media_type=CONTENT_TYPE)
