"""Parse messages, tool calls and tool definitions from JSON, and write them to it.

OpenAI's and ShareGPT's messages differ in names alone (`role` and `content`, `from` and `value`), and in that ShareGPT
makes a message of its own ("function_call") of what an assistant calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage, ToolCall
from mm_rec.data.conversations.issues import Issue, did_you_mean
from mm_rec.strict_parsing import find_invalid_number, parse_json

ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
_FIELD_ALIASES = {"from": "role", "value": "content", "loss_weight": "weight"}
_MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "weight", "function_call")
_CALL_FIELDS = ("id", "type", "function", "name", "arguments")


@dataclass(slots=True)
class RowReport:
    """The issues of the row that is being parsed; with `fix`, also what was repaired instead."""

    location: str = ""
    fix: bool = False
    issues: list[Issue] = field(default_factory=list)
    fixes: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Add an issue that cannot be repaired here."""
        self.issues.append(Issue(kind, self.location, message))

    def add_fixable(self, kind: str, message: str, fix: str) -> None:
        """Add an issue, or, with `fix`, how it was repaired."""
        if self.fix:
            self.fixes.append(fix)
        else:
            self.add(kind, message)


def drop_nulls(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value: null means absent, as in OpenAI's rows and in Parquet's."""
    return {str(key): value for key, value in mapping.items() if value is not None}


def parse_json_value(value: Any) -> Any:
    """Parse text that holds JSON (CSV has nothing else); None where it is not valid JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = parse_json(value)
    except (ValueError, RecursionError):
        return None
    return None if find_invalid_number(found) else found


def parse_messages(
    values: Any, report: RowReport, fields: Mapping[str, str] | None = None
) -> list[ChatMessage]:
    """Messages of OpenAI's or ShareGPT's shape; a list, or the JSON text of one.

    A "function_call" message continues the assistant's message before it: content and calls are one turn.
    """
    values = parse_json_value(values)
    if not isinstance(values, list | tuple):
        report.add("bad-content", "the messages are not a list")
        return []
    messages: list[ChatMessage] = []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, Mapping):
            report.add("bad-content", f"message {number} is not an object but {_short(value)}")
            continue
        item = _renamed(drop_nulls(value), fields or {})
        message = _read_message(item, report, f"message {number}")
        if item.get("role") == "function_call" and messages and messages[-1].role == "assistant":
            messages[-1] = _joined(messages[-1], message, report, number)
        else:
            messages.append(message)
    return messages


def _renamed(message: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The message with our names for its fields; an alias beside the name itself stays, as unknown."""
    names = {theirs: ours for ours, theirs in fields.items()}
    message = {names.get(key, key): value for key, value in message.items()}
    for alias, name in _FIELD_ALIASES.items():
        if alias in message and name not in message:
            message[name] = message.pop(alias)
    return message


def _read_message(item: dict[str, Any], report: RowReport, where: str) -> ChatMessage:
    named = item.get("role", "")
    role = ROLE_ALIASES.get(named, named) if isinstance(named, str) else str(named)
    _require_known_fields(item, role, report, where)
    calls = [
        call
        for value in _as_list(item.get("tool_calls")) + _as_list(item.get("function_call"))
        if (call := parse_tool_call(value, report, where))
    ]
    if named == "function_call":
        content = ""
        more = [
            parse_tool_call(value, report, where) for value in _called(item.get("content"), report, where)
        ]
        calls += [call for call in more if call]
    else:
        content, parts = _read_content(item.get("content"), report, where)
        calls += parts
    answered = item.get("tool_call_id", "")
    if not isinstance(answered, str):
        report.add("bad-content", f"the tool_call_id of {where} is not text but {_short(answered)}")
        answered = ""
    weight = _read_weight(item.get("weight"), role, report, where)
    return ChatMessage(role, content, tuple(calls), answered, weight)


def _require_known_fields(item: Mapping[str, Any], role: str, report: RowReport, where: str) -> None:
    # The name in a tool's message is that of its call, so nothing is lost without it.
    known = (*_MESSAGE_FIELDS, "name") if role == "tool" else _MESSAGE_FIELDS
    for name in item:
        if name not in known:
            message = f"{where} has an unknown field {name!r}; {did_you_mean(name, _MESSAGE_FIELDS)}"
            report.add_fixable("unknown-field", message, f"field {name!r} of messages dropped")


def _read_content(value: Any, report: RowReport, where: str) -> tuple[str, list[ToolCall]]:
    """Text, or a list of parts: texts are joined, calls become calls, pictures and sound are issues."""
    if value is None or isinstance(value, str):
        return value or "", []
    if not isinstance(value, list | tuple):
        report.add("bad-content", f"the content of {where} is not text but {_short(value)}")
        return "", []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for item in value:
        part = drop_nulls(item) if isinstance(item, Mapping) else {"type": "text", "text": item}
        kind, held = part.get("type", "text"), part.get("text", part.get("value"))
        if kind == "text" and isinstance(held, str):
            texts.append(held)
        elif kind == "tool_call":
            call = parse_tool_call(held, report, where)
            calls += [call] if call else []
        elif kind == "reasoning":
            message = f"{where} has a reasoning part, which is no part of the answer"
            report.add_fixable("reasoning", message, "reasoning left out of an answer")
        else:
            report.add("bad-content", f"{where} has a part that is no text: {_short(item)}")
    return "".join(texts), calls


def _called(value: Any, report: RowReport, where: str) -> list[Any]:
    """Return the calls of a "function_call" message, which holds the JSON of one call or of a list."""
    calls = parse_json_value(value)
    if isinstance(calls, Mapping):
        return [calls]
    if isinstance(calls, list | tuple):
        return list(calls)
    report.add("bad-arguments", f"the call in {where} is not JSON: {_short(value)}")
    return []


def parse_tool_call(value: Any, report: RowReport, where: str) -> ToolCall | None:
    """A call: OpenAI's, or a bare {"name", "arguments"}; also as JSON text, the arguments too."""
    call = parse_json_value(value)
    if not isinstance(call, Mapping):
        report.add("bad-arguments", f"a call in {where} is not a JSON object: {_short(value)}")
        return None
    call = drop_nulls(call)
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    function = drop_nulls(function)
    for unknown in sorted({*call, *function} - {*_CALL_FIELDS}):
        message = f"a call in {where} has an unknown field {unknown!r}; {did_you_mean(unknown, _CALL_FIELDS)}"
        report.add_fixable("unknown-field", message, f"field {unknown!r} of calls dropped")
    name, given = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name:
        report.add("bad-arguments", f"a call in {where} names no function: {_short(value)}")
        return None
    # OpenAI writes the arguments of a function that takes none as empty text.
    arguments = {} if isinstance(given, str) and not given.strip() else parse_json_value(given)
    if not isinstance(arguments, Mapping):
        problem = "not JSON" if arguments is None else "no JSON object"
        report.add("bad-arguments", f"the arguments of {name!r} in {where} are {problem}: {_short(given)}")
        return None
    return ToolCall(name, dict(arguments), str(call.get("id", "")))


def _read_weight(value: Any, role: str, report: RowReport, where: str) -> int | None:
    """Return 0 or 1; nothing but answers is trained on, so that a weight of 0 says nothing elsewhere."""
    if value is None:
        return None
    if isinstance(value, bool) or value not in (0, 1):
        report.add_fixable(
            "bad-weight", f"the weight of {where} is {_short(value)}", "wrong weight taken away"
        )
        return None
    if role == "assistant":
        return int(value)
    if value:
        message = f"{where} ({role}) has the weight 1, but only answers are learnt"
        report.add_fixable("bad-weight", message, "wrong weight taken away")
    return None


def _joined(first: ChatMessage, second: ChatMessage, report: RowReport, number: int) -> ChatMessage:
    """An assistant's message with the calls of the one that continues it."""
    weights = {first.weight, second.weight} - {None}
    if len(weights) > 1:
        message = f"message {number} continues an answer that has another weight"
        report.add_fixable("bad-weight", message, "wrong weight taken away")
    calls = first.tool_calls + second.tool_calls
    return replace(first, tool_calls=calls, weight=weights.pop() if len(weights) == 1 else None)


def parse_tools(value: Any, report: RowReport) -> tuple[Mapping[str, Any], ...]:
    """Definitions of tools in OpenAI's shape; bare functions are wrapped; also as JSON text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    values = parse_json_value(value)
    values = [values] if isinstance(values, Mapping) else values
    if not isinstance(values, list | tuple):
        report.add("bad-tool-definition", f"the tools are not a list of definitions: {_short(value)}")
        return ()
    tools: list[Mapping[str, Any]] = []
    for tool in values:
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
            tools.append(tool)
        elif isinstance(tool, Mapping) and "name" in tool:
            tools.append({"type": "function", "function": tool})
        else:
            report.add("bad-tool-definition", f"this defines no function: {_short(tool)}")
    return tuple(tools)


def message_runs(messages: Sequence[ChatMessage]) -> Iterator[tuple[int, int]]:
    """The messages cut into runs [start, stop): one message and the tool results that follow it."""
    start = 0
    for stop in range(1, len(messages) + 1):
        if stop == len(messages) or messages[stop].role != "tool":
            yield start, stop
            start = stop


def order_tool_results(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with the results of each turn in the order of their calls, where ids tell it.

    Templates write results without ids, so that only their order says what answers what.
    """
    ordered: list[ChatMessage] = []
    for start, stop in message_runs(messages):
        places = {call.id: number for number, call in enumerate(messages[start].tool_calls) if call.id}
        results = messages[start + 1 : stop]
        if all(result.tool_call_id in places for result in results):
            results = sorted(results, key=lambda result: places[result.tool_call_id])
        ordered += [messages[start], *results]
    return ordered


def openai_message(message: ChatMessage) -> dict[str, Any]:
    """A message as OpenAI's fine-tuning files have it: arguments are JSON text."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": _json(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return row | _extras(message)


def sharegpt_messages(message: ChatMessage) -> list[dict[str, Any]]:
    """A user's, assistant's or tool's message as ShareGPT has it; calls are a message of their own.

    Ids and weights, which ShareGPT does not know, are further fields.
    """
    if message.role != "assistant":
        sender = {"user": "human", "tool": "observation"}[message.role]
        return [{"from": sender, "value": message.content, **_extras(message)}]
    rows: list[dict[str, Any]] = []
    if message.content or not message.tool_calls:
        rows.append({"from": "gpt", "value": message.content, **_extras(message)})
    if message.tool_calls:
        calls = [
            {"name": call.name, "arguments": call.arguments} | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
        value = _json(calls[0] if len(calls) == 1 else calls)
        rows.append({"from": "function_call", "value": value, **_extras(message)})
    return rows


def _extras(message: ChatMessage) -> dict[str, Any]:
    row: dict[str, Any] = {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
    return row if message.weight is None else row | {"weight": message.weight}


def _as_list(value: Any) -> list[Any]:
    """None, one thing or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(value: Any, length: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= length else text[: length - 1] + "…"
    return repr(text) if isinstance(value, str) else text
