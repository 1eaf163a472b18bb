"""The wire form of completions: text_completion objects, with OpenAI's four lists of log-probabilities."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mm_rec.inference.generate import IncrementalDetokenizer
from mm_rec.inference.sampler import SampledToken
from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.protocol.encoding import Chunk
from mm_rec.serving.protocol.events import Delta, Finish, OutputEvent, Usage
from mm_rec.serving.protocol.schemas import CompletionRequest
from mm_rec.serving.sse import DONE


@dataclass
class _ChoiceBuffer:
    """The text of one choice so far, its tokens, and how it ended."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    detokenizer: IncrementalDetokenizer | None = None  # of the tokens whose offsets are sought
    echoed: bool = False  # these are of the prompt
    certain: int = 0  # characters of the text that its tokens have given out
    finish_reason: str | None = None

    def since(self, tokens: int, text: str) -> _ChoiceBuffer:
        """Return what came after so many tokens, with this text."""
        return _ChoiceBuffer(
            text, self.tokens[tokens:], self.token_logprobs[tokens:], self.top_logprobs[tokens:],
            self.text_offset[tokens:],
        )  # fmt: skip


class CompletionEncoder:
    """Encodes the answer to a request of completions; choices are numbered through all prompts."""

    done = DONE

    def __init__(self, context: RequestContext, body: CompletionRequest, choices: int) -> None:
        self._model, self._has_logprobs = context.variant.model, body.logprobs is not None
        self._buffers = [_ChoiceBuffer() for _ in range(choices)]
        self._endings: list[_ChoiceBuffer] = []  # of each choice what its last chunk tells
        self._usage = TokenUsage(0)
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._echoes = bool(body.echo)
        self._streams_usage = body.stream_options is not None and body.stream_options.include_usage

    def begin(self) -> Iterator[Chunk]:
        """Yield nothing."""
        return iter(())

    def encode(self, event: OutputEvent) -> Iterator[Chunk]:
        """Yield the chunk of a delta."""
        match event:
            case Delta(choice=number, part=part):
                buffer = self._buffers[number]
                count = len(buffer.tokens)
                self._begin_offsets(buffer)
                for token in event.logprobs:
                    self._add_token(buffer, token)
                buffer.text += part.text
                yield self._chunk(number, buffer.since(count, part.text))
            case Finish(choice=number, reason=reason, stop_token=token):
                buffer = self._buffers[number]
                count = len(buffer.tokens)
                if token is not None and self._has_logprobs:
                    # OpenAI's lists have it too, and lm-eval leaves out the last of them, whatever that is.
                    self._add_token(buffer, token)
                self._endings.append(replace(buffer.since(count, ""), finish_reason=reason))
                buffer.finish_reason = reason
            case Usage(usage=usage):
                self._usage = usage

    def end(self) -> Iterator[Chunk]:
        """Yield how each choice ended, and the usage where it was asked for."""
        for number, ending in enumerate(self._endings):
            yield self._chunk(number, ending)
        if self._streams_usage:
            yield {**self._envelope([]), "usage": self._usage.chat()}

    def body(self) -> Chunk:
        """Return the text_completion object."""
        choices = [self._choice(number, buffer) for number, buffer in enumerate(self._buffers)]
        return {**self._envelope(choices), "usage": self._usage.chat()}

    def failed(self, error: ApiError) -> Chunk:
        """Return the error as it would be without a stream."""
        return error.body

    def _begin_offsets(self, buffer: _ChoiceBuffer) -> None:
        """Have the offsets of an echoed prompt, where special tokens are told, end before those of the answer begin."""
        is_echo = self._echoes and not buffer.text
        if is_echo or buffer.detokenizer is None or buffer.echoed:
            buffer.detokenizer = IncrementalDetokenizer(self._model.tokenizer, special=is_echo)
            buffer.echoed, buffer.certain = is_echo, len(buffer.text)

    def _add_token(self, buffer: _ChoiceBuffer, chosen: SampledToken) -> None:
        """Add a token to the lists; the first of an echoed prompt has no log-probability.

        Parts of one character begin where it does.
        """
        written = self._model.token_text(chosen.token)
        text = written.decode("utf-8", "replace")
        assert buffer.detokenizer is not None
        begin = buffer.certain
        told = buffer.detokenizer.push(chosen.token)
        buffer.certain += len(told)
        # What came before it may have been a part of a character without the rest.
        buffer.text_offset.append(buffer.certain - len(text) if told.endswith(text) else begin)
        buffer.tokens.append(text)
        buffer.token_logprobs.append(chosen.logprob)
        # Of tokens with one text, such as parts of a character, the likeliest is told.
        likeliest = {self._text_of(one): value for one, value in reversed(chosen.top_logprobs)}
        if chosen.logprob is not None:
            likeliest.setdefault(text, chosen.logprob)  # OpenAI's lists have the token itself too
        buffer.top_logprobs.append(None if chosen.logprob is None else likeliest)

    def _text_of(self, token: int) -> str:
        return self._model.token_text(token).decode("utf-8", "replace")

    def _chunk(self, number: int, buffer: _ChoiceBuffer) -> Chunk:
        return {
            **self._envelope([self._choice(number, buffer)]),
            **({"usage": None} if self._streams_usage else {}),
        }

    def _envelope(self, choices: list[dict[str, Any]]) -> Chunk:
        return {
            **self._head,
            "object": "text_completion",
            "choices": choices,
            "system_fingerprint": self._model.system_fingerprint,
        }

    def _choice(self, number: int, buffer: _ChoiceBuffer) -> dict[str, Any]:
        logprobs = None
        if self._has_logprobs and buffer.tokens:
            logprobs = {
                "tokens": buffer.tokens,
                "token_logprobs": buffer.token_logprobs,
                "top_logprobs": buffer.top_logprobs,
                "text_offset": buffer.text_offset,
            }
        return {
            "index": number,
            "text": buffer.text,
            "logprobs": logprobs,
            "finish_reason": buffer.finish_reason,
        }
