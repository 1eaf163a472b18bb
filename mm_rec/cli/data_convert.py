"""`mmrec data convert`: conversations from any format into another, every problem told."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mm_rec.data.conversations.dataset_reader import ConversationSet


class ConversationFormatChoice(StrEnum):
    """The formats of conversations."""

    openai = "openai"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    self_instruct = "self-instruct"
    prompt = "prompt"


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="Files, folders, globs or URLs of .jsonl, .json, .csv, .tsv (also .gz, .zst) or .parquet.",
            show_default=False,
        ),
    ],
    to: Annotated[ConversationFormatChoice, typer.Option(help="Format to write.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl (also .gz, .zst), .json, .csv or .tsv.")],
    format: Annotated[
        ConversationFormatChoice | None,
        typer.Option(help="Format of the sources (default: told by their fields)."),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of theirs for one of ours: --map prompt=soru (may be given several times)."
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended and leave out the rest.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out.")] = False,
) -> None:
    """Write conversations in another format; where a row has a problem, all are told and nothing is written."""
    from mm_rec.data.conversations.dataset_reader import read_conversations
    from mm_rec.data.conversations.dataset_writer import require_conversation_path, to_rows, write_rows
    from mm_rec.data.conversations.issues import Fix, format_fixes, format_issues
    from mm_rec.errors import ConfigError, DataError
    from mm_rec.tokenizers.special_tokens import SPECIAL_TOKENS

    console = Console(highlight=False)
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: this file exists. Give another name, or --overwrite")
    require_conversation_path(out)
    with console.status("reading the conversations"):
        found = read_conversations(
            sources,
            format_name=None if format is None else format.value,
            fields=parse_fields(map or []),
            fix=fix,
            special_tokens=SPECIAL_TOKENS,
        )
    print_found(found, console)
    rows, issues = to_rows(found.conversations, to.value, out)
    if fix:
        found.fixes += [Fix(issue.location, f"left out: {issue.message}") for issue in issues]
    else:
        found.issues += issues
    if found.fixes:
        console.print(Text(format_fixes(found.fixes)), soft_wrap=True)
    if found.issues:
        console.print(Text(format_issues(found.issues)), soft_wrap=True)
        count = len(found.issues)
        remedy = "" if fix else ". Mend them, or let --fix do what it can"
        raise DataError(f"{count:,} problem{'s' * (count > 1)}; nothing was written{remedy}")
    if not rows:
        raise DataError("no conversation is left; nothing was written")
    write_rows(rows, out)
    console.print(Text(f"{len(rows):,} conversations written: {out} ({to.value})"), soft_wrap=True)


def parse_fields(maps: list[str]) -> dict[str, str]:
    """The field mapping of `--map OURS=THEIRS`; raises ConfigError for another form."""
    from mm_rec.errors import ConfigError

    fields: dict[str, str] = {}
    for item in maps:
        ours, separator, theirs = item.partition("=")
        if not (ours and separator and theirs):
            raise ConfigError(f"--map {item}: write it as OURS=THEIRS, for example --map prompt=soru")
        fields[ours] = theirs
    return fields


def print_found(found: ConversationSet, console: Console) -> None:
    """Print what was read: a row for each file, then messages and tools."""
    table = Table("file", "format", box=None, padding=(0, 2, 0, 0))
    for name in ("rows", "conversations"):
        table.add_column(name, justify="right")
    for file in found.files:
        formats = ", ".join(name for name, _ in file.formats.most_common()) or "none"
        table.add_row(Text(file.path), formats, f"{file.rows:,}", f"{file.conversations:,}")
    console.print(table)
    messages = [message for conversation in found.conversations for message in conversation.messages]
    roles = ", ".join(f"{role} {count:,}" for role, count in Counter(m.role for m in messages).most_common())
    with_tools = sum(bool(conversation.tools) for conversation in found.conversations)
    calls = sum(len(message.tool_calls) for message in messages)
    console.print(f"{len(found.conversations):,} conversations, {len(messages):,} messages ({roles})")
    if with_tools or calls:
        console.print(f"{with_tools:,} conversations with tools, {calls:,} calls")
