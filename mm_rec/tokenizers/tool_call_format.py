"""The format of tool calls in a chat template: the text around them, and their parser."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mm_rec.tokenizers.template_rendering import common_prefix_length

ParsedToolCall = dict[str, Any]  # {"name", "arguments"}

ID_PLACEHOLDER = "\x00"  # in a format's texts, in place of the call's id
CALL_ID_PATTERN = r"[a-zA-Z0-9]{9}"  # what stands there; Mistral's templates take no others
_LEAST_MARK = 3  # letters, for a text to say by itself that a call begins


@dataclass(frozen=True, slots=True)
class ToolCallStyle:
    """The input that a template expects: arguments as JSON text or an object, empty content as None or as ""."""

    arguments_as_string: bool = False
    null_content: bool = False

    def to_template(self, content: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return content and calls for the template; `calls` as OpenAI has them, with arguments as objects."""

        def written(call: Mapping[str, Any]) -> Mapping[str, Any]:
            function = call["function"]
            text = json.dumps(function["arguments"], ensure_ascii=False)
            return {**call, "function": {**function, "arguments": text}} if self.arguments_as_string else call

        return {
            "content": None if self.null_content and not content else content,
            "tool_calls": [written(call) for call in calls],
        }


@dataclass(frozen=True)
class ToolCallFormat:
    """The calls of a message: opening NAME between ARGUMENTS (call_separator NAME between ARGUMENTS …) closing.

    `call_separator` is None where a message holds one call. `after_text` stands between a text and the opening; None: a
    message with calls says nothing else. `eot_token` is the special token that follows. Arguments are a JSON object, or
    with `pythonic` keywords: key="value", other=[1].
    """

    opening: str
    between: str
    call_separator: str | None
    closing: str
    eot_token: str
    after_text: str | None
    pythonic: bool
    style: ToolCallStyle

    @property
    def name_is_quoted(self) -> bool:
        """Return whether the name is written as a JSON string."""
        return self.opening.endswith('"')

    def written_name(self, name: str) -> str:
        """Return a function's name as it is written in a call."""
        return json.dumps(name, ensure_ascii=False)[1:-1] if self.name_is_quoted else name

    def beginnings(self, names: Iterable[str]) -> list[str]:
        """Return the texts that calls of these functions begin with, as far as they are the same in all."""
        heads = (self.opening + self.written_name(name) + self.between for name in names)
        return [head.partition(ID_PLACEHOLDER)[0] for head in heads]

    @property
    def writes_ids(self) -> bool:
        """Return whether calls are written with their ids."""
        return ID_PLACEHOLDER in f"{self.opening}{self.between}{self.call_separator}{self.closing}"

    @cached_property
    def call_position(self) -> Literal["marked", "line", "alone"]:
        """Return where calls may begin: after any text, at a line's start, or only at that of the message."""
        if self.after_text is None:
            return "alone"
        if len(self.marker) >= _LEAST_MARK:
            return "marked"
        return (
            "line"
            if not self.marker and "\n" in self.after_text and "\n" in (self.call_separator or "\n")
            else "alone"
        )

    @cached_property
    def marker(self) -> str:
        """Return the text that opens calls, before the first one's object or name."""
        return (self.opening[: -len(self._head)] if self._head else self.opening).strip()

    @cached_property
    def _head(self) -> str:
        """Return the text before the name within the call's own object; "" for calls that are no object."""
        found = re.search(r'\{\s*"name":\s*"$', self.opening)
        key = re.fullmatch(r'",\s*"(\w+)":\s*', self.between)
        return found[0] if found and key and self.closing.startswith(("}", ",")) else ""

    @property
    def arguments_key(self) -> str:
        """Return the key of the arguments in the call's own object."""
        found = re.search(r'"(\w+)":\s*$', self.between)
        return found[1] if found else "arguments"

    def to_template_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Convert an OpenAI message to the template's input: in its style, and with ids that it accepts."""
        taken = dict(message)
        if "tool_calls" in message:
            calls = [{**call, "id": self._id(call["id"])} for call in message["tool_calls"]]
            taken.update(self.style.to_template(message["content"], calls))
        if "tool_call_id" in message:
            taken["tool_call_id"] = self._id(message["tool_call_id"])
        return taken

    def _id(self, call_id: str) -> str:
        if not self.writes_ids or re.fullmatch(CALL_ID_PATTERN, call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def parse(self, text: str) -> tuple[str, list[ParsedToolCall]]:
        """Return a reply's text and its calls; raises ValueError for a call that is not well-formed."""
        if self.call_position == "line":
            return self._read_lines(text)
        content, found, rest = text.partition(self.marker) if self.marker else ("", "", text)
        if self.call_position == "alone" and (content.strip() or not self._may_begin(rest)):
            return text.strip(), []
        calls: list[ParsedToolCall] = []
        while found or not self.marker:
            call, rest = self._read_call(rest.lstrip())
            calls.append(call)
            closed = self._closed.match(rest)
            if closed is None and self._separator and (separated := self._separator.match(rest)):
                rest = rest[separated.end() :]
                continue
            if closed is None:
                raise ValueError(f"a tool call is not closed by {self._end.strip()}: {text[:80]!r}")
            between, found, rest = rest[closed.end() :].partition(self.marker or "\x00")
            content += between
            if not found:
                break
        return content.strip(), calls

    def arguments_of(self, text: str) -> dict[str, Any]:
        """Parse the arguments of a call; raises ValueError where they are none."""
        found = _keywords(text) if self.pythonic else json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"the arguments of a call are no object: {text[:80]!r}")
        return found

    def _may_begin(self, text: str) -> bool:
        """Return whether a text can be calls, where nothing marks them."""
        try:
            self._read_call(text.lstrip())
        except ValueError:
            return len(self.marker) >= _LEAST_MARK
        return True

    def _read_lines(self, text: str) -> tuple[str, list[ParsedToolCall]]:
        content, calls = [], []
        for line in text.strip().split("\n"):
            try:
                call, rest = self._read_call(line.strip())
            except ValueError:
                content.append(line)
                continue
            if rest:
                content.append(line)
            else:
                calls.append(call)
        return "\n".join(content).strip(), calls

    def _read_call(self, text: str) -> tuple[ParsedToolCall, str]:
        """Parse the call that a text begins with; returns it and the rest. An object may have its keys in any order."""
        if self._head:
            return _first_object(text, self.arguments_key)
        named = re.match(rf"\s*([^\s(<\[{{\"]+){_loosely(self.between)}\s*", text)
        if named is None:
            raise ValueError(f"a tool call has no name: {text[:80]!r}")
        rest = text[named.end() :]
        if self.pythonic:
            stop = ClosingBracketFinder().find(rest)
            if stop is None:
                raise ValueError(f"a tool call has no end: {text[:80]!r}")
            return {"name": named[1], "arguments": _keywords(rest[:stop])}, rest[stop:]
        arguments, stop = _first_json(rest)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of a call are no object: {text[:80]!r}")
        return {"name": named[1], "arguments": arguments}, rest[stop:]

    @cached_property
    def _end(self) -> str:
        """Return the text that closes the last call."""
        return self._behind(self.closing)

    def _behind(self, text: str) -> str:
        """Return the text behind a call, given the text behind its arguments: without the end of its own object."""
        return text.partition("}")[2] if self._head else text

    @cached_property
    def _separator(self) -> re.Pattern[str] | None:
        """Return a pattern for the text between two calls, where no marker opens the second."""
        if self.call_separator is None or (self.marker and self.marker in self.call_separator):
            return None
        between = self._behind(self.call_separator)
        return re.compile(_loosely(between[: len(between) - len(self._head)]) + r"\s*(?=\S)")

    @cached_property
    def _closed(self) -> re.Pattern[str]:
        """Return a pattern for the text that closes a call, or all of them where they are a list."""
        if self.call_separator is not None and self.marker and self.marker in self.call_separator:
            following = self._behind(self.call_separator)
            return re.compile(_loosely(following[: common_prefix_length(self._end, following)]))
        return re.compile(_loosely(self._end))


def _loosely(text: str) -> str:
    """Return a pattern for a text whatever its white space, without that which follows it."""
    pieces = [re.escape(piece).replace(re.escape(ID_PLACEHOLDER), CALL_ID_PATTERN) for piece in text.split()]
    return r"\s*" + r"\s*".join(pieces)


def _first_json(text: str) -> tuple[Any, int]:
    """Parse the JSON that a text begins with; returns it and its end. Raises ValueError where it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a tool call is not JSON ({error}): {text[:80]!r}") from error


def _first_object(text: str, key: str) -> tuple[ParsedToolCall, str]:
    """Parse the call that a text begins with as an object; returns it and the rest, or raises ValueError."""
    value, end = _first_json(text)
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("name"), str)
        or not isinstance(value.get(key), dict)
    ):
        raise ValueError(f'a tool call is not {{"name": …, "{key}": {{…}}}}: {text[:80]!r}')
    return {"name": value["name"], "arguments": value[key]}, text[end:]


class ClosingBracketFinder:
    """Finds the bracket that closes the arguments of a pythonic call, in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._quote, self._escaped = 0, "", False

    def find(self, text: str) -> int | None:
        """Return the index of the bracket in this piece; None where it has not come."""
        for place, letter in enumerate(text):
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == self._quote:
                    self._quote = ""
            elif letter in "\"'":
                self._quote = letter
            elif letter in "([{":
                self._depth += 1
            elif letter in ")]}":
                if not self._depth:
                    return place
                self._depth -= 1
        return None


_KEYWORD = re.compile(r"\s*,?\s*([^\W\d]\w*)\s*=\s*")


def _keywords(text: str) -> dict[str, Any]:
    """Parse the arguments of a pythonic call: values as JSON writes them, or else as Python does."""
    found, place = {}, 0
    while match := _KEYWORD.match(text, place):
        try:
            found[match[1]], place = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:
            return _python_keywords(text)
    if text[place:].strip(" ,\n"):
        return _python_keywords(text)
    return found


def _python_keywords(text: str) -> dict[str, Any]:
    constants = {"true": True, "false": False, "null": None}

    class Constants(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:  # ast's name
            return ast.Constant(constants[node.id]) if node.id in constants else node

    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return {str(one.arg): ast.literal_eval(Constants().visit(one.value)) for one in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        raise ValueError(f"the arguments of a call cannot be read ({error}): {text[:80]!r}") from error
