"""Compile what text is held to: JSON, JSON of a schema, tool calls in the form of the model's template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.constraint import GrammarConstraint, cannot_follow
from mm_rec.inference.grammar.lark_grammar import (
    TemplateGrammar,
    call_grammar,
    callable_functions,
    json_grammar,
    pattern_literals,
)
from mm_rec.inference.grammar.reasoning import ReasoningState
from mm_rec.inference.grammar.token_bytes import GrammarTokenizer
from mm_rec.inference.grammar.vocabulary import GrammarVocabulary
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.loading import special_token_pattern

MAX_GRAMMAR_CHARS = 1_000_000  # characters, schemas included


class GrammarCompiler(GrammarVocabulary):
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

        super().__init__(tokenizer, model_vocab_size, stop_ids)
        self._form = assistant_format(tokenizer) if tokenizer.chat_template else None
        self._special = special_token_pattern(tokenizer)
        self._ids = tokenizer.get_vocab()
        self._llguidance = LLTokenizer(TokenizerWrapper(GrammarTokenizer(tokenizer, self.bytes)))

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
        answer_schema: Mapping[str, Any] | None = None,
    ) -> GrammarConstraint:
        """Calls of tools in the form of the chat template: "required", those of the tool that `choice` names, or with
        "auto" text, or calls.

        `parallel`: more than one call may be made. `answer_schema`: what may stand instead of calls is JSON of this
        schema; it must be possible to tell it from a call by its beginning. Raises ConfigError for a template that has
        no calls, a choice that is no tool, and parameters that cannot be followed.
        """
        if self._form is None:
            raise ConfigError(
                "this tokenizer has no chat template, so it writes no calls. Leave the tools out"
            )
        functions = callable_functions(tools, choice)
        if answer_schema is not None and choice == "auto":
            self._require_apart(functions, answer_schema)
        grammar = call_grammar(
            functions, self._template_grammar(prompt), free=choice == "auto", parallel=parallel,
            answer_schema=answer_schema,
        )  # fmt: skip
        try:
            return self._constraint(grammar, "what the tools take", prompt)
        except ConfigError:
            for name, parameters in functions.items():  # which of them is it?
                self._constraint(
                    json_grammar(parameters, self._template_grammar("")), f"what the tool {name!r} takes"
                )
            raise

    def _require_apart(self, functions: Iterable[str], schema: Mapping[str, Any]) -> None:
        """Raise ConfigError where JSON of a schema may begin as a call of one of the functions does."""
        assert self._form is not None
        alone = TemplateGrammar(None, self._special, self._ids)
        answer = self._matcher(json_grammar(schema, alone), "the schema")
        for name, beginning in zip(functions, self._form.require_calls().beginnings(functions), strict=True):
            tokens = self._encode(beginning)
            if answer.validate_tokens(tokens) == len(tokens):
                raise ConfigError(
                    f"an answer that follows the schema may begin as a call of {name!r} does in this model's form. "
                    "Describe its properties, with another first one, or leave the tools or the schema out"
                )

    def _template_grammar(self, prompt: str) -> TemplateGrammar:
        in_reasoning = self._form is not None and self._form.opens_reasoning(prompt)
        return TemplateGrammar(self._form, self._special, self._ids, in_reasoning)

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
