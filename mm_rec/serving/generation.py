"""From a prompt to streamed choices: prompts with their cached prefix, and choices.

The engine's thread generates; the server's event loop reads. A choice that nobody reads any more is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

from mm_rec.data.conversations.prompt_parts import turn_end_text
from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Session
from mm_rec.inference.generate import IncrementalDetokenizer, encode_rendered
from mm_rec.inference.request import GenerationRequest, RequestState
from mm_rec.inference.sampler import Constraint, SampledToken, SamplingParams
from mm_rec.inference.token_stream import TokenStream
from mm_rec.serving.model_registry import ModelVariant

MakeConstraint = Callable[[], Awaitable[Constraint]]


class EnginePrompt:
    """A prompt for the engine: a session that may have read some of it already, and the rest in parts of ids.

    `texts` are those of the parts, and `text` what the session has read, where what is read is to be kept and found
    again, under `cache_key`. `cached_tokens` counts the tokens that need not be read again, `length` all of them.
    """

    def __init__(
        self, session: Session, parts: Sequence[Sequence[int]], texts: Sequence[str] = (), text: str = "",
        cache_key: Hashable = None,
    ) -> None:  # fmt: skip
        self.session, self.parts, self.texts, self.text = session, parts, texts, text
        self.cache_key = cache_key
        self.cached_tokens = session.length
        self.length = session.length + sum(map(len, parts))

    @property
    def ending(self) -> str:
        """Return the text of its last part, where texts are known."""
        return self.texts[-1] if self.texts else self.text

    @property
    def is_cacheable(self) -> bool:
        """Return whether what is read goes into the prefix cache."""
        return bool(self.texts)


def build_prompt(variant: ModelVariant, texts: Sequence[str], owner: str | None) -> EnginePrompt:
    """Build the prompt of a conversation's parts, on top of its longest prefix that is cached for this owner."""
    whole, cache_key = "".join(texts), (variant.name, owner)
    found = variant.model.prefix_cache.match_prefix(cache_key, whole)
    text, session = found or ("", variant.session())
    rest, left = [], len(text)
    for part in texts:
        rest.append(part[left:])
        left = max(0, left - len(part))
    parts = [(part, encode_rendered(variant.model.tokenizer, part)) for part in rest if part]
    # What is read in one pass anyway is not cut: a state in its middle would save nobody a pass.
    while len(parts) > 1 and len(parts[-2][1]) + len(parts[-1][1]) <= MAX_KERNEL_TOKENS:
        (before, ids), (after, more) = parts.pop(-2), parts.pop()
        parts.append((before + after, ids + more))
    return EnginePrompt(session, [ids for _, ids in parts], [part for part, _ in parts], text, cache_key)


@dataclass(slots=True)
class TokenUsage:
    """Token counts of a request."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion

    def chat(self) -> dict[str, object]:
        """Return the `usage` object of chat completions and completions."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(slots=True)
class UsageMeter:
    """What the engine has read and written for a request so far; `is_recorded` once its usage is counted."""

    cached_tokens: int = 0
    states: list[RequestState] = field(default_factory=list)
    is_recorded: bool = False

    def usage(self) -> TokenUsage | None:
        """Return the tokens so far; None where the engine has done nothing."""
        read = sum(state.num_prefilled for state in self.states)
        written = sum(state.num_sampled for state in self.states)
        if not read + written:
            return None
        return TokenUsage(self.cached_tokens + read, self.cached_tokens, written)


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """A part of a choice as it comes: text, perhaps none yet, and its tokens."""

    text: str
    tokens: Sequence[SampledToken]


class Choice:
    """One answer to a prompt, streamed. `finish_reason` is "" while it goes on, then "stop" or "length"."""

    def __init__(
        self, variant: ModelVariant, prompt: EnginePrompt, sampling: SamplingParams, seconds: float,
        meter: UsageMeter, *, constraint: Constraint | None = None, logprobs: int | None = None,
        with_special_tokens: bool = False,
    ) -> None:  # fmt: skip
        """`logprobs`: so many of the likeliest tokens with each; `with_special_tokens`: keep them in the text."""
        self.variant, self.prompt = variant, prompt
        self.finish_reason = ""
        self._ids: list[int] = []
        self._stream = IncrementalDetokenizer(variant.model.tokenizer, sampling.stop, with_special_tokens)
        request = GenerationRequest(
            session=prompt.session, prompt_ids=prompt.parts, sampling=sampling, stop_ids=variant.model.stop_ids,
            constraint=constraint, logprobs=logprobs, on_prefilled=self._cache_prefix,
        )  # fmt: skip
        self._token_stream = TokenStream(variant.model.scheduler, request, seconds)
        meter.states.append(self._token_stream.state)

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens generated so far."""
        return len(self._ids)

    @property
    def stop_token(self) -> SampledToken | None:
        """Return the stop token that the answer ended with; None where it ended otherwise, as at a stop string."""
        return None if self._stream.stopped else self._token_stream.state.stop_token

    def cancel(self) -> None:
        """Stop generating."""
        self._token_stream.cancel()

    def _cache_prefix(self, number: int) -> None:
        """Cache the prefix up to the end of a message; the last part ends where the answer begins."""
        if self.prompt.is_cacheable and number < len(self.prompt.parts) - 1:
            text = self.prompt.text + "".join(self.prompt.texts[: number + 1])
            self.variant.model.prefix_cache.insert(self.prompt.cache_key, text, self.prompt.session.fork())

    async def deltas(self) -> AsyncGenerator[OutputDelta, None]:
        """Yield text and tokens up to a stop token or stop string."""
        async with contextlib.aclosing(self._token_stream.tokens()) as coming:
            async for tokens in coming:
                text, taken = "", len(self._ids)
                for chosen in tokens:
                    self._ids.append(chosen.token)
                    text += self._stream.push(chosen.token)
                    if self._stream.stopped:
                        break
                yield OutputDelta(text, tokens[: len(self._ids) - taken])
                if self._stream.stopped:
                    self.finish_reason = "stop"
                    return
        if text := self._stream.finish():
            yield OutputDelta(text, ())
        self.finish_reason = "stop" if self._stream.stopped else self._token_stream.state.finish_reason
        if self.prompt.is_cacheable and not self._stream.stopped:
            self._cache_reply()

    def finished_session(self) -> Session | None:
        """Return the session after the answer and the end of its message; None where it went past a stop string."""
        if self._stream.stopped or not self.finish_reason:
            return None
        _, closing = self._reply_and_closing()
        self.prompt.session.append(encode_rendered(self.variant.model.tokenizer, closing))
        return self.prompt.session

    def _reply_and_closing(self) -> tuple[str, str]:
        """Return the answer with its special tokens, and what ends its message after it."""
        tokenizer = self.variant.model.tokenizer
        reply = str(
            tokenizer.decode(self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        return reply, turn_end_text(tokenizer, reply)

    def _cache_reply(self) -> None:
        """Cache what was read and written, where who sends it as text sends the same tokens."""
        tokenizer, session = self.variant.model.tokenizer, self.prompt.session
        reply, closing = self._reply_and_closing()
        closing_ids = encode_rendered(tokenizer, closing)
        if self.finish_reason and encode_rendered(tokenizer, reply + closing) == [*self._ids, *closing_ids]:
            session.append(closing_ids)
            text = self.prompt.text + "".join(self.prompt.texts) + reply + closing
            self.variant.model.prefix_cache.insert(self.prompt.cache_key, text, session)


async def start_choices(
    variant: ModelVariant, prompt: EnginePrompt, samplings: Sequence[SamplingParams], seconds: float,
    meter: UsageMeter, *, constrain: MakeConstraint | None = None, logprobs: int | None = None,
    with_special_tokens: bool = False,
) -> list[Choice]:  # fmt: skip
    """Start the answers to one prompt, which is prefilled once; each has its own sampling and constraint."""
    meter.cached_tokens += prompt.cached_tokens
    choices: list[Choice] = []
    try:
        if len(samplings) > 1:
            read = GenerationRequest(session=prompt.session, prompt_ids=prompt.parts)
            await prefill_only(variant, read, seconds, meter)
        for sampling in samplings:
            one = prompt if len(samplings) == 1 else EnginePrompt(prompt.session.fork(), ())
            constraint = None if constrain is None else await constrain()
            choices.append(
                Choice(
                    variant,
                    one,
                    sampling,
                    seconds,
                    meter,
                    constraint=constraint,
                    logprobs=logprobs,
                    with_special_tokens=with_special_tokens,
                )
            )
    except BaseException:
        for choice in choices:
            choice.cancel()
        raise
    return choices


async def prefill_only(
    variant: ModelVariant, request: GenerationRequest, seconds: float, meter: UsageMeter
) -> RequestState:
    """Have a prompt read, and nothing written; returns what else was asked for."""
    stream = TokenStream(variant.model.scheduler, request, seconds)
    meter.states.append(stream.state)
    async for _ in stream.tokens():
        raise AssertionError("nothing is written without a sampling")
    return stream.state


async def merge_choices(choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """Yield the deltas of several choices as they come, each with the number of its choice."""
    if len(choices) == 1:
        async with contextlib.aclosing(choices[0].deltas()) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    came: asyncio.Queue[tuple[int, OutputDelta | None]] = asyncio.Queue()

    async def take(number: int, choice: Choice) -> None:
        try:
            async for delta in choice.deltas():
                came.put_nowait((number, delta))
        finally:
            came.put_nowait((number, None))

    tasks = [asyncio.create_task(take(number, choice)) for number, choice in enumerate(choices)]
    try:
        going = len(tasks)
        while going:
            number, new = await came.get()
            if new is None:
                going -= 1
            else:
                yield number, new
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
