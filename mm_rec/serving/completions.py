"""POST /v1/completions: a text goes on; with `echo` and `logprobs`, how likely a text is."""

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
from mm_rec.inference.sampling import Chosen, Sampling
from mm_rec.inference.text_stream import plain_ids
from mm_rec.serving.answers import pieces_of
from mm_rec.serving.errors import ApiError, about
from mm_rec.serving.generation import Choice, Prompt, Usage, begin_choices, read_with
from mm_rec.serving.models import Served
from mm_rec.serving.requests import Names, answer_tokens, require_with, sampling_of, samplings, text_ids
from mm_rec.serving.schemas import CompletionRequest, several
from mm_rec.serving.service import Service, owner_of, service_of
from mm_rec.serving.sse import DONE, Json, event
from mm_rec.serving.streaming import Stream, unless_gone, with_errors

router = APIRouter()
_DEFAULT_TOKENS = 16  # OpenAI's
_NAMES = Names("prompt", "max_tokens")


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with one or more texts."""
    service, owner = service_of(request), owner_of(request)
    answer = CompletionAnswer(service, owner, service.registry.find(body.model), body)
    async with contextlib.AsyncExitStack() as stack:
        await unless_gone(request.receive, answer.begin(stack))
        if not body.stream:
            return Json(await unless_gone(request.receive, answer.whole()))
        return Stream(with_errors(answer.chunks()), stack.pop_all())


@dataclass
class _Text:
    """One prompt: its ids as the model reads them, and the first of them that the client knows of."""

    ids: list[int]
    first: int
    scored: list[Chosen | None] = field(default_factory=list)  # of ids, where they are echoed with logprobs


@dataclass
class _Told:
    """What is told of one choice: its text, and OpenAI's four lists of log-probabilities."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)


class CompletionAnswer:
    """The answer to a request, as a whole or in chunks; choices are numbered through all prompts."""

    def __init__(self, service: Service, owner: str | None, served: Served, body: CompletionRequest) -> None:
        self._service, self._owner, self._served, self._body = service, owner, served, body
        self._begun = time.perf_counter()
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._wanted = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        self._choices: list[Choice | None] = []
        self._told: list[_Told] = []
        self._usage = Usage(0)

    async def begin(self, stack: contextlib.AsyncExitStack) -> None:
        """Read the prompts, and start writing."""
        body, batcher = self._body, self._served.model.batcher
        require_with(body, stream_options="stream")
        if body.best_of not in (None, body.n or 1):
            raise ApiError(
                400, "best_of: it must be n here; ask for n answers and choose", "best_of", "invalid_value"
            )
        chosen = samplings(sampling_of(self._served, body, self._wanted or 1), body.n, batcher.most)
        texts = await asyncio.to_thread(self._texts)
        if len(texts) * len(chosen) > batcher.queue:
            message = f"prompt: at most {batcher.queue} answers at once; send fewer"
            raise ApiError(400, message, "prompt", "invalid_value")
        for text in texts:
            for choice in await self._begin_one(text, chosen):
                if choice is not None:
                    stack.callback(choice.cancel)
                self._choices.append(choice)
                self._told.append(self._echoed(text))
        self._usage.prompt = sum(len(text.ids) for text in texts)

    def _texts(self) -> list[_Text]:
        with about("prompt"):
            return [self._text(one) for one in several(self._body.prompt)]

    def _text(self, prompt: str | list[int]) -> _Text:
        tokenizer = self._served.model.tokenizer
        if isinstance(prompt, str):
            ids = text_ids(self._served, prompt)
            text = _Text(ids, len(ids) - len(plain_ids(tokenizer, prompt)))
        else:
            text = _Text(prompt, 0)
        if not text.ids:
            raise ConfigError(
                "there is nothing to go on with; this model's tokenizer puts no token before a text"
            )
        self._served.model.engine.require_tokens(text.ids)
        return text

    async def _begin_one(self, text: _Text, chosen: Sequence[Sampling]) -> Sequence[Choice | None]:
        """The answers to one prompt; None for one of which nothing is written."""
        body, served, limits = self._body, self._served, self._service.limits
        answer_tokens(served, len(text.ids), self._wanted, limits, _NAMES, least=0)
        session, parts = served.session(), [text.ids]
        if body.echo and body.logprobs is not None:
            await self._score(session, text)
            parts = []
        if not self._wanted:
            return [None] * len(chosen)
        return await begin_choices(
            served, Prompt(session, parts), chosen, limits.seconds, logprobs=body.logprobs
        )

    async def _score(self, session: Session, text: _Text) -> None:
        """Read a prompt and note how likely each of its tokens is."""
        engine, likeliest = self._served.model.engine, self._body.logprobs or 0

        def read(one: Session) -> None:
            text.scored += engine.score_segment(one, likeliest)

        await read_with(self._served, session, [text.ids], self._service.limits.seconds, read)

    def _echoed(self, text: _Text) -> _Told:
        """What is told of a choice before anything was written."""
        told = _Told()
        if not self._body.echo:
            return told
        tokenizer = self._served.model.tokenizer
        for chosen, token in zip(text.scored[text.first :], text.ids[text.first :], strict=False):
            self._note(told, token, chosen)
        told.text = str(
            tokenizer.decode(
                text.ids[text.first :], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        return told

    def _note(self, told: _Told, token: int, chosen: Chosen | None) -> None:
        """Add a token to the lists."""
        text = self._text_of(token)
        told.text_offset.append(told.text_offset[-1] + len(told.tokens[-1]) if told.tokens else 0)
        told.tokens.append(text)
        told.token_logprobs.append(None if chosen is None else chosen.logprob)
        # Of tokens with one text, such as parts of a character, the likeliest is told.
        likeliest = {self._text_of(one): value for one, value in reversed(chosen.likeliest)} if chosen else {}
        if chosen is not None and chosen.logprob is not None:
            likeliest.setdefault(text, chosen.logprob)  # OpenAI's lists have the token itself too
        told.top_logprobs.append(None if chosen is None else likeliest)

    def _text_of(self, token: int) -> str:
        return self._served.model.token_text(token).decode("utf-8", "replace")

    async def whole(self) -> dict[str, Any]:
        """The object text_completion."""
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [self._choice(number, told, self._finish(number)) for number, told in enumerate(self._told)]
        return {**self._envelope(choices), "usage": self._usage.chat()}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        more = {"usage": None} if usage else {}
        for number, told in enumerate(self._told):
            if told.text:
                yield event({**self._envelope([self._choice(number, told, None)]), **more})
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for number, new in pieces:
                if new.text or new.tokens:
                    yield event({**self._envelope([self._choice(number, new, None)]), **more})
        for number in range(len(self._choices)):
            yield event({**self._envelope([self._choice(number, _Told(), self._finish(number))]), **more})
        if usage:
            yield event({**self._envelope([]), "usage": self._usage.chat()})
        yield DONE

    async def _pieces(self) -> AsyncGenerator[tuple[int, _Told], None]:
        """What is new of each choice, as it comes."""
        written = [(number, choice) for number, choice in enumerate(self._choices) if choice is not None]
        pieces = pieces_of(
            self._service, self._owner, self._served, [choice for _, choice in written], self._usage, self._begun
        )  # fmt: skip
        async with contextlib.aclosing(pieces):
            async for place, piece in pieces:
                number = written[place][0]
                told, count = self._told[number], len(self._told[number].tokens)
                told.text += piece.text
                if self._body.logprobs is not None:
                    for chosen in piece.tokens:
                        self._note(told, chosen.token, chosen)
                yield number, _Told(
                    piece.text, told.tokens[count:], told.token_logprobs[count:],
                    told.top_logprobs[count:], told.text_offset[count:],
                )  # fmt: skip

    def _finish(self, number: int) -> str:
        choice = self._choices[number]
        return "length" if choice is None else choice.finish

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        fingerprint = self._served.model.system_fingerprint
        return {
            **self._head,
            "object": "text_completion",
            "choices": choices,
            "system_fingerprint": fingerprint,
        }

    def _choice(self, number: int, told: _Told, finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None and told.tokens:
            logprobs = {
                "tokens": told.tokens,
                "token_logprobs": told.token_logprobs,
                "top_logprobs": told.top_logprobs,
                "text_offset": told.text_offset,
            }
        return {"index": number, "text": told.text, "logprobs": logprobs, "finish_reason": finish}
