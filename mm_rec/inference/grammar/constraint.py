"""Text that must follow a grammar: JSON, JSON of a schema, tool calls in the form of the model's template.

Before each choice, llguidance says which tokens a text that follows the grammar can go on with; the sampler chooses
among those, so that what comes out is right whatever the model is. A short way to an end is known at every token, and
none is taken after which too few tokens would be left for it, so that what comes out is also whole.

Shapes: V rows of the model's vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, TokenizerError
from mm_rec.inference.grammar.lark_grammar import (
    TemplateGrammar,
    call_grammar,
    callable_functions,
    json_grammar,
    pattern_literals,
)
from mm_rec.inference.grammar.token_bytes import ForbiddenTexts, GrammarTokenizer, TokenMask, token_bytes
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.conversion import ESCAPES
from mm_rec.tokenizers.loading import special_token_pattern, special_token_strings, vocabulary_size

MAX_GRAMMAR_CHARS = 1_000_000  # characters, schemas included
MAX_DIGITS = 40  # digits in a row; Python reads no integer of more than 4,300
MAX_COMPLETION_TOKENS = 4096  # tokens; a grammar whose shortest text takes more is refused
_MAX_DRAWS = 16  # of one token, before that of the completion is taken
_DIGITS = b"0123456789"
_EXPONENT = re.compile(rb"[0-9][eE][+-]?$")
# What an ending tries first where nothing closes: a value that is short, then what a pattern may ask for.
_FALLBACK_BYTES = b"n" + _DIGITS + b"-,.:;@/_ +()#=*!?%&$~^'|<>`" + string.ascii_letters.encode() + b"{[}]\\"
_SPECIAL = "it asks for a special token's text"


class GrammarCompiler:
    """What a tokenizer's text can be held to; made once for each tokenizer.

    `model_vocab_size`: rows of the model, where it has more than the tokenizer has ids. `stop_ids` end a text as eos
    does. Raises TokenizerError for a tokenizer whose pieces are neither SentencePiece's nor byte-level.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model_vocab_size: int | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        if tokenizer.eos_token_id is None:
            raise TokenizerError("this tokenizer has no eos, so no text could end. Give it a chat layout")
        self.vocab_size = max(model_vocab_size or 0, vocabulary_size(tokenizer))
        self.model_vocab_size = (
            model_vocab_size or self.vocab_size
        )  # a tokenizer may have special tokens past them
        self.eos: int = tokenizer.eos_token_id
        self.stop_ids = sorted(stop for stop in {self.eos, *stop_ids} if stop < self.model_vocab_size)
        self._tokenizer = tokenizer
        self._form = assistant_format(tokenizer) if tokenizer.chat_template else None
        self._special = special_token_pattern(tokenizer)
        self._ids = tokenizer.get_vocab()
        self.bytes = token_bytes(tokenizer)
        self.bytes += [b""] * (self.vocab_size - len(self.bytes))
        self._llguidance = LLTokenizer(TokenizerWrapper(GrammarTokenizer(tokenizer, self.bytes)))
        self.forbidden = ForbiddenTexts(
            [text.encode() for text in {ESCAPES[0][0], *special_token_strings(tokenizer)}], self.bytes
        )
        self.tail = max(self.forbidden.longest, MAX_DIGITS)  # bytes that decide what may follow
        self.digits = np.array([len(token) - len(token.lstrip(_DIGITS)) for token in self.bytes])
        self.single_byte_tokens = {token: index for index, token in enumerate(self.bytes) if len(token) == 1}
        self.fallback_tokens = [
            self.single_byte_tokens[bytes([byte])]
            for byte in _FALLBACK_BYTES
            if bytes([byte]) in self.single_byte_tokens
        ]
        self.closing_tokens = {sign: self.single_byte_tokens.get(sign.encode(), -1) for sign in '"}],'}

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """What tokens write."""
        return b"".join(map(self.bytes.__getitem__, tokens))

    def json_object(self, prompt: str = "") -> GrammarConstraint:
        """Any JSON object, in answer to a prompt's text, which may have begun reasoning."""
        return self._constraint(
            json_grammar({"type": "object"}, self._template_grammar(prompt)), "json_object", prompt
        )

    def json_schema(self, schema: Mapping[str, Any], prompt: str = "") -> GrammarConstraint:
        """The JSON that a schema describes (Draft 2020-12, without what llguidance cannot hold a text to).

        Raises ConfigError where it cannot be followed; nothing outside of it is ever looked up.
        """
        return self._constraint(json_grammar(schema, self._template_grammar(prompt)), "the schema", prompt)

    def tool_calls(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: str = "auto",
        parallel: bool = True,
        prompt: str = "",
    ) -> GrammarConstraint:
        """Calls of tools in the form of the chat template: "required", those of the tool that `choice` names, or with
        "auto" text, or calls.

        `parallel`: more than one call may be made. Raises ConfigError for a template that has no calls, a choice that
        is no tool, and parameters that cannot be followed.
        """
        if self._form is None:
            raise ConfigError(
                "this tokenizer has no chat template, so it writes no calls. Leave the tools out"
            )
        functions = callable_functions(tools, choice)
        grammar = call_grammar(
            functions, self._template_grammar(prompt), free=choice == "auto", parallel=parallel
        )
        try:
            return self._constraint(grammar, "what the tools take", prompt)
        except ConfigError:
            for name, parameters in functions.items():  # which of them is it?
                self._constraint(
                    json_grammar(parameters, self._template_grammar("")), f"what the tool {name!r} takes"
                )
            raise

    def _template_grammar(self, prompt: str) -> TemplateGrammar:
        in_reasoning = self._form is not None and self._form.opens_reasoning(prompt)
        return TemplateGrammar(self._form, self._special, self._ids, in_reasoning)

    def literal_tokens(self, literals: Iterable[str]) -> list[list[int]]:
        """Literals of patterns in tokens of one byte, and with a quote after them, whole or what may lack of them."""
        texts = (json.dumps(text, ensure_ascii=False)[1:].encode() for text in literals)
        whole = [[self.single_byte_tokens.get(bytes([byte]), -1) for byte in text] for text in texts]
        whole = [tokens for tokens in whole if -1 not in tokens]
        ends = [tokens[start:] for tokens in whole for start in range(len(tokens) - 1)]
        return ends + [tokens[:-1] for tokens in whole]

    def _constraint(self, grammar: str, what: str, prompt: str = "") -> GrammarConstraint:
        reasoning = None if self._form is None or self._form.reasoning is None else self._reasoning(prompt)
        return GrammarConstraint(
            self,
            self._matcher(grammar, what),
            what,
            pattern_literals(grammar),
            reasoning,
            self._closing_sequences,
        )

    @cached_property
    def _closing_sequences(self) -> list[list[int]]:
        """What closes calls, from each special token in it on: nothing else can stand there, so it is the way out."""
        if self._form is None or self._form.calls is None:
            return []
        closing = self._form.calls.closing
        return [self._encode(closing[found.start() :]) for found in self._special.finditer(closing)]

    def _reasoning(self, prompt: str) -> ReasoningState:
        assert self._form is not None and self._form.reasoning is not None
        begin, end = self._form.reasoning.begin.strip(), self._form.reasoning.end.strip()
        return ReasoningState(begin, end, self._encode, self._form.opens_reasoning(prompt))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def token_text(self, token: int) -> str:
        """A token as text, a special one's name; bytes that are no text alone as signs for such."""
        special = self._tokenizer.added_tokens_decoder.get(token)
        return self.bytes[token].decode(errors="replace") if special is None else str(special)

    def _matcher(self, grammar: str, what: str) -> Any:
        """llguidance's parser at the start of a grammar; raises ConfigError where there can be none."""
        from llguidance import LLMatcher, LLParserLimits

        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise ConfigError(
                f"{what} takes {len(grammar):,} characters; {MAX_GRAMMAR_CHARS:,} are the most. Make it smaller"
            )
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._llguidance, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _cannot_follow(what, matcher.get_error())
        return matcher


class ReasoningState:
    """A text that is within reasoning, or may begin with some: a way out of it that a grammar's symbols do not show."""

    def __init__(
        self, begin: str, end: str, encode: Callable[[str], list[int]], is_open: bool, text: str = ""
    ) -> None:
        """`text`: what was written of the beginning, or, where it `is_open`, the last of what was thought."""
        self._begin, self._end, self._encode = begin, end, encode
        self._is_open, self._text = is_open, text

    def exit_tokens(self) -> list[int]:
        """Tokens after which reasoning is over; where it has not begun, with its beginning."""
        missing = "" if self._is_open else self._begin[len(self._text) :]
        return self._encode(missing + self._end)

    def after(self, text: str) -> ReasoningState | None:
        """The same after more text; None where no reasoning can come any more."""
        whole, is_open = self._text + text, self._is_open
        if not is_open and whole.startswith(self._begin):
            whole, is_open = whole.removeprefix(self._begin), True
        if is_open:
            return None if self._end in whole else self._with(True, whole[-len(self._end) :])
        return self._with(False, whole) if self._begin.startswith(whole) else None

    def _with(self, is_open: bool, text: str) -> ReasoningState:
        return ReasoningState(self._begin, self._end, self._encode, is_open, text)


class GrammarConstraint:
    """The progress of one text through a grammar, with a way to its end always known.

    `is_accepting`: the text may end here; a text that ends elsewhere, at its last token, is unfinished and not valid.
    `is_stopped`: it must end here. Raises ConfigError, mostly when it is made, where a schema is too much to follow.
    """

    def __init__(
        self, grammars: GrammarCompiler, matcher: Any, what: str, literals: Sequence[str] = (),
        reasoning: ReasoningState | None = None, closing_sequences: Sequence[list[int]] = (),
    ) -> None:  # fmt: skip
        """`literals`: what the grammar's patterns spell out; `reasoning`: where the text may begin with some;
        `closing_sequences`: special tokens that lead to the end where they may come.
        """
        self._grammars, self._matcher, self._what, self._reasoning = grammars, matcher, what, reasoning
        self._closing_sequences = closing_sequences
        self._literals = grammars.literal_tokens(literals)
        self._tail = b""  # the last bytes written
        # After it the text may end.
        self._completion = self._shortest_completion(
            matcher.deep_copy(), b"", MAX_COMPLETION_TOKENS, reasoning=reasoning
        )
        self._completions: dict[int, list[int]] = {}  # the endings after tokens that were considered

    @property
    def is_accepting(self) -> bool:
        """Whether what was taken is a whole text of the grammar."""
        return bool(self._matcher.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """Whether nothing can follow but the end."""
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
        safe = self._completion[0] if self._completion else self._grammars.eos
        for _ in range(_MAX_DRAWS):
            if token == safe or token in self._grammars.stop_ids or self._fits(token, remaining):
                return token
            scores[token], scores[safe] = -torch.inf, logits[safe]
            token = draw(scores)
        return safe

    def token_mask(self, remaining: int | None = None) -> Tensor:
        """Which tokens may come next, (V,) bool on the CPU; eos is among them where the text may end.

        `remaining`: how many may still be written, this one too. Where the ending takes them all, only it is allowed.
        """
        if self._completion and len(self._completion) == remaining:
            mask = np.zeros(self._grammars.vocab_size, dtype=bool)
            mask[self._completion[0]] = True
        else:
            mask = self._next_token_mask(self._matcher, self._tail)
            mask[self._grammars.stop_ids] = mask[self._grammars.eos]
        return torch.from_numpy(mask[: self._grammars.model_vocab_size])

    def accept_token(self, token: int) -> None:
        """Go on with a token; raises ValueError where it was not allowed."""
        if not self._matcher.validate_tokens([token]):
            raise ValueError(f"the token {token} does not follow the grammar here")
        if token not in self._completions:
            self._completions[token] = self._completion_after(token, MAX_COMPLETION_TOKENS)
        self._consume(self._matcher, [token])
        self._completion, self._completions = self._completions[token], {}
        self._reasoning = self._reasoning_after(token)
        self._tail = self._tail_after([token], self._tail)

    def _fits(self, token: int, remaining: int) -> bool:
        """Whether the text can still end in time after a token."""
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
            _rest_of_completion(self._completion, token, self._grammars),
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
        return None if self._reasoning is None else self._reasoning.after(self._grammars.token_text(token))

    def _shortest_completion(
        self,
        matcher: Any,
        tail: bytes,
        most: int,
        known: Sequence[int] = (),
        reasoning: ReasoningState | None = None,
    ) -> list[int]:
        """A short way to where the text may end, into the `known` one where it leads there.

        It moves the matcher, which has written the tail. Raises ConfigError where it takes more than `most` tokens.
        """
        completion: list[int] = []
        through = [] if reasoning is None or known else reasoning.exit_tokens()
        used: Counter[tuple[int, ...]] = Counter()
        end = tail
        while len(completion) <= most and not matcher.is_accepting():
            if known and matcher.validate_tokens([*known, self._grammars.eos]) > len(known):
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
            raise _cannot_follow(self._what, f"no text of at most {most:,} tokens was found that follows it")
        if self._grammars.forbidden.search(tail + self._grammars.decode_bytes(completion)):
            raise _cannot_follow(self._what, _SPECIAL)
        return completion

    def _step_toward_end(self, matcher: Any, tail: bytes, used: Counter[tuple[int, ...]]) -> list[int]:
        """Tokens that bring an end nearer; `used` counts the steps since something was opened or closed."""
        for tokens in self._closing_sequences:
            if matcher.validate_tokens(tokens) == len(tokens):
                return tokens
        mask = self._next_token_mask(matcher, tail)
        sign = self._closing_sign(mask)
        if sign:
            used.clear()
            return [self._grammars.closing_tokens[sign]]
        fitting = [tokens for tokens in self._literals if matcher.validate_tokens(tokens) == len(tokens)]
        for tokens in fitting:
            if tokens[-1] == self._grammars.closing_tokens['"']:
                used.clear()
                return tokens
        single = [[token] for token in self._grammars.fallback_tokens if mask[token]]
        tried = single[:1] + fitting + single[1:]  # before a literal there must often be something
        return min(tried, key=lambda tokens: used[tuple(tokens)]) if tried else [int(mask.argmax())]

    def _closing_sign(self, mask: TokenMask) -> str:
        """What closes something, of the tokens in the mask; "" for none. A quote may also open a string."""
        quote, brace, bracket, comma = (at >= 0 and mask[at] for at in self._grammars.closing_tokens.values())
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
            np.frombuffer(matcher.compute_logit_bias(), dtype=np.uint8)[: self._grammars.vocab_size] != 0
        )
        if matcher.is_error():
            raise _cannot_follow(self._what, matcher.get_error())
        self._grammars.forbidden.clear(mask, tail)
        if not mask.any():
            raise _cannot_follow(self._what, _SPECIAL)
        shorter: TokenMask = mask & (self._grammars.digits <= self._digits_left(mask, tail))
        return shorter if shorter.any() else mask  # a pattern or an enum may ask for more digits

    def _digits_left(self, mask: TokenMask, tail: bytes) -> int:
        """How many digits may follow: a number must not go on for ever, nor be larger than a float."""
        if mask[self._grammars.closing_tokens['"']]:  # inside of a string, or before a value
            return MAX_DIGITS
        before = tail.rstrip(_DIGITS)
        return (2 if _EXPONENT.search(before) else MAX_DIGITS) - (len(tail) - len(before))

    def _consume(self, matcher: Any, tokens: list[int]) -> None:
        if not matcher.consume_tokens(tokens):
            raise _cannot_follow(self._what, matcher.get_error())

    def _tail_after(self, tokens: list[int], tail: bytes) -> bytes:
        return (tail + self._grammars.decode_bytes(tokens))[-self._grammars.tail :]


def _rest_of_completion(completion: list[int], token: int, grammars: GrammarCompiler) -> list[int] | None:
    """What is left of an ending after a token that writes its beginning; None for a token that does not."""
    if completion[:1] == [token]:
        return completion[1:]
    text = grammars.bytes[token]
    for place, piece in enumerate(map(grammars.bytes.__getitem__, completion)):
        if text and piece.startswith(text):
            rest = [grammars.single_byte_tokens.get(bytes([byte]), -1) for byte in piece[len(text) :]]
            return None if -1 in rest else [*rest, *completion[place + 1 :]]
        if not (piece and text.startswith(piece)):
            return None
        text = text[len(piece) :]
    return None


def _cannot_follow(what: str, reason: str) -> ConfigError:
    reason = " ".join(reason.split())[:300]
    return ConfigError(
        f"{what} cannot be followed: {reason}. Take that out, or say it with type, properties, required, items, "
        "enum, const, anyOf, bounds, pattern, and $ref to its own $defs"
    )
