"""The smaller routes: models, tokens, sessions, health and figures."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from mm_rec import __version__
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.rendering import prompt_text, rendered_text
from mm_rec.data.conversations.turns import require_layout
from mm_rec.inference.text_stream import encode
from mm_rec.serving import metrics as figures
from mm_rec.serving.errors import ApiError, about
from mm_rec.serving.generation import Usage, read_with
from mm_rec.serving.models import Served
from mm_rec.serving.requests import Names, answer_tokens, chat_messages, template_tools, text_ids
from mm_rec.serving.schemas import DetokenizeRequest, SessionRequest, TokenizeRequest
from mm_rec.serving.service import Service, owner_of, service_of
from mm_rec.serving.sse import Json
from mm_rec.serving.streaming import unless_gone
from mm_rec.serving.tables import SavedSession

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=100)]


def require_queries(request: Request, *names: str) -> None:
    """Raise ApiError for what an address asks after its "?" and is not one of these names: it would do nothing."""
    for name in request.query_params:
        if name.removesuffix("[]") not in names:  # OpenAI's client writes lists so
            named = name.removesuffix("[]")[:100]
            raise ApiError(400, f"{named}: this is not known here; leave it out", named, "unknown_parameter")


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """All names that a request may give."""
    service = service_of(request)
    names = [*service.registry.named, *service.registry.aliases]
    rows = [_model(service, name) for name in names]
    return Json({"object": "list", "data": rows})


@router.get("/v1/models/{name:path}")
async def get_model(name: str, request: Request) -> Response:
    """One of them."""
    return Json(_model(service_of(request), name))


def _model(service: Service, name: str) -> dict[str, Any]:
    served = service.registry.find(name)
    return {
        "id": name,
        "object": "model",
        "created": served.model.created,
        "owned_by": "mm-rec",
        "root": served.name,
        "context_limit": served.model.context_limit,
        "answer_limit": service.limits.answer_tokens,
    }


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The ids of a text, or of a conversation, as the model reads them."""
    served = _named(request, body.model)

    def ids() -> list[int]:
        tokenizer = served.model.tokenizer
        if body.messages is None:
            with about("prompt"):
                return text_ids(served, body.prompt or "", begin=body.add_special_tokens)
        messages, tools = chat_messages(served, body.messages), template_tools(served, body.tools)
        with about("messages"):
            return encode(tokenizer, prompt_text(tokenizer, messages, tools))

    tokens = await asyncio.to_thread(ids)
    return Json({"tokens": tokens, "count": len(tokens), "context_limit": served.model.context_limit})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Response:
    """What a client must know to use this server's tokenizer as its own, as lm-eval does."""
    tokenizer = _named(request, model).model.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "chat_template")
    return Json({name: getattr(tokenizer, name) for name in names})


def _named(request: Request, name: str | None) -> Served:
    """The model of a name, or the first."""
    registry = service_of(request).registry
    return registry.find(registry.models[0].name if name is None else name)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of ids, special tokens too."""
    served = _named(request, body.model)
    with about("tokens"):
        served.model.engine.require_tokens(body.tokens)
    text = await asyncio.to_thread(
        served.model.tokenizer.decode,
        body.tokens,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return Json({"prompt": text})


@router.post("/v1/sessions")
async def create_session(body: SessionRequest, request: Request) -> Response:
    """Begin a session, which has read these messages, or nothing yet."""
    service, owner = service_of(request), owner_of(request)
    served = service.registry.find(body.model)
    return Json(await unless_gone(request.receive, _create(service, owner, served, body)))


async def _create(
    service: Service, owner: str | None, served: Served, body: SessionRequest
) -> dict[str, Any]:
    tokenizer = served.model.tokenizer
    with about("model"):
        require_layout(tokenizer)

    def ids() -> list[int]:
        if not body.messages and not body.tools:
            return []
        messages, tools = chat_messages(served, body.messages or []), template_tools(served, body.tools)
        with about("messages"):
            return encode(tokenizer, rendered_text(tokenizer, Conversation(tuple(messages), tuple(tools))))

    read = await asyncio.to_thread(ids)
    answer_tokens(served, len(read), None, service.limits, Names("messages"))
    session = served.session()
    if read:
        await read_with(served, session, [read], service.limits.seconds)
        service.account(owner, served, Usage(len(read)))
    row = await asyncio.to_thread(service.sessions.create, owner, served, session)
    return service.sessions.described(row, served)


@router.get("/v1/sessions")
async def list_sessions(request: Request, after: str | None = None, limit: Limit = 20) -> Response:
    """The sessions, newest first, from the one after the id `after` on."""
    require_queries(request, "after", "limit")
    service = service_of(request)
    with about("after"):
        page = await asyncio.to_thread(service.store.list_sessions, owner_of(request), after, limit)
    rows = [_described(service, row) for row in page.rows]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return Json({"object": "list", "data": rows, "has_more": page.has_more, **ends})


@router.get("/v1/sessions/{session_id}")
async def get_session(session_id: str, request: Request) -> Response:
    """One session."""
    service = service_of(request)
    row = await asyncio.to_thread(service.sessions.get, owner_of(request), session_id)
    return Json(_described(service, row))


@router.post("/v1/sessions/{session_id}/fork")
async def fork_session(session_id: str, request: Request) -> Response:
    """A new session that has read the same."""
    service, owner = service_of(request), owner_of(request)

    def fork() -> dict[str, Any]:
        served = service.registry.find(service.sessions.get(owner, session_id).name)
        return service.sessions.described(service.sessions.fork(owner, session_id, served), served)

    return Json(await asyncio.to_thread(fork))


@router.delete("/v1/sessions/{session_id}")
async def delete_session(session_id: str, request: Request) -> Response:
    """Forget a session."""
    service = service_of(request)
    await asyncio.to_thread(service.sessions.delete, owner_of(request), session_id)
    return Json({"id": session_id, "object": "session.deleted", "deleted": True})


def _described(service: Service, row: SavedSession) -> dict[str, Any]:
    """A session as the API shows it; its model may not be served now."""
    return service.sessions.described(row, service.registry.named.get(row.name))


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the server is at work, and on what."""
    registry = service_of(request).registry
    return Json({"status": "ok", "version": __version__, "models": list(registry.named)})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The figures of the server, for Prometheus."""
    return Response(service_of(request).figures.text(), media_type=figures.CONTENT_TYPE)
