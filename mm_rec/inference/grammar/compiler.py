"""Compile what text is held to: JSON, JSON of a schema, tool calls in the form of the model's template."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import PushdownAutomaton
from mm_rec.inference.grammar.constraint import GrammarConstraint, cannot_follow
from mm_rec.inference.grammar.lark_automaton import build_automaton
from mm_rec.inference.grammar.lark_grammar import (
    TemplateGrammar,
    call_grammar,
    callable_functions,
    json_grammar,
)
from mm_rec.inference.grammar.transitions import GrammarTooLargeError
from mm_rec.inference.grammar.vocabulary import GrammarVocabulary
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.loading import special_token_pattern

MAX_GRAMMAR_CHARS = 1_000_000  # characters, schemas included
MAX_KEPT = 500_000  # states of automata and characters of grammars, of all that are kept for further requests
Check = Callable[[], None]


def no_check() -> None:
    """Let a grammar be compiled to its end."""


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
        super().__init__(tokenizer, model_vocab_size, stop_ids)
        self._form = assistant_format(tokenizer) if tokenizer.chat_template else None
        self._special = special_token_pattern(tokenizer)
        self._ids = tokenizer.get_vocab()
        self._kept: OrderedDict[str, tuple[PushdownAutomaton, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def json_object(self, prompt: str = "", check: Check = no_check) -> GrammarConstraint:
        """Any JSON object, in answer to a prompt's text, which may have begun reasoning."""
        return self.json_schema({"type": "object"}, prompt, check)

    def json_schema(
        self, schema: Mapping[str, Any], prompt: str = "", check: Check = no_check
    ) -> GrammarConstraint:
        """The JSON that a schema describes (Draft 2020-12, without what llguidance cannot hold a text to).

        `check` is called now and then, and may raise to end the work. Raises ConfigError where the schema cannot be
        followed; nothing outside of it is ever looked up.
        """
        return self._constraint(json_grammar(schema, self._template_grammar(prompt)), "the schema", check)

    def tool_calls(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: str = "auto",
        parallel: bool = True,
        prompt: str = "",
        answer_schema: Mapping[str, Any] | None = None,
        check: Check = no_check,
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
            self._require_apart(functions, answer_schema, check)
        grammar = call_grammar(
            functions, self._template_grammar(prompt), free=choice == "auto", parallel=parallel,
            answer_schema=answer_schema,
        )  # fmt: skip
        try:
            return self._constraint(grammar, "what the tools take", check)
        except ConfigError:
            for name, parameters in functions.items():  # which of them is it?
                self._constraint(
                    json_grammar(parameters, self._template_grammar("")),
                    f"what the tool {name!r} takes",
                    check,
                )
            raise

    def _require_apart(self, functions: Iterable[str], schema: Mapping[str, Any], check: Check) -> None:
        """Raise ConfigError where JSON of a schema may begin as a call of one of the functions does."""
        assert self._form is not None
        alone = TemplateGrammar(None, self._special, self._ids)
        _, answer = self._compiled(json_grammar(schema, alone), "the schema", check)
        for name, beginning in zip(functions, self._form.require_calls().beginnings(functions), strict=True):
            tokens = self._tokenizer.encode(beginning, add_special_tokens=False)
            if answer.validate_tokens(tokens) == len(tokens):
                raise ConfigError(
                    f"an answer that follows the schema may begin as a call of {name!r} does in this model's form. "
                    "Describe its properties, with another first one, or leave the tools or the schema out"
                )

    def _template_grammar(self, prompt: str) -> TemplateGrammar:
        in_reasoning = self._form is not None and self._form.opens_reasoning(prompt)
        return TemplateGrammar(self._form, self._special, self._ids, in_reasoning)

    def _constraint(self, grammar: str, what: str, check: Check) -> GrammarConstraint:
        automaton, matcher = self._compiled(grammar, what, check)
        return GrammarConstraint(self, matcher.deep_copy(), automaton, what)

    def _compiled(self, grammar: str, what: str, check: Check) -> tuple[PushdownAutomaton, Any]:
        """The automaton of a grammar, and llguidance's parser at its start; kept for who asks again."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise ConfigError(
                f"{what} takes {len(grammar):,} characters; {MAX_GRAMMAR_CHARS:,} are the most. Make it smaller"
            )
        try:
            automaton = build_automaton(grammar, check)
        except GrammarTooLargeError as error:  # before llguidance has any work with it
            raise ConfigError(f"{what} is too large: {error}") from error
        except RecursionError as error:
            raise ConfigError(
                f"{what} is nested too deep, or what it refers to grows without end. Make it flatter"
            ) from error
        except ConfigError as error:
            self._matcher(grammar, what)  # says better why
            raise cannot_follow(what, str(error)) from error
        compiled = automaton, self._matcher(grammar, what)
        with self._lock:
            self._kept[grammar] = compiled
            while sum(len(text) + kept.num_states for text, (kept, _) in self._kept.items()) > MAX_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _matcher(self, grammar: str, what: str) -> Any:
        """llguidance's parser at the start of a grammar; raises ConfigError where there can be none."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_items_in_row=16_000, step_max_items=200_000, max_lexer_states=50_000, verbose_errors=False
        )
        matcher = LLMatcher(self.llguidance, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise cannot_follow(what, matcher.get_error())
        return matcher
