"""Finds the format of assistant answers in a chat template: renders known parts, and reads what surrounds them.

Nothing here knows a family. Answers with a call, with two, with reasoning and with text alone are rendered; so a model
is held to the form that it was trained in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mm_rec.errors import DataError
from mm_rec.tokenizers.template_rendering import render_messages
from mm_rec.tokenizers.tool_call_format import ID_PLACEHOLDER, ToolCallFormat, ToolCallStyle

# What is rendered to see what stands around it.
_QUESTION, _ANSWER, _REASONING = "probe question", "probe answer", "probe reasoning"
_NAMES, _IDS = ("probe_weather", "probe_clock"), ("probecal1", "probecal2")
_KEY, _VALUE = "probe_city", "probe place"
_ARGUMENTS = {_KEY: _VALUE}
_IN_PYTHON = re.compile(rf"""{_KEY}=(["']?){_VALUE}\1""")
_DESCRIBED = "probe description"
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": _DESCRIBED,
            "parameters": {
                "type": "object",
                "properties": {_KEY: {"type": "string", "description": _DESCRIBED}},
                "required": [_KEY],
            },
        },
    }
    for name in _NAMES
)


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The text before reasoning, and after it."""

    begin: str
    end: str

    def opening_in(self, prompt: str) -> str:
        """Return the end of a prompt that begins reasoning already; "" for none."""
        mark = self.begin.strip()
        return prompt[prompt.rfind(mark) :] if prompt.rstrip().endswith(mark) else ""

    def split(self, text: str, is_open: bool) -> tuple[str, str]:
        """Split an answer into reasoning and the rest; `is_open`: reasoning was begun in the prompt."""
        rest = text.lstrip()
        if not is_open and not rest.startswith(self.begin.strip()):
            return "", text
        reasoning, _, rest = rest.removeprefix(self.begin.strip()).partition(self.end.strip())
        return reasoning.strip(), rest.lstrip()


class TemplateProbe:
    """A template that is probed with answers to one question."""

    def __init__(
        self,
        template: str,
        specials: Mapping[str, str],
        special: re.Pattern[str],
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        self._template, self._specials, self._special, self._tools = template, specials, special, tools

    def _render(self, *answers: Mapping[str, Any], prompt: bool = False) -> str:
        messages = [{"role": "user", "content": _QUESTION}, *answers]
        options = {"add_generation_prompt": prompt}
        return render_messages(self._template, self._specials, messages, self._tools, **options)[0]

    def _answer(self, content: str | None = _ANSWER, **parts: Any) -> str:
        """Render an answer; returns the text after the question."""
        whole = self._render({"role": "assistant", "content": content, **parts})
        return whole[whole.rfind(_QUESTION) + len(_QUESTION) :]

    def _opening(self) -> str:
        """Render the generation prompt; returns the text after the question."""
        prompt = self._render(prompt=True)
        return prompt[prompt.rfind(_QUESTION) + len(_QUESTION) :]

    def end(self) -> tuple[str, str]:
        """Return the text between an answer and the special token that ends it, and the token; "" for none."""
        try:
            after = self._answer().rpartition(_ANSWER)[2]
        except DataError:  # it asks for more than a question and an answer
            return "", ""
        ending = self._special.search(after)
        return (after[: ending.start()], ending[0]) if ending else ("", "")

    def reasoning(self) -> ReasoningFormat | None:
        """Find the text around reasoning: as rendered, or <think> where it is only cut out of earlier answers."""
        try:
            written, opening = self._answer(reasoning_content=_REASONING), self._opening()
        except DataError:
            return None
        before, found, after = written.partition(_REASONING)
        if not found:
            if "</think>" not in self._template:
                return None
            return ReasoningFormat("<think>", "</think>")
        if opening.startswith(before):  # the prompt begins reasoning
            begin = before[before.rstrip().rfind("\n") + 1 :]
            begin = begin[max(begin.rfind("<"), begin.rfind("[")) :]
        elif before.startswith(opening):
            begin = before[len(opening) :]
        else:
            return None
        return ReasoningFormat(begin, after[: after.find(_ANSWER)]) if begin.strip() else None

    def calls(self, reasoning: ReasoningFormat | None) -> ToolCallFormat:
        """Return the format of tool calls; raises DataError where there is none, saying why."""
        if not any(name in self._render(prompt=True) for name in _NAMES):
            raise DataError("this model's chat template does not tell the model which tools there are")
        opening = self._opening()
        for arguments_as_string, null_content in product((False, True), repeat=2):
            style = ToolCallStyle(arguments_as_string, null_content)
            try:
                one = self._calling(style, 1)
            except DataError:
                continue
            if (found := self._form(style, one, opening, reasoning)) is not None:
                return found
        raise DataError(
            "this model's chat template writes no calls of tools, or in a form that is not known here"
        )

    def _calling(self, style: ToolCallStyle, count: int, content: str = "") -> str:
        calls = [
            {"type": "function", "id": call_id, "function": {"name": name, "arguments": _ARGUMENTS}}
            for name, call_id in zip(_NAMES[:count], _IDS, strict=False)
        ]
        return self._answer(**style.to_template(content, calls))

    def _form(
        self, style: ToolCallStyle, one: str, opening: str, reasoning: ReasoningFormat | None
    ) -> ToolCallFormat | None:
        parts = _cut(one, _NAMES[:1])
        if parts is None:
            return None
        [(head, between)], tail, python = parts
        begin, empty = opening, ""
        if reasoning is not None:
            begin = opening[: len(opening) - len(reasoning.opening_in(opening))]
            empty = reasoning.begin + reasoning.end
        if not head.startswith(begin):
            return None
        before = head[len(begin) :].removeprefix(empty)
        ends, (_, eot_token) = list(self._special.finditer(tail)), self.end()
        stops = [end for end in ends if end[0] == eot_token] or ends
        if not stops or not before.strip():  # nothing would tell a call from a text that begins with a name
            return None
        closing = tail[: stops[-1].start()]
        after_text = self._after_text(style, begin, empty, before)
        return ToolCallFormat(
            before, between, self._joint(style), closing, stops[-1][0], after_text, python, style
        )

    def _joint(self, style: ToolCallStyle) -> str | None:
        """Return the text between a call and the next one's name; None where a message holds one call."""
        try:
            parts = _cut(self._calling(style, 2), _NAMES)
        except DataError:
            return None
        return None if parts is None else parts[0][1][0]

    def _after_text(self, style: ToolCallStyle, begin: str, empty: str, before: str) -> str | None:
        """Return the text between an answer's content and its calls; None where calls stand alone."""
        try:
            parts = _cut(self._calling(style, 1, _ANSWER), _NAMES[:1])
        except DataError:
            return None
        if parts is None:
            return None
        text = parts[0][0][0][len(begin) :].removeprefix(empty)
        if not text.startswith(_ANSWER) or not text.endswith(before):
            return None
        return text[len(_ANSWER) : len(text) - len(before)]


def _cut(text: str, names: Sequence[str]) -> tuple[list[tuple[str, str]], str, bool] | None:
    """Return the text before each call's name and between it and its arguments, the text after, and if they are Python.

    None where they are not all found. Ids are replaced by the sign for one.
    """
    for call_id in _IDS:
        text = text.replace(call_id, ID_PLACEHOLDER)
    parts, python, place = [], False, 0
    for name in names:
        start = text.find(name, place)
        if start < 0:
            return None
        stop = start + len(name)
        written = json.dumps(_ARGUMENTS)
        at, length = text.find(written, stop), len(written)
        if at < 0:
            keywords = _IN_PYTHON.search(text, stop)
            if keywords is None:
                return None
            python, at, length = True, keywords.start(), len(keywords[0])
        parts.append((text[place:start], text[stop:at]))
        place = at + length
    return parts, text[place:], python
