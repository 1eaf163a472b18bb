"""Sample text that follows a grammar, and leave room to end it.

Before each token llguidance says which tokens the grammar allows, and the sampler chooses among those, so the text is
valid whatever the model is. An automaton of the same grammar knows the shortest ending from every place, llguidance
tries it, and no token is taken after which too few would be left for one: so the text is also whole.

Shapes: V rows of the model's vocabulary.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import Configurations, Piece, PushdownAutomaton
from mm_rec.inference.grammar.token_bytes import TokenMask
from mm_rec.inference.grammar.transitions import SPECIAL
from mm_rec.inference.grammar.unique_items import UniqueItems
from mm_rec.inference.grammar.vocabulary import DIGITS, MAX_DIGITS, GrammarVocabulary

MAX_COMPLETION_TOKENS = 4096  # a grammar whose shortest text takes more is refused
_MAX_COMPLETION_BYTES = 2 * MAX_COMPLETION_TOKENS
_MAX_DRAWS = 16  # of one token, before that of the completion is taken
_MAX_TRIED = 8  # endings of one place, before others are searched for
_MAX_PROBES = 400  # endings of one search
_MAX_PROBED_TOKENS = 30_000  # of these endings, while others wait for the next token
# From where an ending goes wrong, to where others are searched for.
_STEPS_BACK = (1, 4, 16, MAX_COMPLETION_TOKENS)
# An ending is not looked for while there is so much more room than the shortest takes.
_ROOM_FACTOR, _ROOM_TOKENS = 4, 256
_EXPONENT = re.compile(rb"[0-9][eE][+-]?$")
_SPECIAL = "it asks for a special token's text"


class GrammarConstraint:
    """The progress of one text through a grammar.

    `is_accepting`: the text may end here; a text that ends elsewhere, at its last token, is unfinished and not valid.
    `is_stopped`: it must end here. Raises ConfigError, mostly when it is made, where a schema is too much to follow.
    """

    def __init__(
        self, vocabulary: GrammarVocabulary, matcher: Any, automaton: PushdownAutomaton, what: str
    ) -> None:
        """`matcher`: llguidance's, at the start of the grammar; `automaton`: of the same grammar."""
        self._vocabulary, self._matcher, self._automaton, self._what = vocabulary, matcher, automaton, what
        self._tail = b""  # the last bytes written
        self._unique_items = UniqueItems(automaton) if automaton.has_unique_arrays else None
        self._place = automaton.begin()
        # After it the text may end; None while there is room for any.
        self._completion: list[int] | None = self._ending(
            [], self._place, MAX_COMPLETION_TOKENS, _MAX_PROBES * MAX_COMPLETION_TOKENS
        )
        if self._completion is None:
            raise cannot_follow(what, self._why_endless())
        # What follows each token that was considered: the place, and the completion.
        self._considered: dict[int, tuple[Configurations, list[int] | None]] = {}

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
        if self._completion is not None and len(self._completion) > remaining:  # too few from the beginning
            return token
        safe: int | None = None
        for number in range(_MAX_DRAWS):
            if token in self._vocabulary.stop_ids or self._fits(
                token, remaining, _MAX_PROBED_TOKENS if number == 0 else 0
            ):
                return token
            safe = self._safe_token(remaining)
            if safe is None or token == safe:
                return token
            scores[token], scores[safe] = -torch.inf, logits[safe]
            token = draw(scores)
        return token if safe is None else safe

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
        place, completion = self._considered.get(token) or (
            self._advanced(self._place, [token]),
            self._rest(token),
        )
        self._consume(self._matcher, [token])
        if self._unique_items is not None:
            self._unique_items.write(self._place, self._vocabulary.bytes[token])
        self._place, self._completion, self._considered = place, completion, {}
        self._tail = self._tail_after([token], self._tail)

    def _fits(self, token: int, remaining: int, most_probed: int) -> bool:
        """Return whether an ending in time is found after a token, in a search of so many tokens."""
        place, completion = self._advanced(self._place, [token]), self._rest(token)
        if not place:
            return False
        if completion is None or len(completion) >= remaining:
            far = self._automaton.distance(place[0])
            if far * _ROOM_FACTOR + _ROOM_TOKENS < remaining and self._unique_items is None:
                completion = None
            else:
                completion = self._ending([token], place, remaining - 1, most_probed)
                if completion is None:
                    return False
        self._considered[token] = place, completion
        return True

    def _safe_token(self, remaining: int) -> int | None:
        """Return the next token of an ending, eos after the last; None where none is found."""
        if self._completion is None:
            self._completion = self._ending([], self._place, remaining, _MAX_PROBED_TOKENS)
        if self._completion is None:
            return None
        return self._completion[0] if self._completion else self._vocabulary.eos

    def _advanced(self, place: Configurations, tokens: Sequence[int]) -> Configurations:
        """Where the text is after tokens from a place; empty where the automaton does not know them."""
        for token in tokens:
            for symbol in self._vocabulary.bytes[token] or [SPECIAL + token]:
                place = self._automaton.advance(place, symbol)
        return place

    def _rest(self, token: int) -> list[int] | None:
        """Return what is left of the known completion after a token that begins it."""
        return (
            None
            if self._completion is None
            else _rest_of_completion(self._completion, token, self._vocabulary)
        )

    # Endings.

    def _ending(
        self, written: list[int], place: Configurations, most: int, most_probed: int
    ) -> list[int] | None:
        """Return a short ending of at most `most` tokens, from the place after the tokens `written` next.

        `most_probed`: tokens of the endings that a search may try, where the nearest ones are none.
        """
        wrong: list[int] | None = None
        for one in place[:_MAX_TRIED]:
            if self._automaton.distance(one) > _MAX_COMPLETION_BYTES:
                break
            tokens = self._tokens(self._automaton.ending(one))
            if len(tokens) > most:
                continue
            if self._is_ending([*written, *tokens]):
                return tokens
            wrong = tokens if wrong is None else wrong
        return (
            self._mended_ending(written, place, wrong, most, most_probed) if wrong and most_probed else None
        )

    def _mended_ending(
        self, written: list[int], place: Configurations, wrong: list[int], most: int, most_probed: int
    ) -> list[int] | None:
        """Search for an ending that begins as a wrong one does: with as much of that as may be."""
        valid = self._matcher.validate_tokens([*written, *wrong]) - len(written)
        kept = sorted({max(0, valid - back) for back in _STEPS_BACK}, reverse=True)
        for length in kept:
            after = self._advanced(place, wrong[:length])
            found = self._search_ending(
                [*written, *wrong[:length]], after, most - length, most_probed // len(kept)
            )
            if found is not None:
                return [*wrong[:length], *found]
        return None

    def _search_ending(
        self, written: list[int], place: Configurations, most: int, most_probed: int
    ) -> list[int] | None:
        """Search what the automaton does not know of, such as multiples: shortest first, of equal ones the deepest."""
        number, probed = 0, 0
        waiting: list[tuple[float, int, int, list[int], Configurations]] = [(0.0, 0, 0, [], place)]
        while waiting:
            _, _, _, path, place = heapq.heappop(waiting)
            for token, after in self._steps([*written, *path], place):
                number += 1
                if number > _MAX_PROBES or probed > most_probed:
                    return None
                far = self._automaton.distance(after[0])
                if far > _MAX_COMPLETION_BYTES or len(path) >= most:
                    continue
                tokens = [*path, token, *self._tokens(self._automaton.ending(after[0]))]
                probed += len(tokens)
                if len(tokens) <= most and self._is_ending([*written, *tokens]):
                    return tokens
                heapq.heappush(waiting, (len(path) + far, -len(path), number, [*path, token], after))
        return None

    def _steps(self, written: list[int], place: Configurations) -> list[tuple[int, Configurations]]:
        """The tokens of one symbol that may come after others, and where the text is then."""
        matcher = self._matcher.deep_copy()
        if not matcher.consume_tokens(written):
            return []
        mask = self._next_token_mask(matcher, self._tail_after(written, self._tail))
        steps = []
        for symbol in self._automaton.next_symbols(place):
            token = (
                symbol - SPECIAL
                if symbol >= SPECIAL
                else self._vocabulary.single_byte_tokens.get(bytes([symbol]), -1)
            )
            if token >= 0 and mask[token] and (after := self._automaton.advance(place, symbol)):
                steps.append((token, after))
        return steps

    def _is_ending(self, tokens: list[int]) -> bool:
        """Return whether the text may end after some tokens, and says nothing that must not be said."""
        whole = self._matcher.validate_tokens([*tokens, self._vocabulary.eos]) == len(tokens) + 1
        if not whole or self._is_forbidden(tokens):
            return False
        return self._unique_items is None or self._unique_items.differ(
            self._place, self._vocabulary.decode_bytes(tokens)
        )

    def _is_forbidden(self, tokens: list[int]) -> bool:
        return bool(self._vocabulary.forbidden.search(self._tail + self._vocabulary.decode_bytes(tokens)))

    def _tokens(self, ending: Sequence[Piece]) -> list[int]:
        return [
            token
            for piece in ending
            for token in ([piece] if isinstance(piece, int) else self._vocabulary.encode_bytes(piece))
        ]

    def _why_endless(self) -> str:
        nearest = self._place[0]
        is_near = self._automaton.distance(nearest) <= _MAX_COMPLETION_BYTES
        if is_near and self._is_forbidden(self._tokens(self._automaton.ending(nearest))):
            return _SPECIAL
        return (
            f"no text of at most {MAX_COMPLETION_TOKENS:,} tokens was found that follows it. Ask for less (minLength, "
            "minItems, what a pattern counts)"
        )

    # What may come next.

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
        if mask[self._vocabulary.quote]:  # inside of a string, or before a value
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
