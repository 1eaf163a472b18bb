"""The row formats of conversations: parse rows of JSON, CSV or Parquet.

    openai         {"messages": [{"role", "content", "tool_calls", "tool_call_id", "weight"}, …], "tools": […]}
    sharegpt       {"conversations": [{"from", "value"}, …], "system": "…", "tools": "…"}
    alpaca         {"instruction", "input", "output", "system", "history": [[question, answer], …]}
    self-instruct  {"instruction", "instances": [{"input", "output"}, …]}: a conversation for each instance
    prompt         {"prompt", "completion", "system", "tools"}: texts, or lists of OpenAI's messages

The fields of METADATA go along with a conversation; every other field is an issue, so that no misspelt one is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.issues import Issue, IssueError, did_you_mean
from mm_rec.data.conversations.message_formats import (
    RowReport,
    drop_nulls,
    order_tool_results,
    parse_json_value,
    parse_messages,
    parse_tools,
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
class ParsedRow:
    """A parsed row: its conversations as far as they could be read, its issues, and what was repaired."""

    conversations: list[Conversation]
    issues: list[Issue]
    fixes: list[str]


def require_format(name: str) -> None:
    """Raise ConfigError unless there is a format of this name."""
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}; {did_you_mean(name, FORMATS)}")


def require_fields(fields: Mapping[str, str]) -> None:
    """Raise ConfigError unless every key of a field mapping is a field of ours."""
    known = sorted({name for names in _FIELDS.values() for name in names} | {*_MESSAGE_FIELDS, *METADATA})
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"--map {name}={fields[name]}: there is no field {name!r}; {did_you_mean(name, known)}"
            )


def detect_format(
    row: Mapping[str, Any], fields: Mapping[str, str] | None = None, *, location: str = ""
) -> str:
    """The format of a row, told by its fields; raises IssueError where it is none of ours."""
    fields = fields or {}
    row = _renamed(row, fields, location)
    for field in ("messages", "conversations"):
        if field in row:
            messages = parse_json_value(row[field])
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
    if issues := _preference_issues(row, location):
        raise IssueError(issues)
    names = ", ".join(map(repr, row)) or "none"
    message = f"the fields of this row ({names}) are those of no format ({', '.join(FORMATS)})"
    raise IssueError([Issue("unknown-format", location, message)])


def parse_conversations(
    row: Mapping[str, Any], format_name: str, fields: Mapping[str, str] | None = None, *, location: str = ""
) -> list[Conversation]:
    """The conversations of a row; raises IssueError with all that is wrong in it. `fields` maps our names to its own.

    Only what a format demands is checked; `validation.check_conversation` says whether one can be learnt from.
    """
    parsed = parse_row(row, format_name, fields, location=location)
    if parsed.issues:
        raise IssueError(parsed.issues)
    return parsed.conversations


def parse_row(
    row: Mapping[str, Any],
    format_name: str,
    fields: Mapping[str, str] | None = None,
    *,
    location: str = "",
    fix: bool = False,
) -> ParsedRow:
    """Read a row as far as possible and say what is wrong; with `fix`, repair what can be repaired while reading."""
    require_format(format_name)
    fields = fields or {}
    report = RowReport(location, fix)
    try:
        renamed = _renamed(row, fields, location)
    except IssueError as error:
        return ParsedRow([], list(error.issues), [])
    if issues := _preference_issues(renamed, location) or _text_issues(renamed, location):
        return ParsedRow([], issues, [])
    metadata = _read_metadata(renamed, format_name, report)
    found = _READERS[format_name](renamed, fields, report)
    tools = parse_tools(renamed.get("tools"), report) + parse_tools(renamed.get("functions"), report)
    conversations = [
        Conversation(tuple(order_tool_results(messages)), tools, metadata, location) for messages in found
    ]
    return ParsedRow(conversations, report.issues, report.fixes)


def _renamed(row: Mapping[str, Any], fields: Mapping[str, str], location: str) -> Row:
    """The row's values under our names (the keys of `fields`); a field that it lacks may be an optional one."""
    names = {theirs: ours for ours, theirs in fields.items() if ours not in _MESSAGE_FIELDS}
    renamed = drop_nulls({key: value for key, value in row.items() if key not in names})
    for theirs, ours in names.items():
        if theirs in row and ours in renamed:
            message = f"the row has {ours!r} itself, and the mapping takes {theirs!r} for it"
            raise IssueError([Issue("ambiguous-field", location, message)])
        renamed |= drop_nulls({ours: row.get(theirs)})
    return renamed


def _preference_issues(row: Mapping[str, Any], location: str) -> list[Issue]:
    """Preferences, which are for alignment."""
    names = [
        name for name in row if name in _PREFERENCES or (name == "label" and isinstance(row[name], bool))
    ]
    if not names:
        return []
    message = f"{', '.join(map(repr, names))}: wanted and unwanted answers, which would be taught alike"
    return [Issue("preference-data", location, message)]


def _text_issues(row: Mapping[str, Any], location: str) -> list[Issue]:
    """Find text that cannot be written as JSON in UTF-8 again."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        return [Issue("surrogate", location, f"half of a surrogate pair ({half!a}) is no character")]
    except RecursionError:
        return [Issue("bad-content", location, "the row is nested too deep")]
    return []


def _read_metadata(row: Mapping[str, Any], format_name: str, report: RowReport) -> dict[str, Any]:
    """Collect the metadata; fields inside "metadata" are like those beside it, and empty text (CSV) is none."""
    given = {name: value for name, value in row.items() if name in METADATA and value != ""}
    held = parse_json_value(given.get("metadata", {}))
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
        hint = did_you_mean(next(iter(unknown)), _FIELDS[format_name], METADATA)
        message = f"unknown field{'s' * (len(unknown) > 1)} {names}; {hint}"
        report.add_fixable("unknown-field", message, f"kept as metadata: {names}")
        if report.fix:
            given |= unknown
    return given


def _read_messages(row: Row, fields: Mapping[str, str], report: RowReport) -> list[list[ChatMessage]]:
    """OpenAI's and ShareGPT's rows, which differ in their messages' names."""
    name = next((name for name in ("messages", "conversations") if name in row), None)
    if name is None:
        report.add("no-messages", "the row has no messages")
        return []
    if name == "messages" and "conversations" in row:
        report.add("ambiguous-field", "the row has both 'messages' and 'conversations'")
    return [_read_system(row, report) + parse_messages(row[name], report, _message_fields(fields))]


def _message_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """The part of a field mapping that is of messages, by OpenAI's names."""
    names = {"from": "role", "value": "content"}
    return {names.get(ours, ours): theirs for ours, theirs in fields.items() if ours in _MESSAGE_FIELDS}


def _read_system(row: Row, report: RowReport) -> list[ChatMessage]:
    """The system message that stands beside the others; empty text is none."""
    text = _text(row, "system", report)
    return [ChatMessage("system", text)] if text else []


def _read_alpaca(row: Row, fields: Mapping[str, str], report: RowReport) -> list[list[ChatMessage]]:
    messages = _read_system(row, report)
    for pair in _history(row.get("history"), report):
        messages += [ChatMessage("user", pair[0]), ChatMessage("assistant", pair[1])]
    _require(row, ("instruction", "output"), report)
    return [messages + _task(row, row, report)]


def _history(value: Any, report: RowReport) -> list[Sequence[str]]:
    pairs = parse_json_value(value or [])
    sound = isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    )
    if not sound:
        report.add("bad-content", "the history is not a list of [question, answer]")
        return []
    return list(pairs)


def _task(row: Row, instance: Row, report: RowReport) -> list[ChatMessage]:
    """An instruction and its input, with a blank line between them, and the output."""
    parts = [_text(row, "instruction", report), _text(instance, "input", report)]
    question = "\n\n".join(part for part in parts if part)
    return [ChatMessage("user", question), ChatMessage("assistant", _text(instance, "output", report))]


def _read_self_instruct(row: Row, fields: Mapping[str, str], report: RowReport) -> list[list[ChatMessage]]:
    _require(row, ("instruction", "instances"), report)
    instances = parse_json_value(row.get("instances", []))
    if not isinstance(instances, list | tuple) or not all(isinstance(item, Mapping) for item in instances):
        report.add("bad-content", 'the instances are not a list of {"input": …, "output": …}')
        return []
    if not instances:
        report.add("no-messages", "the row has no instances")
    found = []
    for instance in map(drop_nulls, instances):
        _require(instance, ("output",), report)
        for name in instance:
            if name not in ("input", "output"):
                message = (
                    f"an instance has an unknown field {name!r}; {did_you_mean(name, ('input', 'output'))}"
                )
                report.add_fixable("unknown-field", message, f"field {name!r} of instances dropped")
        found.append(_task(row, instance, report))
    return found


def _read_prompt(row: Row, fields: Mapping[str, str], report: RowReport) -> list[list[ChatMessage]]:
    messages = _read_system(row, report)
    for names, role in ((_PROMPTS, "user"), (_RESPONSES, "assistant")):
        given = [name for name in names if name in row]
        if not given:
            report.add("missing-field", f"the row has none of the fields {', '.join(map(repr, names))}")
            continue
        if len(given) > 1:
            report.add("ambiguous-field", f"{' and '.join(map(repr, given))} mean the same; the row has both")
        if isinstance(row[given[0]], str):
            messages.append(ChatMessage(role, row[given[0]]))
        else:
            messages += parse_messages(row[given[0]], report, _message_fields(fields))
    return [messages]


def _require(row: Row, names: Sequence[str], report: RowReport) -> None:
    for name in names:
        if name not in row:
            report.add(
                "missing-field", f"the field {name!r} is missing; there are {', '.join(map(repr, row))}"
            )


def _text(row: Row, name: str, report: RowReport) -> str:
    """The text of a field, "" where it is absent."""
    value = row.get(name, "")
    if isinstance(value, str):
        return value
    report.add("bad-content", f"the field {name!r} is not text but {json.dumps(value, default=str)[:60]}")
    return ""


_READERS: dict[str, Callable[[Row, Mapping[str, str], RowReport], list[list[ChatMessage]]]] = {
    "openai": _read_messages,
    "sharegpt": _read_messages,
    "alpaca": _read_alpaca,
    "self-instruct": _read_self_instruct,
    "prompt": _read_prompt,
}
