"""A request while it runs: its prompt to prefill, and its generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Generation, Session
from mm_rec.inference.sampler import SampledToken


class RequestState:
    """A session that is read, and written where there is a generation, along with others.

    The session reads `parts` of ids one after the other. `on_prefilled` is called with the number of each when it was
    read and nothing after it, which is the time to copy the session. `on_token` is called with each token of the
    generation, and once with None when all is done: `error` then says what went wrong, if anything did, and
    `generation.finish_reason` how it ended. Both are called by the engine's thread and must return at once.

    `prefill_chunk` takes the engine's place in reading, chunk by chunk, where more is asked than the state.
    """

    def __init__(
        self, session: Session, parts: Sequence[Sequence[int]], on_token: Callable[[SampledToken | None], None], *,
        generation: Generation | None = None, on_prefilled: Callable[[int], None] | None = None,
        prefill_chunk: Callable[[Session], None] | None = None,
    ) -> None:  # fmt: skip
        """Raises ConfigError for ids that are none."""
        self.session, self.generation, self.on_token = session, generation, on_token
        self.error: Exception | None = None
        for part in parts:
            session.engine.require_tokens(part)
        self._parts, self._next_part = [list(part) for part in parts], 0
        self._on_prefilled, self._prefilling = on_prefilled, False
        self._prefill_chunk = prefill_chunk
        self._cancelled, self._ended = False, False
        self._begin_part()

    def cancel(self) -> None:
        """Stop before the next token, from any thread; `on_token` gets its None."""
        self._cancelled = True

    @property
    def remaining_prompt_tokens(self) -> int:
        """Tokens that are still to be read before the first can be sampled."""
        return len(self.session.pending_ids) + sum(map(len, self._parts[self._next_part :]))

    @property
    def needs_prefill(self) -> bool:
        """True where it reads a chunk of its own next, and not a few tokens along with those of others."""
        return len(self.session.pending_ids) > (0 if self._prefill_chunk else MAX_KERNEL_TOKENS)

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
        (self._prefill_chunk or self.session.engine.prefill_chunk)(self.session)

    def step(self) -> None:
        """Give the session its next part, or sample the next token; it has read all that it was given."""
        if self.done:
            return
        if self._prefilling and self._on_prefilled is not None:
            self._on_prefilled(self._next_part - 1)
        self._prefilling = False
        if self._next_part < len(self._parts):
            self._begin_part()
        elif self.generation is None:
            self._ended = True
        else:
            sampled = self.generation.step()
            self._ended = bool(self.generation.finish_reason)
            if sampled is not None:
                self.on_token(sampled)

    def end(self) -> None:
        """Call `on_token` with None and drop the callbacks: no state shall wait for the garbage collector."""
        tell, self.on_token, self._on_prefilled, self._prefill_chunk = self.on_token, _ignore, None, None
        tell(None)

    def _begin_part(self) -> None:
        if self._next_part < len(self._parts):
            self.session.append(self._parts[self._next_part])
            self._next_part, self._prefilling = self._next_part + 1, True


def _ignore(sampled: SampledToken | None) -> None:
    """Nobody listens any more."""
