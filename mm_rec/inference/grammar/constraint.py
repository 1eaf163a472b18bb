"""Sample text that follows a grammar, and leave room to end it.

Before each token llguidance says which tokens the grammar allows, and the sampler chooses among those, so the text is
valid whatever the model is. A short completion is known at every token, and no token is taken after which too few would
be left for one, so the text is also whole.

Shapes: V rows of the model's vocabulary.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.reasoning import ReasoningState
from mm_rec.inference.grammar.token_bytes import TokenMask
from mm_rec.inference.grammar.vocabulary import DIGITS, MAX_DIGITS, GrammarVocabulary

MAX_COMPLETION_TOKENS = 4096  # a grammar whose shortest text takes more is refused
_MAX_DRAWS = 16  # of one token, before that of the completion is taken
_EXPONENT = re.compile(rb"[0-9][eE][+-]?$")
_SPECIAL = "it asks for a special token's text"


class GrammarConstraint:
    """The progress of one text through a grammar, with a completion always known.

    `is_accepting`: the text may end here; a text that ends elsewhere, at its last token, is unfinished and not valid.
    `is_stopped`: it must end here. Raises ConfigError, mostly when it is made, where a schema is too much to follow.
    """

    def __init__(
        self, vocabulary: GrammarVocabulary, matcher: Any, what: str, literals: Sequence[str] = (),
        reasoning: ReasoningState | None = None, closing_sequences: Sequence[list[int]] = (),
    ) -> None:  # fmt: skip
        """`literals`: what the grammar's patterns spell out; `reasoning`: where the text may begin with some;
        `closing_sequences`: special tokens that lead to the end where they may come.
        """
        self._vocabulary, self._matcher, self._what, self._reasoning = vocabulary, matcher, what, reasoning
        self._closing_sequences = closing_sequences
        self._literals = vocabulary.literal_tokens(literals)
        self._tail = b""  # the last bytes written
        # After it the text may end.
        self._completion = self._shortest_completion(
            matcher.deep_copy(), b"", MAX_COMPLETION_TOKENS, reasoning=reasoning
        )
        self._completions: dict[int, list[int]] = {}  # the endings after tokens that were considered

    @property
    def is_accepting(self) -> bool:
        """True where the accepted tokens are a whole text of the grammar."""
        return bool(self._matcher.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """True where only eos can follow."""
        return bool(self._matcher.is_stopped())

    def sample(self, logits: Tensor, remaining: int, draw: Callable[[Tensor], int]) -> int:
        """Draw a token that may come next, by a sampler that is given logits (V,); eos where the text may end.

        `remaining`: how many may still be written, this one too. A token after which the text could no longer end in
        time is drawn anew: as long as an ending of at most `remaining` tokens is known, the text will be complete.
        """
        scores = logits.masked_fill(~self.token_mask(remaining), -torch.inf)
        token = draw(scores)
        if len(self._completion) > remaining:  # too few from the beginning
            return token
        safe = self._completion[0] if self._completion else self._vocabulary.eos
        for _ in range(_MAX_DRAWS):
            if token == safe or token in self._vocabulary.stop_ids or self._fits(token, remaining):
                return token
            scores[token], scores[safe] = -torch.inf, logits[safe]
            token = draw(scores)
        return safe

    def token_mask(self, remaining: int | None = None) -> Tensor:
        """Which tokens may come next, (V,) bool on the CPU; eos is among them where the text may end.

        `remaining`: how many may still be written, this one too. Where the ending takes them all, only it is allowed.
        """
        if self._completion and len(self._completion) == remaining:
            mask = np.zeros(self._vocabulary.vocab_size, dtype=bool)
            mask[self._completion[0]] = True
        else:
            mask = self._next_token_mask(self._matcher, self._tail)
            mask[self._vocabulary.stop_ids] = mask[self._vocabulary.eos]
        return torch.from_numpy(mask[: self._vocabulary.model_vocab_size])

    def accept_token(self, token: int) -> None:
        """Advance by a token; raises ValueError where it is not allowed."""
        if not self._matcher.validate_tokens([token]):
            raise ValueError(f"the token {token} does not follow the grammar here")
        if token not in self._completions:
            self._completions[token] = self._completion_after(token, MAX_COMPLETION_TOKENS)
        self._consume(self._matcher, [token])
        self._completion, self._completions = self._completions[token], {}
        self._reasoning = self._reasoning_after(token)
        self._tail = self._tail_after([token], self._tail)

    def _fits(self, token: int, remaining: int) -> bool:
        """Return whether the text can still end in time after a token."""
        try:
            self._completions[token] = self._completion_after(token, remaining - 1)
        except ConfigError:  # there is no end that way, or none that soon
            return False
        return len(self._completions[token]) < remaining

    def _completion_after(self, token: int, most: int) -> list[int]:
        """An ending after a token: the known one while it takes fewer than `most` tokens, or else a shorter one.

        Raises ConfigError where there is none.
        """
        after, tail = self._matcher.deep_copy(), self._tail_after([token], self._tail)
        self._consume(after, [token])
        known, reasoning = (
            _rest_of_completion(self._completion, token, self._vocabulary),
            self._reasoning_after(token),
        )
        if known is None:
            with contextlib.suppress(ConfigError):
                known = self._shortest_completion(after.deep_copy(), tail, most, self._completion, reasoning)
        if known is None:
            return self._shortest_completion(after, tail, most, reasoning=reasoning)
        if len(known) >= most:  # it may be longer than it needs to be, now that other tokens were written
            with contextlib.suppress(ConfigError):
                known = self._shortest_completion(after, tail, len(known) - 1, reasoning=reasoning)
        return known

    def _reasoning_after(self, token: int) -> ReasoningState | None:
        return None if self._reasoning is None else self._reasoning.after(self._vocabulary.token_text(token))

    def _shortest_completion(
        self,
        matcher: Any,
        tail: bytes,
        most: int,
        known: Sequence[int] = (),
        reasoning: ReasoningState | None = None,
    ) -> list[int]:
        """Return a short completion, joining the `known` one where it can.

        It moves the matcher, which has written the tail. Raises ConfigError where it takes more than `most` tokens.
        """
        completion: list[int] = []
        through = [] if reasoning is None or known else reasoning.exit_tokens()
        used: Counter[tuple[int, ...]] = Counter()
        end = tail
        while len(completion) <= most and not matcher.is_accepting():
            if known and matcher.validate_tokens([*known, self._vocabulary.eos]) > len(known):
                completion += known
                break
            if through and matcher.validate_tokens(through) == len(
                through
            ):  # else a character must be completed
                tokens, through = through, []
            else:
                tokens = matcher.compute_ff_tokens() or self._step_toward_end(matcher, end, used)
            self._consume(matcher, tokens)
            used[tuple(tokens)] += 1
            completion += tokens
            end = self._tail_after(tokens, end)
        if len(completion) > most:
            raise cannot_follow(self._what, f"no text of at most {most:,} tokens was found that follows it")
        if self._vocabulary.forbidden.search(tail + self._vocabulary.decode_bytes(completion)):
            raise cannot_follow(self._what, _SPECIAL)
        return completion

    def _step_toward_end(self, matcher: Any, tail: bytes, used: Counter[tuple[int, ...]]) -> list[int]:
        """Return tokens that bring the end nearer; `used` counts the steps since something was opened or closed."""
        for tokens in self._closing_sequences:
            if matcher.validate_tokens(tokens) == len(tokens):
                return tokens
        mask = self._next_token_mask(matcher, tail)
        sign = self._closing_sign(mask)
        if sign:
            used.clear()
            return [self._vocabulary.closing_tokens[sign]]
        fitting = [tokens for tokens in self._literals if matcher.validate_tokens(tokens) == len(tokens)]
        for tokens in fitting:
            if tokens[-1] == self._vocabulary.closing_tokens['"']:
                used.clear()
                return tokens
        single = [[token] for token in self._vocabulary.fallback_tokens if mask[token]]
        tried = single[:1] + fitting + single[1:]  # before a literal there must often be something
        return min(tried, key=lambda tokens: used[tuple(tokens)]) if tried else [int(mask.argmax())]

    def _closing_sign(self, mask: TokenMask) -> str:
        """Return the sign that closes something, of those in the mask; "" for none. A quote may also open a string."""
        quote, brace, bracket, comma = (
            at >= 0 and mask[at] for at in self._vocabulary.closing_tokens.values()
        )
        if brace != bracket:  # both are allowed inside of a string alone
            return "}" if brace else "]"
        if quote:
            return '"'
        return "," if comma and not brace else ""

    def _next_token_mask(self, matcher: Any, tail: bytes) -> TokenMask:
        """The tokens (V,) that may follow in a matcher that has written the tail.

        Some of what the grammar allows is left out: special tokens' texts, and numbers without an end.
        """
        mask: TokenMask = (
            np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)[: self._vocabulary.vocab_size] != 0
        )
        if matcher.is_error():
            raise cannot_follow(self._what, matcher.get_error())
        self._vocabulary.forbidden.clear(mask, tail)
        if not mask.any():
            raise cannot_follow(self._what, _SPECIAL)
        shorter: TokenMask = mask & (self._vocabulary.digits <= self._digits_left(mask, tail))
        return shorter if shorter.any() else mask  # a pattern or an enum may ask for more digits

    def _digits_left(self, mask: TokenMask, tail: bytes) -> int:
        """Return how many digits may follow: a number must end, and be no larger than a float."""
        if mask[self._vocabulary.closing_tokens['"']]:  # inside of a string, or before a value
            return MAX_DIGITS
        before = tail.rstrip(DIGITS)
        return (2 if _EXPONENT.search(before) else MAX_DIGITS) - (len(tail) - len(before))

    def _consume(self, matcher: Any, tokens: list[int]) -> None:
        if not matcher.consume_tokens(tokens):
            raise cannot_follow(self._what, matcher.get_error())

    def _tail_after(self, tokens: list[int], tail: bytes) -> bytes:
        return (tail + self._vocabulary.decode_bytes(tokens))[-self._vocabulary.tail :]


def _rest_of_completion(completion: list[int], token: int, vocabulary: GrammarVocabulary) -> list[int] | None:
    """Return what is left of a completion after a token that writes its beginning; None for another token."""
    if completion[:1] == [token]:
        return completion[1:]
    text = vocabulary.bytes[token]
    for place, piece in enumerate(map(vocabulary.bytes.__getitem__, completion)):
        if text and piece.startswith(text):
            rest = [vocabulary.single_byte_tokens.get(bytes([byte]), -1) for byte in piece[len(text) :]]
            return None if -1 in rest else [*rest, *completion[place + 1 :]]
        if not (piece and text.startswith(piece)):
            return None
        text = text[len(piece) :]
    return None


def cannot_follow(what: str, reason: str) -> ConfigError:
    """Return the error for a schema that cannot be followed; `what` names it."""
    reason = " ".join(reason.split())[:300]
    return ConfigError(
        f"{what} cannot be followed: {reason}. Take that out, or say it with type, properties, required, items, "
        "enum, const, anyOf, bounds, pattern, and $ref to its own $defs"
    )
