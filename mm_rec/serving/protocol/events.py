"""The events of an answer, of which every route makes its own wire form: deltas, finish reasons, usage."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from mm_rec.inference.generate import encode_text
from mm_rec.inference.sampler import SampledToken
from mm_rec.serving.context import RequestContext
from mm_rec.serving.generation import Choice, OutputDelta, TokenUsage, merge_choices
from mm_rec.serving.protocol.tool_calls import OutputParser, ParsedDelta


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of a choice: some reasoning or text, a tool call that begins, or some of its arguments.

    `logprobs`: the tokens that came with it, where log-probabilities were asked for. Where they came alone, as some
    of a tool call's do, they are on a delta of empty text.
    """

    choice: int
    part: ParsedDelta
    logprobs: Sequence[SampledToken] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a choice, "stop" or "length"; all come after the last delta, in the order of the choices.

    `stop_token`: the stop token that it ended with, if it did, which is not part of the text.
    """

    choice: int
    reason: str
    stop_token: SampledToken | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What the request used; the last event."""

    usage: TokenUsage


OutputEvent = Delta | Finish | Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """The choices that answer a request, and the parser of each.

    A choice of None generates nothing. `echoes`: parts of the prompt, told before the answer. `usage` has the tokens of
    the prompt; those of the answer are added at its end.
    """

    choices: Sequence[Choice | None]
    parsers: Sequence[OutputParser]
    usage: TokenUsage
    echoes: Sequence[Delta] = ()


async def answer_events(context: RequestContext, answer: Answer) -> AsyncGenerator[OutputEvent, None]:
    """Yield the events of an answer as they come, those of several choices mixed."""
    for echo in answer.echoes:
        yield echo
    reasoning = ""
    async with contextlib.aclosing(_deltas(context, answer)) as deltas:
        async for delta in deltas:
            reasoning += delta.part.text if delta.part.kind == "reasoning" else ""
            yield delta
    answer.usage.reasoning_tokens = len(encode_text(context.tokenizer, reasoning)) if reasoning else 0
    for number, choice in enumerate(answer.choices):
        yield (
            Finish(number, "length")
            if choice is None
            else Finish(number, choice.finish_reason, choice.stop_token)
        )
    yield Usage(answer.usage)


async def _deltas(context: RequestContext, answer: Answer) -> AsyncGenerator[Delta, None]:
    """Yield the parsed deltas of all choices, and count their usage; the context counts that of unfinished answers."""
    numbers = [number for number, choice in enumerate(answer.choices) if choice is not None]
    choices = [choice for choice in answer.choices if choice is not None]
    is_first = True
    async with contextlib.aclosing(merge_choices(choices)) as merged:
        async for place, new in merged:
            if is_first:
                context.record_first_token()
                is_first = False
            number = numbers[place]
            for delta in _parsed(number, answer.parsers[number].push(new.text), new):
                yield delta
    answer.usage.completion_tokens = sum(choice.completion_tokens for choice in choices)
    context.record_usage(answer.usage)
    for number in numbers:
        for part in answer.parsers[number].finish():
            yield Delta(number, part)


def _parsed(number: int, parts: Iterable[ParsedDelta], new: OutputDelta) -> Iterable[Delta]:
    """Yield the parts of a delta, the first with its log-probabilities."""
    logprobs = [token for token in new.tokens if token.logprob is not None]
    for part in parts:
        yield Delta(number, part, logprobs)
        logprobs = []
    if logprobs:
        yield Delta(number, ParsedDelta("text", ""), logprobs)
