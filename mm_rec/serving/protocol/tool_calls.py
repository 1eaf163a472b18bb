"""Streaming parsers of an answer in the form of the model's template: reasoning, text, then tool calls."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from mm_rec.inference.generate import partial_match_length
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.store.tables import new_id
from mm_rec.tokenizers.assistant_format import AssistantFormat, assistant_format
from mm_rec.tokenizers.loading import special_token_pattern
from mm_rec.tokenizers.template_probe import ReasoningFormat
from mm_rec.tokenizers.tool_call_format import (
    CALL_ID_PATTERN,
    ID_PLACEHOLDER,
    ClosingBracketFinder,
    ToolCallFormat,
)

_START = "\x02"  # before an answer, for what is a call at its beginning alone
_NAME = {True: re.compile(r'(?:[^"\\\n]|\\.)*'), False: re.compile(r"[^\s(]+")}  # quoted, or as it is
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """A parsed part of an answer: some reasoning or text, the name of a call that begins, or some of its arguments."""

    kind: Literal["reasoning", "text", "call", "arguments"]
    text: str
    call: int = 0
    id: str = ""


class OutputParser(Protocol):
    """Parses an answer's text as it comes."""

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text; what may be the beginning of something else is held back until it is known."""

    def finish(self) -> Iterator[ParsedDelta]:
        """Yield what is still held back, at the end."""


class ToolCallParser:
    """Parses an answer that a grammar constrains to calls, or to text and calls, in a template's form."""

    def __init__(self, form: ToolCallFormat) -> None:
        self.calls = 0
        self._form = form
        before = {"marked": "", "line": "\n", "alone": _START}[form.call_position]
        self._opening = (before + form.opening).partition(ID_PLACEHOLDER)[0]
        self._first = _head(before + form.opening, form)
        self._next = None if form.call_separator is None else _head(form.call_separator, form)
        # What stands before the answer is for the form that knows a call by it; nothing of it is ever given out.
        self._held, self._is_start = before, bool(before)
        self._arguments: _JsonObjectScanner | _KeywordsScanner | None = None

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text; what may be the beginning of a call is held back until it is known."""
        self._held += text
        while self._held:
            if self._arguments is not None:
                fragment, self._held = self._arguments.take(self._held)
                if fragment:
                    yield ParsedDelta("arguments", fragment, self.calls - 1)
                if not self._arguments.ended:
                    return
                self._arguments = None
                continue
            head = self._find_head()
            if head is None:
                if not self.calls:
                    yield from self._text(self._safe_length())
                return
            if not self.calls:
                yield from self._text(head.start(), self._form.after_text or "")
                head = self._first.match(self._held)
                assert head is not None
            self._held = self._held[head.end() :]
            self._arguments = _KeywordsScanner(self._form) if self._form.pythonic else _JsonObjectScanner()
            name = json.loads(f'"{head["name"]}"') if self._form.name_is_quoted else head["name"]
            self.calls += 1
            yield ParsedDelta("call", name, self.calls - 1, self._new_id())

    def finish(self) -> Iterator[ParsedDelta]:
        """Yield the text still held back, at the end; what closes a message is the template's."""
        if not self.calls:
            yield from self._text(len(self._held.rstrip("\n")))

    def _find_head(self) -> re.Match[str] | None:
        """Find the beginning of a call, up to its arguments, in what is held."""
        if self.calls:
            return None if self._next is None else self._next.match(self._held)
        return self._first.search(self._held)

    def _safe_length(self) -> int:
        """Return the length of the text that is no call, whatever comes; the last newlines may be the template's."""
        place = self._held.find(self._opening)
        while place >= 0 and not self._may_be_head(self._held[place + len(self._opening) :]):
            place = self._held.find(self._opening, place + 1)
        place = place if place >= 0 else len(self._held) - partial_match_length(self._held, self._opening)
        text = self._held[:place]
        after = self._form.after_text or ""
        text = text[: len(text) - (len(after) if text.endswith(after) else partial_match_length(text, after))]
        return len(text.rstrip("\n"))

    def _may_be_head(self, text: str) -> bool:
        """Return whether what follows an opening is, or may become, a name and what stands behind it."""
        name = _NAME[self._form.name_is_quoted].match(text)
        rest = text[name.end() :] if name else text
        between = self._form.between.partition(ID_PLACEHOLDER)[0]
        return not rest or between.startswith(rest) or rest.startswith(between)

    def _text(self, length: int, closing: str = "") -> Iterator[ParsedDelta]:
        """Give out so much of what is held; `closing` at its end is the template's."""
        text, self._held = self._held[:length], self._held[length:]
        if text and self._is_start:
            text, self._is_start = text[1:], False
        if text := text.removesuffix(closing).rstrip("\n") if self._find_head() else text:
            yield ParsedDelta("text", text)

    def _new_id(self) -> str:
        """An id that the template can write, where it writes ids."""
        if not self._form.writes_ids:
            return new_id("call")
        return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _head(before: str, form: ToolCallFormat) -> re.Pattern[str]:
    """Return the pattern of a call up to its arguments."""
    first, last = (
        re.escape(text).replace(re.escape(ID_PLACEHOLDER), CALL_ID_PATTERN) for text in (before, form.between)
    )
    return re.compile(f"{first}(?P<name>{_NAME[form.name_is_quoted].pattern}){last}")


class TextParser:
    """Parses an answer without calls: text, without the newlines that close it."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text; line ends are held back until more follows."""
        self._held += text
        if shown := self._held.rstrip("\n"):
            self._held = self._held[len(shown) :]
            yield ParsedDelta("text", shown)

    def finish(self) -> Iterator[ParsedDelta]:
        """Yield nothing: what is still held back closes the message."""
        return iter(())


class CallsOrJsonParser:
    """Parses an answer that a grammar constrains to calls of some functions, or to JSON: its beginning tells which."""

    def __init__(self, form: ToolCallFormat, names: Iterable[str]) -> None:
        self._form, self._beginnings = form, form.beginnings(names)
        self._held = ""
        self._then: OutputParser | None = None

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text; it is held back until it is known what it begins."""
        self._held += text
        if self._then is None and any(self._held.startswith(one) for one in self._beginnings):
            self._then = ToolCallParser(self._form)
        elif self._then is None and not any(one.startswith(self._held) for one in self._beginnings):
            self._then = TextParser()
        if self._then is not None:
            text, self._held = self._held, ""
            yield from self._then.push(text)

    def finish(self) -> Iterator[ParsedDelta]:
        """Yield what is still held back, at the end."""
        then = self._then or TextParser()
        yield from then.push(self._held)
        yield from then.finish()


class VerbatimParser:
    """Parses nothing: an answer that follows no template is text, as it is."""

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text, and yield it."""
        if text:
            yield ParsedDelta("text", text)

    def finish(self) -> Iterator[ParsedDelta]:
        """Yield nothing: nothing is held back."""
        return iter(())


class ReasoningParser:
    """Parses the reasoning that an answer may begin with, and gives what follows to another parser."""

    def __init__(self, form: ReasoningFormat, is_open: bool, then: OutputParser) -> None:
        """`is_open`: the prompt has begun the reasoning already."""
        self._begin, self._end, self._then = form.begin.strip(), form.end.strip(), then
        self._state: Literal["before", "within", "behind", "over"] = "before"
        self._held, self._has_reasoning, self._is_open = "", False, is_open

    def push(self, text: str) -> Iterator[ParsedDelta]:
        """Take some text; what may begin or end the reasoning is held back until it is known."""
        self._held += text
        if self._state == "before":
            start = self._held.lstrip()
            if self._begin != start and self._begin.startswith(start):  # or nothing yet
                return
            begins = start.startswith(self._begin)  # some models do so though the prompt has
            self._state = "within" if begins or self._is_open else "over"
            self._held = start.removeprefix(self._begin) if begins else self._held
        if self._state == "within":
            yield from self._reasoning()
        if self._state == "behind":
            self._held = self._held.lstrip()
            self._state = "over" if self._held else "behind"
        if self._state == "over":
            text, self._held = self._held, ""
            yield from self._then.push(text)

    def finish(self) -> Iterator[ParsedDelta]:
        """What is still held back, at the end."""
        within = self._state == "within" or (self._state == "before" and self._is_open)
        if within and (thought := self._strip(self._held)):
            yield ParsedDelta("reasoning", thought)
        elif self._state == "before":
            yield from self._then.push(self._held)
        yield from self._then.finish()

    def _reasoning(self) -> Iterator[ParsedDelta]:
        thought, end, rest = self._held.partition(self._end)
        if not end:
            thought = thought[: len(thought) - partial_match_length(thought, self._end)]
        thought = self._strip(thought)
        if thought:
            self._has_reasoning = True
            yield ParsedDelta("reasoning", thought)
        if end:
            self._held, self._state = rest, "behind"
        elif thought:
            self._held = self._held[self._held.find(thought) + len(thought) :]

    def _strip(self, text: str) -> str:
        """Return reasoning without the white space around all of it."""
        return text.rstrip() if self._has_reasoning else text.strip()


def make_parser(
    form: AssistantFormat, prompt: str, calls: bool, instead_of_json: Iterable[str] = ()
) -> OutputParser:
    """Return the parser of the answer to a prompt, with calls or without.

    `instead_of_json`: the functions that may be called, where the answer is JSON otherwise.
    """
    parser: OutputParser = ToolCallParser(form.require_calls()) if calls else TextParser()
    if instead_of_json:
        parser = CallsOrJsonParser(form.require_calls(), instead_of_json)
    if form.reasoning is None:
        return parser
    return ReasoningParser(form.reasoning, form.opens_reasoning(prompt), parser)


def needs_special_tokens(variant: ModelVariant, calls: bool) -> bool:
    """Return whether parsing needs the texts of special tokens: those of calls, and those around reasoning."""
    reasoning = assistant_format(variant.model.tokenizer).reasoning
    special = special_token_pattern(variant.model.tokenizer)
    return calls or (reasoning is not None and special.search(reasoning.begin + reasoning.end) is not None)


class _JsonObjectScanner:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def take(self, text: str) -> tuple[str, str]:
        """Split a text into what belongs to the object, and the rest."""
        for place, letter in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self.ended = True
                    return text[: place + 1], text[place + 1 :]
        return text, ""


class _KeywordsScanner:
    """Turns a call's keywords in Python's form, when all of them have come, into the JSON that clients get."""

    def __init__(self, form: ToolCallFormat) -> None:
        self.ended = False
        self._form, self._text, self._place = form, "", ClosingBracketFinder()

    def take(self, text: str) -> tuple[str, str]:
        """Return the arguments as JSON, where a text has them all, and the rest."""
        end = self._place.find(text)
        if end is None:
            self._text += text
            return "", ""
        self.ended = True
        return json.dumps(self._form.arguments_of(self._text + text[:end]), ensure_ascii=False), text[end:]
