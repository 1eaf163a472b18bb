"""Compile what text is held to: JSON, JSON of a schema, tool calls in the form of the model's template."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, TokenizerError
from mm_rec.inference.grammar.constraint import DIGITS, MAX_DIGITS, GrammarConstraint, cannot_follow
from mm_rec.inference.grammar.lark_grammar import (
    TemplateGrammar,
    call_grammar,
    callable_functions,
    json_grammar,
    pattern_literals,
)
from mm_rec.inference.grammar.reasoning import ReasoningState
from mm_rec.inference.grammar.token_bytes import ForbiddenTexts, GrammarTokenizer, token_bytes
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.conversion import ESCAPES
from mm_rec.tokenizers.loading import special_token_pattern, special_token_strings, vocabulary_size

MAX_GRAMMAR_CHARS = 1_000_000  # characters, schemas included
# Tried first where nothing closes a text: a short value, then what a pattern may ask for.
_FALLBACK_BYTES = b"n" + DIGITS + b"-,.:;@/_ +()#=*!?%&$~^'|<>`" + string.ascii_letters.encode() + b"{[}]\\"


class GrammarCompiler:
    """Compiles grammars into constraints on one tokenizer's text.

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
        self.digits = np.array([len(token) - len(token.lstrip(DIGITS)) for token in self.bytes])
        self.single_byte_tokens = {token: index for index, token in enumerate(self.bytes) if len(token) == 1}
        self.fallback_tokens = [
            self.single_byte_tokens[bytes([byte])]
            for byte in _FALLBACK_BYTES
            if bytes([byte]) in self.single_byte_tokens
        ]
        self.closing_tokens = {sign: self.single_byte_tokens.get(sign.encode(), -1) for sign in '"}],'}

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that tokens write."""
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
        """The tokens that close tool calls, from each special token on: nothing else can stand there."""
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
            raise cannot_follow(what, matcher.get_error())
        return matcher
