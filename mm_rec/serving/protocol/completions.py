"""POST /v1/completions: continue a text; with `echo` and `logprobs`, score one."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from mm_rec.errors import ConfigError
from mm_rec.inference.engine import Session
from mm_rec.inference.generate import encode_text
from mm_rec.inference.sampler import SampledToken, SamplingParams
from mm_rec.serving.context import ServerContext, get_context, get_owner
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import Choice, EnginePrompt, TokenUsage, prefill_only, start_choices
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.outputs import stream_deltas
from mm_rec.serving.protocol.preprocessing import (
    FieldNames,
    build_sampling,
    require_fields_together,
    resolve_max_tokens,
    sampling_per_choice,
    tokenize_prompt,
)
from mm_rec.serving.protocol.schemas import CompletionRequest, as_list
from mm_rec.serving.sse import DONE, SafeJSONResponse, sse_event
from mm_rec.serving.streaming import EventStreamResponse, cancel_on_disconnect, errors_as_events

router = APIRouter()
_DEFAULT_TOKENS = 16  # OpenAI's
_NAMES = FieldNames("prompt", "max_tokens")


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with one or more texts."""
    context, owner = get_context(request), get_owner(request)
    answer = CompletionStream(context, owner, context.registry.find(body.model), body)
    async with contextlib.AsyncExitStack() as stack:
        await cancel_on_disconnect(request.receive, answer.begin(stack))
        if not body.stream:
            return SafeJSONResponse(await cancel_on_disconnect(request.receive, answer.collect()))
        return EventStreamResponse(errors_as_events(answer.chunks()), stack.pop_all())


@dataclass
class _EncodedPrompt:
    """One prompt: its ids as the model reads them, and the index of the first that the client sent."""

    ids: list[int]
    first: int
    scored: list[SampledToken | None] = field(
        default_factory=list
    )  # of ids, where they are echoed with logprobs


@dataclass
class _ChoiceBuffer:
    """Text of one choice, and OpenAI's four lists of log-probabilities."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)


class CompletionStream:
    """The response to a request, collected or in chunks; choices are numbered through all prompts."""

    def __init__(
        self, context: ServerContext, owner: str | None, variant: ModelVariant, body: CompletionRequest
    ) -> None:
        self._context, self._owner, self._variant, self._body = context, owner, variant, body
        self._started = time.perf_counter()
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        self._choices: list[Choice | None] = []
        self._buffers: list[_ChoiceBuffer] = []
        self._usage = TokenUsage(0)

    async def begin(self, stack: contextlib.AsyncExitStack) -> None:
        """Encode the prompts, and start their choices."""
        body, scheduler = self._body, self._variant.model.scheduler
        require_fields_together(body, stream_options="stream")
        if body.best_of not in (None, body.n or 1):
            raise ApiError(
                400, "best_of: it must be n here; ask for n answers and choose", "best_of", "invalid_value"
            )
        samplings = sampling_per_choice(
            build_sampling(self._variant, body, self._max_tokens or 1), body.n, scheduler.max_running
        )
        texts = await asyncio.to_thread(self._encode_prompts)
        if len(texts) * len(samplings) > scheduler.max_waiting:
            message = f"prompt: at most {scheduler.max_waiting} answers at once; send fewer"
            raise ApiError(400, message, "prompt", "invalid_value")
        for text in texts:
            for choice in await self._start_choices(text, samplings):
                if choice is not None:
                    stack.callback(choice.cancel)
                self._choices.append(choice)
                self._buffers.append(self._echo(text))
        self._usage.prompt_tokens = sum(len(text.ids) for text in texts)

    def _encode_prompts(self) -> list[_EncodedPrompt]:
        with errors_in_field("prompt"):
            return [self._encode_prompt(one) for one in as_list(self._body.prompt)]

    def _encode_prompt(self, prompt: str | list[int]) -> _EncodedPrompt:
        tokenizer = self._variant.model.tokenizer
        if isinstance(prompt, str):
            ids = tokenize_prompt(self._variant, prompt)
            text = _EncodedPrompt(ids, len(ids) - len(encode_text(tokenizer, prompt)))
        else:
            text = _EncodedPrompt(prompt, 0)
        if not text.ids:
            raise ConfigError(
                "there is nothing to go on with; this model's tokenizer puts no token before a text"
            )
        self._variant.model.engine.require_tokens(text.ids)
        return text

    async def _start_choices(
        self, text: _EncodedPrompt, samplings: Sequence[SamplingParams]
    ) -> Sequence[Choice | None]:
        """Start the choices of one prompt; None for one that generates nothing."""
        body, variant, limits = self._body, self._variant, self._context.limits
        resolve_max_tokens(variant, len(text.ids), self._max_tokens, limits, _NAMES, least=0)
        session, parts = variant.session(), [text.ids]
        if body.echo and body.logprobs is not None:
            await self._score_prompt(session, text)
            parts = []
        if not self._max_tokens:
            return [None] * len(samplings)
        return await start_choices(
            variant, EnginePrompt(session, parts), samplings, limits.timeout_seconds, logprobs=body.logprobs
        )

    async def _score_prompt(self, session: Session, text: _EncodedPrompt) -> None:
        """Prefill a prompt and keep the log-probability of each of its tokens."""
        engine, likeliest = self._variant.model.engine, self._body.logprobs or 0

        def read(one: Session) -> None:
            text.scored += engine.score_chunk(one, likeliest)

        await prefill_only(self._variant, session, [text.ids], self._context.limits.timeout_seconds, read)

    def _echo(self, text: _EncodedPrompt) -> _ChoiceBuffer:
        """Return the buffer of a choice before its first token: the prompt, where it is echoed."""
        buffer = _ChoiceBuffer()
        if not self._body.echo:
            return buffer
        tokenizer = self._variant.model.tokenizer
        for chosen, token in zip(text.scored[text.first :], text.ids[text.first :], strict=False):
            self._add_token(buffer, token, chosen)
        buffer.text = str(
            tokenizer.decode(
                text.ids[text.first :], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        return buffer

    def _add_token(self, buffer: _ChoiceBuffer, token: int, chosen: SampledToken | None) -> None:
        """Add a token to the lists."""
        text = self._text_of(token)
        buffer.text_offset.append(buffer.text_offset[-1] + len(buffer.tokens[-1]) if buffer.tokens else 0)
        buffer.tokens.append(text)
        buffer.token_logprobs.append(None if chosen is None else chosen.logprob)
        # Of tokens with one text, such as parts of a character, the likeliest is told.
        likeliest = (
            {self._text_of(one): value for one, value in reversed(chosen.top_logprobs)} if chosen else {}
        )
        if chosen is not None and chosen.logprob is not None:
            likeliest.setdefault(text, chosen.logprob)  # OpenAI's lists have the token itself too
        buffer.top_logprobs.append(None if chosen is None else likeliest)

    def _text_of(self, token: int) -> str:
        return self._variant.model.token_text(token).decode("utf-8", "replace")

    async def collect(self) -> dict[str, Any]:
        """Return the text_completion object."""
        async with contextlib.aclosing(self._stream_buffers()) as deltas:
            async for _ in deltas:
                pass
        choices = [
            self._choice(number, buffer, self._finish_reason(number))
            for number, buffer in enumerate(self._buffers)
        ]
        return {**self._envelope(choices), "usage": self._usage.chat()}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the text_completion events of a stream."""
        usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        more = {"usage": None} if usage else {}
        for number, buffer in enumerate(self._buffers):
            if buffer.text:
                yield sse_event({**self._envelope([self._choice(number, buffer, None)]), **more})
        async with contextlib.aclosing(self._stream_buffers()) as deltas:
            async for number, new in deltas:
                if new.text or new.tokens:
                    yield sse_event({**self._envelope([self._choice(number, new, None)]), **more})
        for number in range(len(self._choices)):
            yield sse_event(
                {
                    **self._envelope([self._choice(number, _ChoiceBuffer(), self._finish_reason(number))]),
                    **more,
                }
            )
        if usage:
            yield sse_event({**self._envelope([]), "usage": self._usage.chat()})
        yield DONE

    async def _stream_buffers(self) -> AsyncGenerator[tuple[int, _ChoiceBuffer], None]:
        """Yield what is new of each choice, as it comes."""
        written = [(number, choice) for number, choice in enumerate(self._choices) if choice is not None]
        deltas = stream_deltas(
            self._context, self._owner, self._variant, [choice for _, choice in written], self._usage, self._started
        )  # fmt: skip
        async with contextlib.aclosing(deltas):
            async for place, delta in deltas:
                number = written[place][0]
                buffer, count = self._buffers[number], len(self._buffers[number].tokens)
                buffer.text += delta.text
                if self._body.logprobs is not None:
                    for chosen in delta.tokens:
                        self._add_token(buffer, chosen.token, chosen)
                yield number, _ChoiceBuffer(
                    delta.text, buffer.tokens[count:], buffer.token_logprobs[count:],
                    buffer.top_logprobs[count:], buffer.text_offset[count:],
                )  # fmt: skip

    def _finish_reason(self, number: int) -> str:
        choice = self._choices[number]
        return "length" if choice is None else choice.finish_reason

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        fingerprint = self._variant.model.system_fingerprint
        return {
            **self._head,
            "object": "text_completion",
            "choices": choices,
            "system_fingerprint": fingerprint,
        }

    def _choice(self, number: int, buffer: _ChoiceBuffer, finish_reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None and buffer.tokens:
            logprobs = {
                "tokens": buffer.tokens,
                "token_logprobs": buffer.token_logprobs,
                "top_logprobs": buffer.top_logprobs,
                "text_offset": buffer.text_offset,
            }
        return {"index": number, "text": buffer.text, "logprobs": logprobs, "finish_reason": finish_reason}
