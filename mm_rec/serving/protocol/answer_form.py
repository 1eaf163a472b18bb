"""How an answer is held: the tools that it may call, the schema that it follows, and what reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.compiler import Check
from mm_rec.inference.grammar.constraint import GrammarConstraint
from mm_rec.inference.grammar.lark_grammar import NO_PARAMETERS
from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import EnginePrompt, MakeConstraint
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.preprocessing import (
    ToolSchemas,
    require_no_special_tokens,
)
from mm_rec.serving.protocol.schemas import AllowedToolsChoice, NamedTool, Tool
from mm_rec.serving.protocol.tool_calls import OutputParser, make_parser
from mm_rec.tokenizers.assistant_format import assistant_format

_NOT_SHOWN: Any = {"cache_control": True, "function": {"strict"}}  # parts of tools that have no effect


@dataclass(frozen=True, slots=True)
class ToolCallOptions:
    """The tools that may be called; `choice` is "auto", "required" or a name, `field` the one of the tools."""

    tools: ToolSchemas
    choice: str
    parallel: bool
    field: str

    def called_instead_of(self, schema: Mapping[str, Any] | None) -> list[str]:
        """Return the names of the tools that may be called where the answer is JSON of a schema otherwise."""
        if schema is None or self.choice != "auto":
            return []
        return [tool["function"]["name"] for tool in self.tools]


def template_tools(
    variant: ModelVariant, tools: Sequence[Tool] | None, field: str = "tools"
) -> list[dict[str, Any]]:
    """Return tools for the template, without fields of no effect; raises ApiError for special tokens in them."""
    shown = [tool.model_dump(exclude_none=True, exclude=_NOT_SHOWN) for tool in tools or []]
    for tool in shown:
        tool["function"].setdefault("parameters", NO_PARAMETERS)
    require_no_special_tokens(variant, json.dumps(shown, ensure_ascii=False), field)
    return shown


ToolChoice = str | NamedTool | AllowedToolsChoice | None


def tool_call_options(
    tools: ToolSchemas,
    choice: ToolChoice,
    parallel: bool,
    field: str = "tools",
    choice_field: str = "tool_choice",
) -> ToolCallOptions | None:
    """Resolve tool_choice; None where no tool may be called. Raises ApiError for a tool that is not there."""
    if not tools and choice not in (None, "none", "auto"):
        message = f"{choice_field}: there are no {field} to choose from"
        raise ApiError(400, message, choice_field, "invalid_value")
    if not tools or choice == "none":
        return None
    if isinstance(choice, NamedTool):
        name = choice.function.name
        return ToolCallOptions(_allowed(tools, {name}, choice_field), name, False, field)
    if isinstance(choice, AllowedToolsChoice):
        names = {tool.function.name for tool in choice.allowed_tools.tools}
        return ToolCallOptions(
            _allowed(tools, names, choice_field), choice.allowed_tools.mode, parallel, field
        )
    return ToolCallOptions(tools, choice or "auto", parallel, field)


def _allowed(tools: ToolSchemas, names: set[str], field: str) -> ToolSchemas:
    """Return the tools of these names."""
    known = [tool["function"]["name"] for tool in tools]
    if missing := names.difference(known):
        message = f"{field}: there is no tool {min(missing)[:64]!r}; there are {', '.join(known)}"
        raise ApiError(400, message, field, "invalid_value")
    return [tool for tool in tools if tool["function"]["name"] in names]


def output_schema(kind: str, schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the schema that an answer must follow: for json_object that of any object; None for text."""
    return {"type": "object"} if kind == "json_object" else schema


def answer_parsers(
    variant: ModelVariant,
    prompt: EnginePrompt,
    call_options: ToolCallOptions | None,
    schema: Mapping[str, Any] | None,
    count: int = 1,
) -> list[OutputParser]:
    """Return the parsers of so many answers to a prompt, with calls where there may be some."""
    form, has_calls = assistant_format(variant.model.tokenizer), call_options is not None
    names = call_options.called_instead_of(schema) if call_options is not None else ()
    return [make_parser(form, prompt.ending, has_calls, names) for _ in range(count)]


def constraint_factory(
    context: RequestContext,
    call_options: ToolCallOptions | None,
    schema: Mapping[str, Any] | None,
    field: str,
    prompt: EnginePrompt,
) -> MakeConstraint | None:
    """Return a function that makes the constraint of an answer: tool calls, JSON of a schema, or either of them.

    `field`: that of the schema.
    """
    grammars = context.variant.model.grammars

    def for_calls(call_options: ToolCallOptions, check: Check) -> GrammarConstraint:
        with errors_in_field(call_options.field):
            try:
                return grammars.tool_calls(
                    call_options.tools,
                    call_options.choice,
                    call_options.parallel,
                    prompt.ending,
                    schema,
                    check,
                )
            except ConfigError:
                if schema is not None and call_options.choice == "auto":
                    for_schema(schema, check)  # raises where it is not the tools that cannot be followed
                raise

    def for_schema(schema: Mapping[str, Any], check: Check) -> GrammarConstraint:
        with errors_in_field(field):
            return grammars.json_schema(schema, prompt.ending, check)

    compile_grammar = context.server.grammar_threads.compile
    if call_options is not None:
        return partial(compile_grammar, partial(for_calls, call_options), call_options.field)
    return None if schema is None else partial(compile_grammar, partial(for_schema, schema), field)
