"""How a chat template has the assistant write: its calls of tools, its reasoning, and where an answer ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, DataError
from mm_rec.tokenizers.call_form import Call, CallForm
from mm_rec.tokenizers.chat_template import require_template
from mm_rec.tokenizers.loading import special_pattern
from mm_rec.tokenizers.template_probe import TOOLS, Probe, ReasoningForm


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says, what it reasoned before, and the calls that it makes."""

    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How the assistant writes: `end` stands after an answer's text, before `turn_end`, the special token that ends it.

    `calls` and `reasoning` are None where the template writes none; `no_calls` then says why.
    """

    end: str
    turn_end: str
    reasoning: ReasoningForm | None
    calls: CallForm | None
    no_calls: str = ""

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether a prompt ends where reasoning has begun."""
        return self.reasoning is not None and bool(self.reasoning.opened_by(prompt))

    def read(self, text: str, prompt: str = "") -> Reply:
        """An answer to a prompt from its text, special tokens with it, the end of its turn left out.

        Raises ValueError for a call that is not well-formed.
        """
        reasoning = ""
        if self.reasoning is not None:
            reasoning, text = self.reasoning.split(text, self.opens_reasoning(prompt))
        content, calls = (text.strip(), []) if self.calls is None else self.calls.read(text)
        return Reply(content, reasoning, tuple(calls))

    def require_calls(self) -> CallForm:
        """The form of calls; raises ConfigError where there is none."""
        if self.calls is None:
            raise ConfigError(
                f"{self.no_calls}. Leave the tools out, or fine-tune the model with a layout that has them"
            )
        return self.calls


def answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    """How a tokenizer's chat template has the assistant write; raises TokenizerError where there is none."""
    specials = tuple(
        sorted(
            (name, str(token))
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        )
    )
    with_tools = require_template(tokenizer, TOOLS)
    return _found_form(require_template(tokenizer), with_tools, specials, special_pattern(tokenizer))


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokens that end an answer: the tokenizer's eos, and those of its chat template, if it has one."""
    ends: set[str] = set()
    if tokenizer.chat_template:
        form = answer_form(tokenizer)
        ends = {form.turn_end, form.calls.turn_end if form.calls else ""}
    found = {token for token, one in tokenizer.added_tokens_decoder.items() if str(one) in ends}
    eos = tokenizer.eos_token_id
    return frozenset(found if eos is None else {*found, int(eos)})


@lru_cache(maxsize=64)
def _found_form(
    template: str, with_tools: str, specials: tuple[tuple[str, str], ...], special: re.Pattern[str]
) -> AnswerForm:
    plain = Probe(template, dict(specials), special, ())
    end, turn_end = plain.end()
    reasoning = plain.reasoning()
    try:
        calls, why = Probe(with_tools, dict(specials), special, TOOLS).calls(reasoning), ""
    except DataError as error:
        calls, why = None, str(error)
    return AnswerForm(end, turn_end, reasoning, calls, why)
