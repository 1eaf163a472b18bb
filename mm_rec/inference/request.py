"""A request to the engine, and its state while it runs: its prompt to prefill, and its generation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_rec.inference.engine import Generation, Session
from mm_rec.inference.sampler import Constraint, SampledToken, SamplingParams

OnToken = Callable[[SampledToken | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What the engine is asked: to read a prompt, and to go on with it where there is a `sampling`.

    The session, which may have read something already, reads the parts of `prompt_ids` one after the other, with the
    adapters that it has. `on_prefilled` is called with the number of each when it was read and nothing after it, which
    is the time to copy the session. `logprobs` and `prompt_logprobs`: the log-probability of each token written or
    read, and so many of the likeliest with it. `pooling`: add up the last hidden states.
    """

    session: Session
    prompt_ids: Sequence[Sequence[int]]
    sampling: SamplingParams | None = None
    stop_ids: Collection[int] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pooling: bool = False
    on_prefilled: Callable[[int], None] | None = None


class RequestState:
    """A request that is read, and written where it is to be, along with others.

    `on_token` is called with each token of the generation, and once with None when all is done: `error` then says what
    went wrong, if anything did, and `finish_reason` how it ended. It is called by the engine's thread, as the request's
    `on_prefilled` is, and must return at once. `prompt_logprobs` and `hidden_sum`, (D,) float32, are there where they
    were asked for. `num_sampled` counts the tokens written.
    """

    def __init__(self, request: GenerationRequest, on_token: OnToken) -> None:
        """Raises ConfigError for ids that are none, and UserError where there is no room for one token."""
        self.session, self.on_token = request.session, on_token
        self._generation = None
        if request.sampling is not None:
            self._generation = Generation(
                self.session, request.sampling, request.stop_ids, request.constraint, request.logprobs
            )
        for part in request.prompt_ids:
            self.session.engine.require_tokens(part)
        self.error: Exception | None = None
        self.prompt_logprobs: list[SampledToken | None] = []
        self.hidden_sum: Tensor = torch.zeros((), dtype=torch.float32)
        self._parts, self._next_part = [list(part) for part in request.prompt_ids], 0
        self._on_prefilled, self._prefilling = request.on_prefilled, False
        self._prompt_logprobs, self._pooling = request.prompt_logprobs, request.pooling
        self._cancelled, self._ended = False, False
        self.num_sampled = 0
        self._num_prompt_tokens = sum(map(len, self._parts))
        self._begin_part()

    def cancel(self) -> None:
        """Stop before the next token, from any thread; `on_token` gets its None."""
        self._cancelled = True

    @property
    def finish_reason(self) -> str:
        """Empty while it goes on and where nothing is written, then "stop" or "length"."""
        return "" if self._generation is None else self._generation.finish_reason

    @property
    def stop_token(self) -> SampledToken | None:
        """The stop token that the writing ended with; None while it goes on, and where it ended otherwise."""
        return None if self._generation is None else self._generation.stop_token

    @property
    def remaining_prompt_tokens(self) -> int:
        """Tokens that are still to be read before the first can be sampled."""
        return len(self.session.pending_ids) + sum(map(len, self._parts[self._next_part :]))

    @property
    def num_prefilled(self) -> int:
        """Tokens of the prompt that were read; asked for by another thread it may be a moment late."""
        unread = 0 if self.num_sampled or self._ended else self.remaining_prompt_tokens
        return max(0, self._num_prompt_tokens - unread)

    @property
    def needs_prefill(self) -> bool:
        """True where it reads a chunk of its own next, and not a few tokens along with those of others."""
        needs_more_than_state = self._pooling or self._prompt_logprobs is not None
        return len(self.session.pending_ids) > (
            0 if needs_more_than_state else self.session.engine.max_decode_tokens
        )

    @property
    def finished(self) -> bool:
        """True where all was read and written."""
        return self._ended

    @property
    def done(self) -> bool:
        """True where nothing more will come: finished, cancelled or failed."""
        return self._cancelled or self.error is not None or self._ended

    def prefill(self) -> None:
        """Read a chunk of the prompt."""
        engine = self.session.engine
        if self._prompt_logprobs is not None:
            self.prompt_logprobs += engine.score_chunk(self.session, self._prompt_logprobs)
        elif self._pooling:
            self.hidden_sum = self.hidden_sum + engine.embed_chunk(self.session)
        else:
            engine.prefill_chunk(self.session)

    def step(self) -> None:
        """Give the session its next part, or sample the next token; it has read all that it was given."""
        if self.done:
            return
        if self._prefilling and self._on_prefilled is not None:
            self._on_prefilled(self._next_part - 1)
        self._prefilling = False
        if self._next_part < len(self._parts):
            self._begin_part()
        elif self._generation is None:
            self._ended = True
        else:
            sampled = self._generation.step()
            self._ended = bool(self.finish_reason)
            if sampled is not None:
                self.num_sampled += 1
                self.on_token(sampled)

    def end(self) -> None:
        """Call `on_token` with None and drop the callbacks: no state shall wait for the garbage collector."""
        tell, self.on_token, self._on_prefilled = self.on_token, _ignore, None
        self.session.release()
        tell(None)

    def _begin_part(self) -> None:
        if self._next_part < len(self._parts):
            self.session.append(self._parts[self._next_part])
            self._next_part, self._prefilling = self._next_part + 1, True


def _ignore(sampled: SampledToken | None) -> None:
    """Nobody listens any more."""
