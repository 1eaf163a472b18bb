"""The formats of conversations: rows of JSON, CSV or Parquet read into our type.

    openai         {"messages": [{"role", "content", "tool_calls", "tool_call_id", "weight"}, …], "tools": […]}
    sharegpt       {"conversations": [{"from", "value"}, …], "system": "…", "tools": "…"}
    alpaca         {"instruction", "input", "output", "system", "history": [[question, answer], …]}
    self-instruct  {"instruction", "instances": [{"input", "output"}, …]}: a conversation for each instance
    prompt         {"prompt", "completion", "system", "tools"}: texts, or lists of OpenAI's messages

The fields of METADATA go along with a conversation; every other field is a fault, so that no misspelt one is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.issues import Fault, FaultError, nearest
from mm_rec.data.conversations.messages import (
    Notes,
    in_call_order,
    json_value,
    present,
    read_messages,
    read_tools,
)
from mm_rec.errors import ConfigError

Row = dict[str, Any]

METADATA = (
    "id",
    "conversation_id",
    "name",
    "title",
    "source",
    "provenance",
    "dataset",
    "url",
    "license",
    "category",
    "topic",
    "tags",
    "language",
    "lang",
    "model",
    "split",
    "is_classification",
    "motivation_app",
    "parallel_tool_calls",
    "metadata",
)
_PROMPTS = ("prompt", "question", "query")
_RESPONSES = ("response", "completion", "answer", "output")
_FIELDS = {
    "openai": ("messages", "conversations", "system", "tools", "functions"),
    "sharegpt": ("conversations", "messages", "system", "tools", "functions"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "self-instruct": ("instruction", "instances"),
    "prompt": (*_PROMPTS, *_RESPONSES, "system", "tools"),
}
FORMATS = tuple(_FIELDS)
_MESSAGE_FIELDS = ("role", "content", "from", "value", "weight")
_PREFERENCES = {
    "chosen",
    "rejected",
    "chosen_messages",
    "rejected_messages",
    "preferred_output",
    "non_preferred_output",
    "kto_tag",
}


@dataclass(frozen=True, slots=True)
class RowReading:
    """What a row gives: its conversations as far as they could be read, its problems, and what was mended."""

    conversations: list[Conversation]
    faults: list[Fault]
    fixes: list[str]


def require_format(name: str) -> None:
    """Raise ConfigError unless there is a format of this name."""
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}; {nearest(name, FORMATS)}")


def require_fields(fields: Mapping[str, str]) -> None:
    """Raise ConfigError unless every key of a field mapping is a field of ours."""
    known = sorted({name for names in _FIELDS.values() for name in names} | {*_MESSAGE_FIELDS, *METADATA})
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"--map {name}={fields[name]}: there is no field {name!r}; {nearest(name, known)}"
            )


def detect(row: Mapping[str, Any], fields: Mapping[str, str] | None = None, *, place: str = "") -> str:
    """The format of a row, told by its fields; raises FaultError where it is none of ours."""
    fields = fields or {}
    row = _renamed(row, fields, place)
    for field in ("messages", "conversations"):
        if field in row:
            messages = json_value(row[field])
            first = messages[0] if isinstance(messages, list | tuple) and messages else None
            named = first if isinstance(first, Mapping) else {}
            senders = {"from", fields.get("from", "from")}
            return (
                "sharegpt" if senders & named.keys() or (field == "conversations" and not named) else "openai"
            )
    if "instruction" in row:
        return "self-instruct" if "instances" in row else "alpaca"
    if any(name in row for name in _PROMPTS) and any(name in row for name in _RESPONSES):
        return "prompt"
    if faults := _preference_faults(row, place):
        raise FaultError(faults)
    names = ", ".join(map(repr, row)) or "none"
    message = f"the fields of this row ({names}) are those of no format ({', '.join(FORMATS)})"
    raise FaultError([Fault("unknown-format", place, message)])


def to_conversations(
    row: Mapping[str, Any], format_name: str, fields: Mapping[str, str] | None = None, *, place: str = ""
) -> list[Conversation]:
    """The conversations of a row; raises FaultError with all that is wrong in it. `fields` maps our names to its own.

    Only what a format demands is checked; `checks.check` says whether a conversation can be learnt from.
    """
    reading = read_row(row, format_name, fields, place=place)
    if reading.faults:
        raise FaultError(reading.faults)
    return reading.conversations


def read_row(
    row: Mapping[str, Any],
    format_name: str,
    fields: Mapping[str, str] | None = None,
    *,
    place: str = "",
    fix: bool = False,
) -> RowReading:
    """Read a row as far as possible and say what is wrong; with `fix`, mend what can be mended while reading."""
    require_format(format_name)
    fields = fields or {}
    notes = Notes(place, fix)
    try:
        renamed = _renamed(row, fields, place)
    except FaultError as error:
        return RowReading([], list(error.faults), [])
    if faults := _preference_faults(renamed, place) or _text_faults(renamed, place):
        return RowReading([], faults, [])
    metadata = _read_metadata(renamed, format_name, notes)
    found = _READERS[format_name](renamed, fields, notes)
    tools = read_tools(renamed.get("tools"), notes) + read_tools(renamed.get("functions"), notes)
    conversations = [
        Conversation(tuple(in_call_order(messages)), tools, metadata, place) for messages in found
    ]
    return RowReading(conversations, notes.faults, notes.fixes)


def _renamed(row: Mapping[str, Any], fields: Mapping[str, str], place: str) -> Row:
    """The row's values under our names (the keys of `fields`); a field that it lacks may be an optional one."""
    names = {theirs: ours for ours, theirs in fields.items() if ours not in _MESSAGE_FIELDS}
    renamed = present({key: value for key, value in row.items() if key not in names})
    for theirs, ours in names.items():
        if theirs in row and ours in renamed:
            message = f"the row has {ours!r} itself, and the mapping takes {theirs!r} for it"
            raise FaultError([Fault("ambiguous-field", place, message)])
        renamed |= present({ours: row.get(theirs)})
    return renamed


def _preference_faults(row: Mapping[str, Any], place: str) -> list[Fault]:
    """Preferences, which are for alignment."""
    names = [
        name for name in row if name in _PREFERENCES or (name == "label" and isinstance(row[name], bool))
    ]
    if not names:
        return []
    message = f"{', '.join(map(repr, names))}: wanted and unwanted answers, which would be taught alike"
    return [Fault("preference-data", place, message)]


def _text_faults(row: Mapping[str, Any], place: str) -> list[Fault]:
    """What could not be written as JSON in UTF-8 again."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return [Fault("surrogate", place, f"half of a surrogate pair ({half!a}) is no character")]
    except RecursionError:
        return [Fault("bad-content", place, "the row is nested too deep")]
    return []


def _read_metadata(row: Mapping[str, Any], format_name: str, notes: Notes) -> dict[str, Any]:
    """What goes along; fields inside "metadata" are like those beside it, and empty text (a cell of CSV) is nothing."""
    given = {name: value for name, value in row.items() if name in METADATA and value != ""}
    held = json_value(given.get("metadata", {}))
    if isinstance(held, Mapping):
        given.pop("metadata", None)
        given = {**held, **given}
    unknown = {
        name: value
        for name, value in row.items()
        if name not in METADATA and name not in _FIELDS[format_name]
    }
    if unknown:
        names = ", ".join(map(repr, unknown))
        hint = nearest(next(iter(unknown)), _FIELDS[format_name], METADATA)
        message = f"unknown field{'s' * (len(unknown) > 1)} {names}; {hint}"
        notes.mendable("unknown-field", message, f"kept as metadata: {names}")
        if notes.fix:
            given |= unknown
    return given


def _read_listed(row: Row, fields: Mapping[str, str], notes: Notes) -> list[list[ChatMessage]]:
    """OpenAI's and ShareGPT's rows, which differ in their messages' names."""
    name = next((name for name in ("messages", "conversations") if name in row), None)
    if name is None:
        notes.fault("no-messages", "the row has no messages")
        return []
    if name == "messages" and "conversations" in row:
        notes.fault("ambiguous-field", "the row has both 'messages' and 'conversations'")
    return [_read_system(row, notes) + read_messages(row[name], notes, _message_fields(fields))]


def _message_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """The part of a field mapping that is of messages, by OpenAI's names."""
    names = {"from": "role", "value": "content"}
    return {names.get(ours, ours): theirs for ours, theirs in fields.items() if ours in _MESSAGE_FIELDS}


def _read_system(row: Row, notes: Notes) -> list[ChatMessage]:
    """The system message that stands beside the others; empty text is none."""
    text = _text(row, "system", notes)
    return [ChatMessage("system", text)] if text else []


def _read_alpaca(row: Row, fields: Mapping[str, str], notes: Notes) -> list[list[ChatMessage]]:
    messages = _read_system(row, notes)
    for pair in _history(row.get("history"), notes):
        messages += [ChatMessage("user", pair[0]), ChatMessage("assistant", pair[1])]
    _require(row, ("instruction", "output"), notes)
    return [messages + _task(row, row, notes)]


def _history(value: Any, notes: Notes) -> list[Sequence[str]]:
    pairs = json_value(value or [])
    sound = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    )
    if not sound:
        notes.fault("bad-content", "the history is not a list of [question, answer]")
        return []
    return list(pairs)


def _task(row: Row, instance: Row, notes: Notes) -> list[ChatMessage]:
    """An instruction and its input, with a blank line between them, and the output."""
    parts = [_text(row, "instruction", notes), _text(instance, "input", notes)]
    question = "\n\n".join(part for part in parts if part)
    return [ChatMessage("user", question), ChatMessage("assistant", _text(instance, "output", notes))]


def _read_self_instruct(row: Row, fields: Mapping[str, str], notes: Notes) -> list[list[ChatMessage]]:
    _require(row, ("instruction", "instances"), notes)
    instances = json_value(row.get("instances", []))
    if not isinstance(instances, list | tuple) or not all(isinstance(item, Mapping) for item in instances):
        notes.fault("bad-content", 'the instances are not a list of {"input": …, "output": …}')
        return []
    if not instances:
        notes.fault("no-messages", "the row has no instances")
    found = []
    for instance in map(present, instances):
        _require(instance, ("output",), notes)
        for name in instance:
            if name not in ("input", "output"):
                message = f"an instance has an unknown field {name!r}; {nearest(name, ('input', 'output'))}"
                notes.mendable("unknown-field", message, f"field {name!r} of instances dropped")
        found.append(_task(row, instance, notes))
    return found


def _read_prompt(row: Row, fields: Mapping[str, str], notes: Notes) -> list[list[ChatMessage]]:
    messages = _read_system(row, notes)
    for names, role in ((_PROMPTS, "user"), (_RESPONSES, "assistant")):
        given = [name for name in names if name in row]
        if not given:
            notes.fault("missing-field", f"the row has none of the fields {', '.join(map(repr, names))}")
            continue
        if len(given) > 1:
            notes.fault(
                "ambiguous-field", f"{' and '.join(map(repr, given))} mean the same; the row has both"
            )
        if isinstance(row[given[0]], str):
            messages.append(ChatMessage(role, row[given[0]]))
        else:
            messages += read_messages(row[given[0]], notes, _message_fields(fields))
    return [messages]


def _require(row: Row, names: Sequence[str], notes: Notes) -> None:
    for name in names:
        if name not in row:
            notes.fault(
                "missing-field", f"the field {name!r} is missing; there are {', '.join(map(repr, row))}"
            )


def _text(row: Row, name: str, notes: Notes) -> str:
    """The text of a field, "" where it is absent."""
    value = row.get(name, "")
    if isinstance(value, str):
        return value
    notes.fault("bad-content", f"the field {name!r} is not text but {json.dumps(value, default=str)[:60]}")
    return ""


_READERS: dict[str, Callable[[Row, Mapping[str, str], Notes], list[list[ChatMessage]]]] = {
    "openai": _read_listed,
    "sharegpt": _read_listed,
    "alpaca": _read_alpaca,
    "self-instruct": _read_self_instruct,
    "prompt": _read_prompt,
}
