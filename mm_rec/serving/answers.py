"""What the answers of all routes have in common: their pieces, with what is noted of them, and log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from mm_rec.inference.text_stream import plain_ids
from mm_rec.serving.generation import Choice, Piece, Usage, merged
from mm_rec.serving.models import Served
from mm_rec.serving.service import Service


async def pieces_of(
    service: Service, owner: str | None, served: Served, choices: Sequence[Choice], usage: Usage, begun: float
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of choices as they come, each with the number of its choice.

    Notes when the first came of a request that began at `begun`, and at the end, whatever end it is, what was used.
    """
    is_first = True
    try:
        async with contextlib.aclosing(merged(choices)) as pieces:
            async for number, piece in pieces:
                if is_first:
                    service.figures.first_token(served.model.name, begun)
                    is_first = False
                yield number, piece
    finally:
        usage.completion = sum(choice.completion for choice in choices)
        service.account(owner, served, usage)


def logprobs_of(served: Served, piece: Piece) -> list[dict[str, Any]]:
    """The tokens of a piece with their log-probabilities and the likeliest beside each, where they are asked for."""
    return [
        {
            **_token(served, chosen.token, chosen.logprob),
            "top_logprobs": [_token(served, token, value) for token, value in chosen.likeliest],
        }
        for chosen in piece.tokens
        if chosen.logprob is not None
    ]


def reasoning_tokens(served: Served, reasoning: str) -> int:
    """How many tokens the text of some reasoning is."""
    return len(plain_ids(served.model.tokenizer, reasoning)) if reasoning else 0


def _token(served: Served, token: int, value: float) -> dict[str, Any]:
    text = served.model.token_text(token)
    return {"token": text.decode("utf-8", "replace"), "logprob": max(value, -9999.0), "bytes": list(text)}
