"""The format of assistant answers in a chat template: tool calls, reasoning, and the end of the turn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, DataError
from mm_rec.tokenizers.chat_template import require_template
from mm_rec.tokenizers.loading import special_token_pattern
from mm_rec.tokenizers.template_probe import TOOLS, ReasoningFormat, TemplateProbe
from mm_rec.tokenizers.tool_call_format import ParsedToolCall, ToolCallFormat


@dataclass(frozen=True, slots=True)
class AssistantReply:
    """A parsed answer: content, reasoning before it, and tool calls."""

    content: str
    reasoning: str = ""
    calls: tuple[ParsedToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class AssistantFormat:
    """The format of answers: `end` follows an answer's text, before `eot_token`, the special token that ends it.

    `calls` and `reasoning` are None where the template writes none; `no_tool_calls_reason` then says why.
    """

    end: str
    eot_token: str
    reasoning: ReasoningFormat | None
    calls: ToolCallFormat | None
    no_tool_calls_reason: str = ""

    def opens_reasoning(self, prompt: str) -> bool:
        """Return whether a prompt ends where reasoning has begun."""
        return self.reasoning is not None and bool(self.reasoning.opening_in(prompt))

    def parse(self, text: str, prompt: str = "") -> AssistantReply:
        """Parse an answer to a prompt from its text with special tokens, without the end of its turn.

        Raises ValueError for a call that is not well-formed.
        """
        reasoning = ""
        if self.reasoning is not None:
            reasoning, text = self.reasoning.split(text, self.opens_reasoning(prompt))
        content, calls = (text.strip(), []) if self.calls is None else self.calls.parse(text)
        return AssistantReply(content, reasoning, tuple(calls))

    def require_calls(self) -> ToolCallFormat:
        """Return the format of tool calls; raises ConfigError where there is none."""
        if self.calls is None:
            raise ConfigError(
                f"{self.no_tool_calls_reason}. Leave the tools out, or fine-tune the model with a layout that has them"
            )
        return self.calls


def assistant_format(tokenizer: PreTrainedTokenizerBase) -> AssistantFormat:
    """Return the answer format of a tokenizer's chat template; raises TokenizerError where there is none."""
    specials = tuple(
        sorted(
            (name, str(token))
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        )
    )
    with_tools = require_template(tokenizer, TOOLS)
    return _probe_format(require_template(tokenizer), with_tools, specials, special_token_pattern(tokenizer))


def eot_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's eos, and those of its chat template, if it has one."""
    ends: set[str] = set()
    if tokenizer.chat_template:
        form = assistant_format(tokenizer)
        ends = {form.eot_token, form.calls.eot_token if form.calls else ""}
    found = {token for token, one in tokenizer.added_tokens_decoder.items() if str(one) in ends}
    eos = tokenizer.eos_token_id
    return frozenset(found if eos is None else {*found, int(eos)})


@lru_cache(maxsize=64)
def _probe_format(
    template: str, with_tools: str, specials: tuple[tuple[str, str], ...], special: re.Pattern[str]
) -> AssistantFormat:
    plain = TemplateProbe(template, dict(specials), special, ())
    end, eot_token = plain.end()
    reasoning = plain.reasoning()
    try:
        calls, why = TemplateProbe(with_tools, dict(specials), special, TOOLS).calls(reasoning), ""
    except DataError as error:
        calls, why = None, str(error)
    return AssistantFormat(end, eot_token, reasoning, calls, why)
