"""Output that all routes share: deltas of choices with their usage, log-probabilities, reasoning tokens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from mm_rec.inference.generate import encode_text
from mm_rec.serving.context import ServerContext
from mm_rec.serving.generation import Choice, OutputDelta, TokenUsage, merge_choices
from mm_rec.serving.model_registry import ModelVariant


async def stream_deltas(
    context: ServerContext,
    owner: str | None,
    variant: ModelVariant,
    choices: Sequence[Choice],
    usage: TokenUsage,
    started: float,
) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """Yield the deltas of choices as they come, each with the number of its choice.

    Records the time from `started` to the first delta, and at the end, whatever end it is, the tokens used.
    """
    is_first = True
    try:
        async with contextlib.aclosing(merge_choices(choices)) as deltas:
            async for number, delta in deltas:
                if is_first:
                    context.metrics.observe_first_token(variant.model.name, started)
                    is_first = False
                yield number, delta
    finally:
        usage.completion_tokens = sum(choice.completion_tokens for choice in choices)
        context.record_usage(owner, variant, usage)


def logprobs_content(variant: ModelVariant, delta: OutputDelta) -> list[dict[str, Any]]:
    """Return the `logprobs.content` of a delta: each token with its log-probability and the top_logprobs beside it."""
    return [
        {
            **_logprob_entry(variant, chosen.token, chosen.logprob),
            "top_logprobs": [_logprob_entry(variant, token, value) for token, value in chosen.top_logprobs],
        }
        for chosen in delta.tokens
        if chosen.logprob is not None
    ]


def count_reasoning_tokens(variant: ModelVariant, reasoning: str) -> int:
    """Return the number of tokens of a reasoning text."""
    return len(encode_text(variant.model.tokenizer, reasoning)) if reasoning else 0


def _logprob_entry(variant: ModelVariant, token: int, value: float) -> dict[str, Any]:
    text = variant.model.token_text(token)
    return {"token": text.decode("utf-8", "replace"), "logprob": max(value, -9999.0), "bytes": list(text)}
