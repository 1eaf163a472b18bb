"""POST /v1/embeddings: a text as a vector, the mean of the model's last hidden states, of length 1."""

from __future__ import annotations

import base64
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from mm_rec.inference.engine import Session
from mm_rec.serving.errors import ApiError, about
from mm_rec.serving.generation import Usage, read_with
from mm_rec.serving.models import Served
from mm_rec.serving.requests import Names, answer_tokens, text_ids
from mm_rec.serving.schemas import EmbeddingRequest, several
from mm_rec.serving.service import Service, owner_of, service_of
from mm_rec.serving.sse import Json
from mm_rec.serving.streaming import unless_gone

router = APIRouter()
_NAMES = Names("input", remedy="Send shorter texts")


@router.post("/v1/embeddings")
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Turn texts into vectors."""
    service = service_of(request)
    served = service.registry.find(body.model)
    size = served.model.engine.model.config.get_text_config().hidden_size
    if body.dimensions not in (None, size):
        message = f"dimensions: this model's vectors have {size}, and cannot be shortened; leave this out"
        raise ApiError(400, message, "dimensions", "invalid_value")
    return Json(await unless_gone(request.receive, _embed(service, owner_of(request), served, body)))


async def _embed(
    service: Service, owner: str | None, served: Served, body: EmbeddingRequest
) -> dict[str, Any]:
    rows, usage = [], Usage(0)
    for number, one in enumerate(several(body.input)):
        with about("input"):
            ids = text_ids(served, one) if isinstance(one, str) else one
            served.model.engine.require_tokens(ids, f"the text {number}: ")
        answer_tokens(served, len(ids), None, service.limits, _NAMES, least=0)
        vector = await _vector(service, served, ids)
        embedding: Any = vector.tolist()
        if body.encoding_format == "base64":
            embedding = base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        rows.append({"object": "embedding", "index": number, "embedding": embedding})
        usage.prompt += len(ids)
    service.account(owner, served, usage)
    told = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return {"object": "list", "data": rows, "model": body.model, "usage": told}


async def _vector(service: Service, served: Served, ids: list[int]) -> Tensor:
    """The mean hidden state of a text's tokens, (D,) float32 of length 1."""
    total = torch.zeros(())

    def read(session: Session) -> None:
        nonlocal total
        total = total + served.model.engine.embed_segment(session)

    await read_with(served, served.session(), [ids], service.limits.seconds, read)
    return torch.nn.functional.normalize(total, dim=0)
