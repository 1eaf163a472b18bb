"""How a chat template has the assistant write: its calls of tools, its reasoning, and where an answer ends.

Nothing here knows a family. The template is asked: answers with a call, with two, with reasoning and with text alone
are rendered, and what stands around their parts is the form. So a model is held to the form that it was trained in.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.templating import render_messages, shared_length
from mm_rec.errors import ConfigError, DataError
from mm_rec.tokenizers.chat_template import require_template
from mm_rec.tokenizers.loading import special_pattern

Call = dict[str, Any]  # {"name", "arguments"}

ID = "\x00"  # in a form's texts: where the call's id stands
CALL_ID = r"[a-zA-Z0-9]{9}"  # what stands there; Mistral's templates take no others
_LEAST_MARK = 3  # letters, for a text to say by itself that a call begins

# What is rendered to see what stands around it.
_QUESTION, _ANSWER, _REASONING = "probe question", "probe answer", "probe reasoning"
_NAMES, _IDS = ("probe_weather", "probe_clock"), ("probecal1", "probecal2")
_KEY, _VALUE = "probe_city", "probe place"
_ARGUMENTS = {_KEY: _VALUE}
_IN_PYTHON = re.compile(rf"""{_KEY}=(["']?){_VALUE}\1""")
_DESCRIBED = "probe description"
_TOOLS = tuple(
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
class CallStyle:
    """How a template takes calls: arguments as JSON text or an object, and content that is empty as none or as ""."""

    as_text: bool = False
    no_content: bool = False

    def taken(self, content: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Content and calls of a message; `calls` as OpenAI has them, with arguments as objects."""

        def written(call: Mapping[str, Any]) -> Mapping[str, Any]:
            function = call["function"]
            text = json.dumps(function["arguments"], ensure_ascii=False)
            return {**call, "function": {**function, "arguments": text}} if self.as_text else call

        return {
            "content": None if self.no_content and not content else content,
            "tool_calls": [written(call) for call in calls],
        }


@dataclass(frozen=True)
class CallForm:
    """The calls of a message: opening NAME between ARGUMENTS (joint NAME between ARGUMENTS …) closing.

    `joint` is None where a message holds one call. `after_text` stands between a text and the opening; None: a message
    with calls says nothing else. `turn_end` is the special token that follows. Arguments are a JSON object, or with
    `python` keywords: key="value", other=[1].
    """

    opening: str
    between: str
    joint: str | None
    closing: str
    turn_end: str
    after_text: str | None
    python: bool
    style: CallStyle

    @property
    def quoted(self) -> bool:
        """Whether the name is written as JSON writes texts."""
        return self.opening.endswith('"')

    @property
    def writes_ids(self) -> bool:
        """Whether calls are written with their ids."""
        return ID in f"{self.opening}{self.between}{self.joint}{self.closing}"

    @cached_property
    def place(self) -> Literal["marked", "line", "alone"]:
        """Where calls may begin: after any text, at a line's beginning, or at that of the message alone."""
        if self.after_text is None:
            return "alone"
        if len(self.mark) >= _LEAST_MARK:
            return "marked"
        return (
            "line" if not self.mark and "\n" in self.after_text and "\n" in (self.joint or "\n") else "alone"
        )

    @cached_property
    def mark(self) -> str:
        """What says that calls begin: what stands before the first one's object, or name."""
        return (self.opening[: -len(self._head)] if self._head else self.opening).strip()

    @cached_property
    def _head(self) -> str:
        """What stands before the name within the call's own object; "" for calls that are no object."""
        found = re.search(r'\{\s*"name":\s*"$', self.opening)
        key = re.fullmatch(r'",\s*"(\w+)":\s*', self.between)
        return found[0] if found and key and self.closing.startswith(("}", ",")) else ""

    @property
    def key(self) -> str:
        """The name of the arguments in the call's own object."""
        found = re.search(r'"(\w+)":\s*$', self.between)
        return found[1] if found else "arguments"

    def as_taken(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message of OpenAI's as the template takes it: in its style, and with ids that it writes."""
        taken = dict(message)
        if "tool_calls" in message:
            calls = [{**call, "id": self._id(call["id"])} for call in message["tool_calls"]]
            taken.update(self.style.taken(message["content"], calls))
        if "tool_call_id" in message:
            taken["tool_call_id"] = self._id(message["tool_call_id"])
        return taken

    def _id(self, call_id: str) -> str:
        if not self.writes_ids or re.fullmatch(CALL_ID, call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]

    def read(self, text: str) -> tuple[str, list[Call]]:
        """A reply's text and its calls; raises ValueError for a call that is not well-formed."""
        if self.place == "line":
            return self._read_lines(text)
        content, found, rest = text.partition(self.mark) if self.mark else ("", "", text)
        if self.place == "alone" and (content.strip() or not self._may_begin(rest)):
            return text.strip(), []
        calls: list[Call] = []
        while found or not self.mark:
            call, rest = self._read_call(rest.lstrip())
            calls.append(call)
            closed = self._closed.match(rest)
            if closed is None and self._separator and (separated := self._separator.match(rest)):
                rest = rest[separated.end() :]
                continue
            if closed is None:
                raise ValueError(f"a tool call is not closed by {self._end.strip()}: {text[:80]!r}")
            between, found, rest = rest[closed.end() :].partition(self.mark or "\x00")
            content += between
            if not found:
                break
        return content.strip(), calls

    def arguments_of(self, text: str) -> dict[str, Any]:
        """The arguments that a text is; raises ValueError where it is none."""
        found = _keywords(text) if self.python else json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"the arguments of a call are no object: {text[:80]!r}")
        return found

    def _may_begin(self, text: str) -> bool:
        """Whether a text can be calls, where nothing marks them."""
        try:
            self._read_call(text.lstrip())
        except ValueError:
            return len(self.mark) >= _LEAST_MARK
        return True

    def _read_lines(self, text: str) -> tuple[str, list[Call]]:
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

    def _read_call(self, text: str) -> tuple[Call, str]:
        """The call that a text begins with, and what follows; of a call that is an object in any order of its keys."""
        if self._head:
            return _first_object(text, self.key)
        named = re.match(rf"\s*([^\s(<\[{{\"]+){_loosely(self.between)}\s*", text)
        if named is None:
            raise ValueError(f"a tool call has no name: {text[:80]!r}")
        rest = text[named.end() :]
        if self.python:
            stop = keywords_end(rest)
            if stop is None:
                raise ValueError(f"a tool call has no end: {text[:80]!r}")
            return {"name": named[1], "arguments": _keywords(rest[:stop])}, rest[stop:]
        arguments, stop = _first_json(rest)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of a call are no object: {text[:80]!r}")
        return {"name": named[1], "arguments": arguments}, rest[stop:]

    @cached_property
    def _end(self) -> str:
        """What closes the last call."""
        return self._behind(self.closing)

    def _behind(self, text: str) -> str:
        """What stands behind a call, of a text that follows its arguments: without the end of its own object."""
        return text.partition("}")[2] if self._head else text

    @cached_property
    def _separator(self) -> re.Pattern[str] | None:
        """What stands between a call and the next, where no mark does."""
        if self.joint is None or (self.mark and self.mark in self.joint):
            return None
        between = self._behind(self.joint)
        return re.compile(_loosely(between[: len(between) - len(self._head)]) + r"\s*(?=\S)")

    @cached_property
    def _closed(self) -> re.Pattern[str]:
        """What closes a call, or all of them where they stand in a list."""
        if self.joint is not None and self.mark and self.mark in self.joint:
            following = self._behind(self.joint)
            return re.compile(_loosely(following[: shared_length(self._end, following)]))
        return re.compile(_loosely(self._end))


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """What stands before reasoning, and after it."""

    begin: str
    end: str

    def opened_by(self, prompt: str) -> str:
        """What of a prompt begins reasoning already, at its end; "" for nothing."""
        mark = self.begin.strip()
        return prompt[prompt.rfind(mark) :] if prompt.rstrip().endswith(mark) else ""

    def split(self, text: str, is_open: bool) -> tuple[str, str]:
        """The reasoning that an answer begins with, and the rest of it; `is_open`: it was begun in the prompt."""
        rest = text.lstrip()
        if not is_open and not rest.startswith(self.begin.strip()):
            return "", text
        reasoning, _, rest = rest.removeprefix(self.begin.strip()).partition(self.end.strip())
        return reasoning.strip(), rest.lstrip()


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
    with_tools = require_template(tokenizer, _TOOLS)
    return _found_form(require_template(tokenizer), with_tools, specials, special_pattern(tokenizer))


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokens that end an answer: the tokenizer's eos, and those of its chat template, if it has one."""
    ends = {tokenizer.eos_token}
    if tokenizer.chat_template:
        form = answer_form(tokenizer)
        ends |= {form.turn_end, form.calls.turn_end if form.calls else ""}
    known = tokenizer.get_vocab()
    return frozenset(known[end] for end in ends if end in known)


@lru_cache(maxsize=64)
def _found_form(
    template: str, with_tools: str, specials: tuple[tuple[str, str], ...], special: re.Pattern[str]
) -> AnswerForm:
    plain = _Probe(template, dict(specials), special, ())
    end, turn_end = plain.end()
    reasoning = plain.reasoning()
    try:
        calls, why = _Probe(with_tools, dict(specials), special, _TOOLS).calls(reasoning), ""
    except DataError as error:
        calls, why = None, str(error)
    return AnswerForm(end, turn_end, reasoning, calls, why)


class _Probe:
    """A template, and what it makes of answers to one question."""

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
        """What stands after the question where an answer follows."""
        whole = self._render({"role": "assistant", "content": content, **parts})
        return whole[whole.rfind(_QUESTION) + len(_QUESTION) :]

    def _opening(self) -> str:
        """What stands after the question where an answer is to be written."""
        prompt = self._render(prompt=True)
        return prompt[prompt.rfind(_QUESTION) + len(_QUESTION) :]

    def end(self) -> tuple[str, str]:
        """What stands after an answer up to the special token that ends it, and that; "" where there is none."""
        try:
            after = self._answer().rpartition(_ANSWER)[2]
        except DataError:  # it asks for more than a question and an answer
            return "", ""
        ending = self._special.search(after)
        return (after[: ending.start()], ending[0]) if ending else ("", "")

    def reasoning(self) -> ReasoningForm | None:
        """What stands around reasoning: seen, or for a template that only cuts it out of earlier answers, known."""
        try:
            written, opening = self._answer(reasoning_content=_REASONING), self._opening()
        except DataError:
            return None
        before, found, after = written.partition(_REASONING)
        if not found:
            if "</think>" not in self._template:
                return None
            return ReasoningForm("<think>", "</think>")
        if opening.startswith(before):  # the prompt begins reasoning
            begin = before[before.rstrip().rfind("\n") + 1 :]
            begin = begin[max(begin.rfind("<"), begin.rfind("[")) :]
        elif before.startswith(opening):
            begin = before[len(opening) :]
        else:
            return None
        return ReasoningForm(begin, after[: after.find(_ANSWER)]) if begin.strip() else None

    def calls(self, reasoning: ReasoningForm | None) -> CallForm:
        """The form of calls; raises DataError where there is none, saying why."""
        if not any(name in self._render(prompt=True) for name in _NAMES):
            raise DataError("this model's chat template does not tell the model which tools there are")
        opening = self._opening()
        for as_text, no_content in product((False, True), repeat=2):
            style = CallStyle(as_text, no_content)
            try:
                one = self._calling(style, 1)
            except DataError:
                continue
            if (found := self._form(style, one, opening, reasoning)) is not None:
                return found
        raise DataError(
            "this model's chat template writes no calls of tools, or in a form that is not known here"
        )

    def _calling(self, style: CallStyle, count: int, content: str = "") -> str:
        calls = [
            {"type": "function", "id": call_id, "function": {"name": name, "arguments": _ARGUMENTS}}
            for name, call_id in zip(_NAMES[:count], _IDS, strict=False)
        ]
        return self._answer(**style.taken(content, calls))

    def _form(
        self, style: CallStyle, one: str, opening: str, reasoning: ReasoningForm | None
    ) -> CallForm | None:
        parts = _cut(one, _NAMES[:1])
        if parts is None:
            return None
        [(head, between)], tail, python = parts
        begin, empty = opening, ""
        if reasoning is not None:
            begin = opening[: len(opening) - len(reasoning.opened_by(opening))]
            empty = reasoning.begin + reasoning.end
        if not head.startswith(begin):
            return None
        before = head[len(begin) :].removeprefix(empty)
        ends, (_, turn_end) = list(self._special.finditer(tail)), self.end()
        stops = [end for end in ends if end[0] == turn_end] or ends
        if not stops:
            return None
        closing = tail[: stops[-1].start()]
        after_text = self._after_text(style, begin, empty, before)
        return CallForm(before, between, self._joint(style), closing, stops[-1][0], after_text, python, style)

    def _joint(self, style: CallStyle) -> str | None:
        """What stands between a call and the next one's name; None where there is one call alone."""
        try:
            parts = _cut(self._calling(style, 2), _NAMES)
        except DataError:
            return None
        return None if parts is None else parts[0][1][0]

    def _after_text(self, style: CallStyle, begin: str, empty: str, before: str) -> str | None:
        """What stands between an answer's text and its calls; None where the template has no text beside calls."""
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
    """What stands before each call's name, and between it and its arguments; what follows; whether these are Python.

    None where they are not all found. Ids are replaced by the sign for one.
    """
    for call_id in _IDS:
        text = text.replace(call_id, ID)
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


def _loosely(text: str) -> str:
    """A pattern for a text in which white space counts for nothing, but for that which follows it."""
    pieces = [re.escape(piece).replace(re.escape(ID), CALL_ID) for piece in text.split()]
    return r"\s*" + r"\s*".join(pieces)


def _first_json(text: str) -> tuple[Any, int]:
    """The JSON that a text begins with, and where it ends; raises ValueError where it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a tool call is not JSON ({error}): {text[:80]!r}") from error


def _first_object(text: str, key: str) -> tuple[Call, str]:
    """The call that a text begins with as an object, and the rest; raises ValueError where it begins with none."""
    value, end = _first_json(text)
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("name"), str)
        or not isinstance(value.get(key), dict)
    ):
        raise ValueError(f'a tool call is not {{"name": …, "{key}": {{…}}}}: {text[:80]!r}')
    return {"name": value["name"], "arguments": value[key]}, text[end:]


def keywords_end(text: str) -> int | None:
    """Where the keywords of a call in Python's form end: at the bracket that closes it; None where it does not come."""
    depth, quote, escaped = 0, "", False
    for place, letter in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == quote:
                quote = ""
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            if not depth:
                return place
            depth -= 1
    return None


_KEYWORD = re.compile(r"\s*,?\s*([^\W\d]\w*)\s*=\s*")


def _keywords(text: str) -> dict[str, Any]:
    """The arguments of a call in Python's form: values as JSON writes them, or else as Python does."""
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
