"""The text of an answer that a grammar holds to a layout's calls, read as it comes: text, then calls in fragments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mm_rec.inference.text_stream import overlap
from mm_rec.serving.tables import new_id
from mm_rec.tokenizers.chat_template import layout_of
from mm_rec.tokenizers.special import TOOL_CALL

# What stands before the object of a call; in llama3's layout nothing does but the beginning of a line.
_MARKS = {"default": TOOL_CALL, "chatml": "<tool_call>", "llama3": "\n"}
_HEAD = r'\{"name": ("(?:[^"\\]|\\.)*"), "(?:arguments|parameters)": '


@dataclass(frozen=True, slots=True)
class Part:
    """What came: some text, the name of a call that begins, or some of its arguments."""

    kind: Literal["text", "call", "arguments"]
    text: str
    call: int = 0
    id: str = ""


class CallReader:
    """Cuts an answer's text into its parts; `layout` is the name of the chat layout."""

    def __init__(self, layout: str) -> None:
        self.calls = 0
        self._mark = _MARKS[layout]
        self._head = re.compile(re.escape(self._mark) + _HEAD)
        # The line end is for llama3, which knows a call by it; nothing of it is ever given out.
        self._held, self._is_start = "\n", True
        self._arguments: _Arguments | None = None

    def push(self, text: str) -> Iterator[Part]:
        """Take some text; what may be the beginning of a call is held back until it is known."""
        self._held += text
        while self._held:
            if self._arguments is not None:
                fragment = self._arguments.take(self._held)
                self._held = self._held[len(fragment) :]
                if fragment:
                    yield Part("arguments", fragment, self.calls - 1)
                if self._arguments.ended:
                    self._arguments = None
                continue
            head = self._head.search(self._held)
            if head is None:
                yield from self._text(self._certain())
                return
            yield from self._text(head.start())
            self._held = self._held[head.end() - head.start() :]
            self._arguments, self._is_start = _Arguments(), False
            self.calls += 1
            yield Part("call", json.loads(head[1]), self.calls - 1, new_id("call"))

    def finish(self) -> Iterator[Part]:
        """The text still held back, at the end."""
        yield from self._text(len(self._held.rstrip("\n")))

    def _certain(self) -> int:
        """The length of the text that is no call, whatever comes; the last line ends may be the layout's own."""
        held, mark = self._held, self._mark
        if mark == "\n":  # the last line is a call's where it begins as an object
            place = held.rfind("\n")
            place = place if place >= 0 and held[place + 1 : place + 2] in ("", "{") else len(held)
        else:
            place = held.find(mark)
            place = place if place >= 0 else len(held) - overlap(held, mark)
        return len(held[:place].rstrip("\n"))

    def _text(self, length: int) -> Iterator[Part]:
        """Give out so much of what is held; what stands after calls is the layout's."""
        text, self._held = self._held[:length], self._held[length:]
        if text and self._is_start:
            text, self._is_start = text[1:], False
        if self._head.match(self._held):  # the line ends between a text and a call are the layout's
            text = text.rstrip("\n")
        if text and not self.calls:
            yield Part("text", text)


class TextReader:
    """The same for an answer without calls: text, without the line ends that close it."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Iterator[Part]:
        """Take some text; line ends are held back until more follows."""
        self._held += text
        if shown := self._held.rstrip("\n"):
            self._held = self._held[len(shown) :]
            yield Part("text", shown)

    def finish(self) -> Iterator[Part]:
        """Nothing more: what is still held back closes the message."""
        return iter(())


def reader_for(tokenizer: PreTrainedTokenizerBase, calls: bool) -> CallReader | TextReader:
    """What reads the answers of a tokenizer's layout, in which there may be calls or not."""
    layout = layout_of(tokenizer) if calls else None
    return TextReader() if layout is None else CallReader(layout.name)


class _Arguments:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def take(self, text: str) -> str:
        """The part of a text that belongs to the object."""
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
                    return text[: place + 1]
        return text
