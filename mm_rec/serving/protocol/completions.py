"""POST /v1/completions: continue a text; with `echo` and `logprobs`, score one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response

from mm_rec.errors import ConfigError
from mm_rec.inference.engine import Session
from mm_rec.inference.generate import encode_text
from mm_rec.inference.request import GenerationRequest
from mm_rec.inference.sampler import SampledToken, SamplingParams
from mm_rec.serving.api_route import ApiRoute
from mm_rec.serving.context import RequestContext, request_context
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import Choice, EnginePrompt, TokenUsage, prefill_only, start_choices
from mm_rec.serving.protocol.completion_encoder import CompletionEncoder
from mm_rec.serving.protocol.encoding import respond
from mm_rec.serving.protocol.events import Answer, Delta
from mm_rec.serving.protocol.preprocessing import (
    FieldNames,
    build_sampling,
    require_fields_together,
    require_prompt_length,
    resolve_max_tokens,
    sampling_per_choice,
    tokenize_prompt,
)
from mm_rec.serving.protocol.schemas import CompletionRequest, as_list
from mm_rec.serving.protocol.tool_calls import ParsedDelta, VerbatimParser
from mm_rec.serving.streaming import cancel_on_disconnect

router = APIRouter(route_class=ApiRoute)
_DEFAULT_TOKENS = 16  # OpenAI's
_NAMES = FieldNames("prompt", "max_tokens")


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with one or more texts."""
    async with contextlib.AsyncExitStack() as stack:
        context = stack.enter_context(request_context(request, body.model))
        begun = _begin(context, body, stack)
        answer = await cancel_on_disconnect(request.receive, begun, context.seconds_left)
        encoder = CompletionEncoder(context, body, len(answer.choices))
        return await respond(request, context, answer, encoder, stream=bool(body.stream), stack=stack)


@dataclass
class _EncodedPrompt:
    """One prompt: its ids as the model reads them, and the index of the first that the client sent."""

    ids: list[int]
    first: int
    scored: list[SampledToken | None] = field(
        default_factory=list
    )  # of ids, where they are echoed with logprobs


async def _begin(
    context: RequestContext, body: CompletionRequest, stack: contextlib.AsyncExitStack
) -> Answer:
    """Encode the prompts, and start their choices."""
    samplings = _samplings(context, body)
    prompts = await asyncio.to_thread(_encode_prompts, context, body)
    read = sum(len(prompt.ids) for prompt in prompts)
    require_prompt_length(context.limits, read, _NAMES.prompt)
    most = context.variant.model.scheduler.max_waiting
    if len(prompts) * len(samplings) > most:
        message = f"prompt: at most {most} answers at once; send fewer"
        raise ApiError(400, message, "prompt", "invalid_value")
    choices: list[Choice | None] = []
    echoes: list[Delta] = []
    for prompt in prompts:
        for choice in await _start_choices(context, body, prompt, samplings):
            if choice is not None:
                stack.callback(choice.cancel)
            if body.echo:
                echoes.append(_echo(context, len(choices), prompt))
            choices.append(choice)
    return Answer(choices, [VerbatimParser() for _ in choices], TokenUsage(read), echoes)


def _samplings(context: RequestContext, body: CompletionRequest) -> list[SamplingParams]:
    """Return the sampling of each choice of a prompt; raises ApiError for fields that contradict each other."""
    require_fields_together(body, stream_options="stream")
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            400, "best_of: it must be n here; ask for n answers and choose", "best_of", "invalid_value"
        )
    sampling = build_sampling(context.variant, body, _max_tokens(body) or 1)
    return sampling_per_choice(sampling, body.n, context.variant.model.scheduler.max_running)


def _max_tokens(body: CompletionRequest) -> int:
    return _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens


def _encode_prompts(context: RequestContext, body: CompletionRequest) -> list[_EncodedPrompt]:
    with errors_in_field("prompt"):
        return [_encode_prompt(context, one) for one in as_list(body.prompt)]


def _encode_prompt(context: RequestContext, prompt: str | list[int]) -> _EncodedPrompt:
    if isinstance(prompt, str):
        ids = tokenize_prompt(context.variant, prompt)
        encoded = _EncodedPrompt(ids, len(ids) - len(encode_text(context.tokenizer, prompt)))
    else:
        encoded = _EncodedPrompt(prompt, 0)
    if not encoded.ids:
        raise ConfigError(
            "there is nothing to go on with; this model's tokenizer puts no token before a text"
        )
    context.variant.model.engine.require_tokens(encoded.ids)
    return encoded


async def _start_choices(
    context: RequestContext,
    body: CompletionRequest,
    prompt: _EncodedPrompt,
    samplings: Sequence[SamplingParams],
) -> Sequence[Choice | None]:
    """Start the choices of one prompt; None for one that generates nothing."""
    variant, max_tokens = context.variant, _max_tokens(body)
    resolve_max_tokens(context, len(prompt.ids), max_tokens, _NAMES, least=0)
    unread = EnginePrompt(variant.session(), [prompt.ids])
    if body.echo and body.logprobs is not None:
        await _score_prompt(context, unread.session, prompt, body.logprobs)
        unread.parts = []  # the meter has counted them; none was cached
    if not max_tokens:
        return [None] * len(samplings)
    return await start_choices(
        variant, unread, samplings, context.seconds_left, context.meter, logprobs=body.logprobs
    )


async def _score_prompt(
    context: RequestContext, session: Session, prompt: _EncodedPrompt, top_logprobs: int
) -> None:
    """Prefill a prompt and keep the log-probability of each of its tokens."""
    request = GenerationRequest(session=session, prompt_ids=[prompt.ids], prompt_logprobs=top_logprobs)
    state = await prefill_only(context.variant, request, context.seconds_left, context.meter)
    prompt.scored = state.prompt_logprobs


def _echo(context: RequestContext, choice: int, prompt: _EncodedPrompt) -> Delta:
    """Return the prompt as the beginning of its answer, with the log-probabilities of its tokens where asked for."""
    ids = prompt.ids[prompt.first :]
    scored = zip(ids, prompt.scored[prompt.first :], strict=False)  # nothing is scored without logprobs
    text = context.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    tokens = [chosen or SampledToken(token) for token, chosen in scored]
    return Delta(choice, ParsedDelta("text", str(text)), tokens)
