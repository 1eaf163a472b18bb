"""POST /v1/embeddings: a text as a vector, the mean of the model's last hidden states, of length 1."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from mm_rec.inference.request import GenerationRequest
from mm_rec.serving.api_route import ApiRoute
from mm_rec.serving.context import RequestContext, request_context
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import TokenUsage, prefill_only
from mm_rec.serving.protocol.preprocessing import (
    FieldNames,
    require_prompt_length,
    resolve_max_tokens,
    tokenize_prompt,
)
from mm_rec.serving.protocol.schemas import EmbeddingRequest, as_list
from mm_rec.serving.sse import SafeJSONResponse
from mm_rec.serving.streaming import cancel_on_disconnect

router = APIRouter(route_class=ApiRoute)
_NAMES = FieldNames("input", remedy="Send shorter texts")


@router.post("/v1/embeddings")
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Turn texts into vectors."""
    with request_context(request, body.model) as context:
        size = context.variant.model.engine.model.config.get_text_config().hidden_size
        if body.dimensions not in (None, size):
            message = f"dimensions: this model's vectors have {size}, and cannot be shortened; leave this out"
            raise ApiError(400, message, "dimensions", "invalid_value")
        return SafeJSONResponse(
            await cancel_on_disconnect(request.receive, _embed(context, body), context.seconds_left)
        )


async def _embed(context: RequestContext, body: EmbeddingRequest) -> dict[str, Any]:
    inputs = await asyncio.to_thread(_encode_inputs, context, body)
    vectors = [await _vector(context, ids) for ids in inputs]
    usage = TokenUsage(sum(map(len, inputs)))
    context.record_usage(usage)
    rows = [
        {"object": "embedding", "index": number, "embedding": _encode_vector(body, vector)}
        for number, vector in enumerate(vectors)
    ]
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return {"object": "list", "data": rows, "model": body.model, "usage": told}


def _encode_inputs(context: RequestContext, body: EmbeddingRequest) -> list[list[int]]:
    """Return the ids of each text; raises ApiError for one that does not fit, and for too many in all."""
    variant, inputs = context.variant, []
    for number, one in enumerate(as_list(body.input)):
        with errors_in_field("input"):
            ids = tokenize_prompt(variant, one) if isinstance(one, str) else one
            variant.model.engine.require_tokens(ids, f"the text {number}: ")
        resolve_max_tokens(context, len(ids), None, _NAMES, least=0)
        inputs.append(ids)
    require_prompt_length(context.limits, sum(map(len, inputs)), _NAMES.prompt)
    return inputs


def _encode_vector(body: EmbeddingRequest, vector: Tensor) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()


async def _vector(context: RequestContext, ids: list[int]) -> Tensor:
    """Return the mean hidden state of a text's tokens: (D,) float32, of L2 norm 1."""
    variant = context.variant
    request = GenerationRequest(session=variant.session(), prompt_ids=[ids], pooling=True)
    state = await prefill_only(variant, request, context.seconds_left, context.meter)
    return torch.nn.functional.normalize(state.hidden_sum, dim=0)
