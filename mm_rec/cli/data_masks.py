"""`mmrec data masks`: every token of conversations in colour, learnt or not, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from mm_rec.cli.data_convert import ConversationFormatChoice, parse_fields

if TYPE_CHECKING:
    from mm_rec.data.conversations.mask_report import MaskedToken

_STYLES = {
    "answer": "black on green",
    "end of turn": "bold black on bright_green",
    "weight 0": "black on red",
    "earlier answer": "black on red",
    "rewritten": "black on red",
    "tools": "yellow",
    "system": "blue",
    "developer": "blue",
    "user": "default",
    "tool result": "yellow",
    "layout": "dim",
    "first token": "dim italic",
}
_PAGE_CONVERSATIONS = 200


def masks(
    files: Annotated[list[str], typer.Argument(help="Conversations of any format.", show_default=False)],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer, or of a model.")],
    format: Annotated[
        ConversationFormatChoice | None,
        typer.Option(help="Format of the files (default: told by their fields)."),
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option(help="A field of theirs for one of ours: --map prompt=soru.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Chat layout: default, chatml, llama3 (without it: the tokenizer's own)."),
    ] = None,
    train_on: Annotated[str, typer.Option(help="Answers to learn: all or last.")] = "all",
    max_length: Annotated[int | None, typer.Option(min=2, help="Most tokens of a conversation.")] = None,
    too_long: Annotated[str, typer.Option(help="Longer ones: refuse, or turns.")] = "refuse",
    rows: Annotated[int, typer.Option(min=0, help="Conversations to show here.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write a page (.html) with the first 200.")] = None,
) -> None:
    """Show what a file of conversations teaches: each token in colour, learnt or not, with the reason.

    Problems that would stop a training are listed once each; then the exit status is 2.
    """
    from mm_rec.data.conversations.dataset_reader import read_conversations
    from mm_rec.data.conversations.issues import format_issues
    from mm_rec.data.conversations.mask_report import REASONS, count_reasons, explain_mask, render_mask_page
    from mm_rec.data.conversations.preflight import preflight, read_train_on
    from mm_rec.errors import ConfigError, DataError
    from mm_rec.models.loading import find_model
    from mm_rec.runs.files import write_text
    from mm_rec.tokenizers.chat_template import known_chat_template, prepare_for_chat, require_template
    from mm_rec.tokenizers.loading import load_tokenizer

    if out is not None and out.suffix != ".html":
        raise ConfigError(f"--out {out}: the page is written to a file that ends with .html")
    console = Console(highlight=False)
    chosen, cutting = read_train_on(train_on, too_long)
    loaded = load_tokenizer(tokenizer if tokenizer.is_dir() else find_model(tokenizer))
    if template is not None or not loaded.chat_template:
        prepare_for_chat(loaded, template or "default")
    require_template(loaded)
    found = read_conversations(
        files,
        format_name=None if format is None else format.value,
        fields=parse_fields(map or []),
        special_tokens=loaded.all_special_tokens,
    )
    checked = preflight(loaded, found.conversations, chosen, max_length, cutting)
    explained = [
        (conversation.location, explain_mask(loaded, conversation, chosen))
        for conversation in checked.conversations[: max(rows, _PAGE_CONVERSATIONS if out else 0)]
    ]
    for place, tokens in explained[:rows]:
        console.print(Text(place, style="bold"), soft_wrap=True)
        console.print(_coloured(tokens), soft_wrap=True)
        console.print()
    counts = count_reasons(tokens for _, tokens in explained)
    for reason, count in counts.items():
        share = count / sum(counts.values())
        console.print(Text.assemble((f" {reason} ", _STYLES[reason]), f" {share:6.1%}  {REASONS[reason]}"))
    tokens_in_all = sum(len(one.ids) for one in checked.rendered)
    learnt = sum(int(one.loss_mask.sum()) for one in checked.rendered)
    console.print(
        f"{len(checked.rendered):,} conversations, {tokens_in_all:,} tokens, {learnt:,} of them learnt"
        + (f" ({learnt / tokens_in_all:.1%})" if tokens_in_all else "")
    )
    if out is not None:
        layout = known_chat_template(loaded)
        write_text(
            out, render_mask_page(explained, ", ".join(files), layout.name if layout else "the model's own")
        )
        console.print(f"Written: {out}", soft_wrap=True)
    problems = [*found.issues, *checked.issues]
    if problems:
        raise DataError(f"{len(problems):,} problems would stop a training:\n{format_issues(problems)}")


def _coloured(tokens: list[MaskedToken]) -> Text:
    text = Text()
    for token in tokens:
        shown = token.text.replace("\n", "↵\n") if token.trained_on else token.text
        text.append(shown, style=_STYLES[token.reason])
    return text
