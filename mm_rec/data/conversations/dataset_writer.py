"""Write conversations: as rows of each format, and into files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.issues import Issue, IssueError
from mm_rec.data.conversations.message_formats import openai_message, sharegpt_messages
from mm_rec.data.conversations.row_formats import METADATA, Row, require_format
from mm_rec.errors import DataError
from mm_rec.runs.files import write_text
from mm_rec.sources.writers import require_document_path, row_writer

_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".tsv")


def require_conversation_path(path: Path) -> None:
    """Raise DataError unless conversations can be written under this name."""
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"conversations are written as {', '.join(_SUFFIXES)}; give --out such a name", path)
    if ".jsonl" in path.suffixes:
        require_document_path(path)
    elif path.is_dir():
        raise DataError("this is a folder; give --out the name of a file", path)


def to_rows(
    conversations: Iterable[Conversation], format_name: str, path: Path
) -> tuple[list[Row], list[Issue]]:
    """Conversations as rows of a format for a file, and those that the format, or CSV, cannot hold."""
    rows: list[Row] = []
    issues: list[Issue] = []
    for conversation in conversations:
        try:
            row = to_row(conversation, format_name)
        except IssueError as error:
            issues += error.issues
            continue
        if format_name == "prompt" and path.suffix in (".csv", ".tsv") and isinstance(row["prompt"], list):
            message = "a column of CSV holds the text of one question and one answer, and no list of messages"
            issues.append(Issue("cannot-hold", conversation.location, message))
        elif path.suffix in (".csv", ".tsv") and (lost := _lost_in_csv(row)):
            message = f"{lost} would not come back from a column of CSV. Write .jsonl"
            issues.append(Issue("cannot-hold", conversation.location, message))
        else:
            rows.append(row)
    return rows, issues


def _lost_in_csv(row: Row) -> str | None:
    """Name a character of a row that CSV would not give back, or None."""
    text = "".join(value for value in row.values() if isinstance(value, str))
    names = {"\r": "a carriage return (\\r)", "\0": "a zero byte", "\ufeff": "a byte-order mark (U+FEFF)"}
    return next((name for character, name in names.items() if character in text), None)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as the file's name says; the file is whole or absent. In CSV, lists and objects are JSON text."""
    require_conversation_path(path)
    if ".jsonl" in path.suffixes:
        with row_writer(path) as write:
            for row in rows:
                write(row)
    elif path.suffix == ".json":
        lines = ",\n".join(_json(row) for row in rows)
        write_text(path, f"[\n{lines}\n]\n")
    else:
        columns = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO()
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(text, list(columns), restval="", delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: value if isinstance(value, str) else _json(value) for name, value in row.items()}
            )
        write_text(path, text.getvalue())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def to_row(conversation: Conversation, format_name: str) -> Row:
    """A sound conversation as a row; raises IssueError where the format cannot hold all of it.

    Reading the row gives the same conversation again, its location aside.
    """
    require_format(format_name)
    row = _WRITERS[format_name](conversation)
    rest = {}
    for name, value in conversation.metadata.items():
        if name in METADATA and name != "metadata" and value not in (None, ""):
            row[name] = value
        else:
            rest[name] = value
    return row | ({"metadata": rest} if rest else {})


def _write_openai(conversation: Conversation) -> Row:
    row: Row = {"messages": [openai_message(message) for message in conversation.messages]}
    return row | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _write_sharegpt(conversation: Conversation) -> Row:
    row: Row = {}
    messages = conversation.messages
    if messages and messages[0].role == "system":
        row["system"], messages = messages[0].content, messages[1:]
    strange = {message.role for message in messages} - {"user", "assistant", "tool"}
    if strange:
        raise _cannot_hold(conversation, "sharegpt", f"{strange.pop()} messages after the first")
    row["conversations"] = [part for message in messages for part in sharegpt_messages(message)]
    # Text, because that is what other tools expect of it.
    tools = _json(list(conversation.tools))
    return row | ({"tools": tools} if conversation.tools else {})


def _write_alpaca(conversation: Conversation) -> Row:
    system, pairs = _plain_pairs(conversation, "alpaca")
    *history, (question, answer) = pairs
    row: Row = {"instruction": question, "input": "", "output": answer}
    row |= {"system": system} if system else {}
    return row | ({"history": [list(pair) for pair in history]} if history else {})


def _write_self_instruct(conversation: Conversation) -> Row:
    system, pairs = _plain_pairs(conversation, "self-instruct")
    if system:
        raise _cannot_hold(conversation, "self-instruct", "a system message")
    if len(pairs) > 1:
        raise _cannot_hold(conversation, "self-instruct", "more than one answer")
    return {"instruction": pairs[0][0], "instances": [{"input": "", "output": pairs[0][1]}]}


def _write_prompt(conversation: Conversation) -> Row:
    """Texts where that is all; else lists of messages, the last answer and what comes before it, as TRL has them."""
    try:
        system, pairs = _plain_pairs(conversation, "prompt")
    except IssueError:
        system, pairs = "", []
    if len(pairs) == 1:
        row = {"prompt": pairs[0][0], "completion": pairs[0][1]}
        return ({"system": system} if system else {}) | row
    messages = [openai_message(message) for message in conversation.messages]
    tools = {"tools": list(conversation.tools)} if conversation.tools else {}
    return {"prompt": messages[:-1], "completion": messages[-1:]} | tools


def _plain_pairs(conversation: Conversation, format_name: str) -> tuple[str, list[tuple[str, str]]]:
    """The system message and the pairs of question and answer of a conversation that has nothing else."""
    messages = list(conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise _cannot_hold(conversation, format_name, "tools")
    if any(message.weight is not None for message in conversation.messages):
        raise _cannot_hold(conversation, format_name, "the weights of answers")
    roles = [message.role for message in messages]
    if not messages or roles != ["user", "assistant"] * (len(messages) // 2):
        raise _cannot_hold(conversation, format_name, "other messages than questions, each with its answer")
    texts = [message.content for message in messages]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _cannot_hold(conversation: Conversation, format_name: str, what: str) -> IssueError:
    return IssueError(
        [Issue("cannot-hold", conversation.location, f"the format {format_name} cannot hold {what}")]
    )


_WRITERS: dict[str, Callable[[Conversation], Row]] = {
    "openai": _write_openai,
    "sharegpt": _write_sharegpt,
    "alpaca": _write_alpaca,
    "self-instruct": _write_self_instruct,
    "prompt": _write_prompt,
}
