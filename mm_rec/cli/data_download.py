"""`mmrec data sources` and `mmrec data download`: corpora by name."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from mm_rec.sources.catalogue import CatalogueEntry
    from mm_rec.sources.download import DownloadRecord

_INTERRUPTED = 130  # the exit status that a shell gives a program stopped by Ctrl-C


class ShardFormatChoice(StrEnum):
    """The formats of the shards."""

    jsonl = "jsonl.zst"
    text = "txt.gz"


def sources(
    language: Annotated[
        str | None, typer.Option(help="Only those with text in a language (tr, en, code).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole entries as JSON.")] = False,
) -> None:
    """List the corpora that can be downloaded by name: language, size, licence, what each is good for."""
    from mm_rec.sources.catalogue import list_sources

    found = list_sources(language)
    if as_json:
        typer.echo(
            json.dumps([source.model_dump(mode="json") for source in found], indent=2, ensure_ascii=False)
        )
        return
    table = Table(caption=_CAPTION, caption_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("languages")
    table.add_column("GB", justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("good for, hub id")
    for source in found:
        name = source.name + (" *" if source.gated else "")
        table.add_row(
            name,
            _languages(source),
            _size(source, language),
            source.licence,
            f"{source.good_for}\n[dim]{source.hub}",
        )
    Console().print(table)


_CAPTION = (
    "* gated: accept the terms on its page, then `hf auth login`. GB: about, as published.\n"
    "mmrec data download NAME --out DIR [--limit 2GB] [--language tr] fetches one, its licence beside it."
)


def download(
    name: Annotated[str, typer.Argument(help="A name that `mmrec data sources` lists.")],
    out: Annotated[Path, typer.Option(help="Folder to write; running again continues there.")],
    limit: Annotated[str | None, typer.Option(help="Text to fetch: 500MB, 2GB (default: all of it).")] = None,
    language: Annotated[str | None, typer.Option(help="For a set of many languages: tr, en …")] = None,
    split: Annotated[str | None, typer.Option(help="Split to fetch (default: train).")] = None,
    format: Annotated[
        ShardFormatChoice,
        typer.Option(
            help="jsonl.zst: text unchanged; txt.gz: a blank line between documents, none inside one."
        ),
    ] = ShardFormatChoice.jsonl,
    local: Annotated[
        Path | None, typer.Option(help="Read a local copy of the set's repository instead.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch or commit of the set's repository.")] = None,
) -> None:
    """Fetch a corpus from the Hugging Face hub into shards of about 64 MB of text, resumable."""
    from mm_rec.sources import download as fetching
    from mm_rec.sources.catalogue import find_source

    request = fetching.DownloadRequest(
        source=find_source(name),
        out=out,
        limit=None if limit is None else fetching.parse_size(limit),
        language=language,
        split=split,
        format=format.value,
        local=local,
        revision=revision,
    )
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=request.limit, text="opening the set")
            rows = 0

            def show(text_bytes: int, more: int) -> None:
                nonlocal rows
                rows += more
                done = bar.tasks[0].completed + text_bytes
                bar.update(task, completed=done, text=f"{done / 1e6:,.0f} MB  {rows:,} rows")

            record = fetching.download(request, show)
    except KeyboardInterrupt:
        console.print(
            "stopped. The finished shards stay; the same command continues after them", markup=False
        )
        raise typer.Exit(_INTERRUPTED) from None
    console.print(_summary(record, request.source, out), markup=False)


def _summary(record: DownloadRecord, source: CatalogueEntry, out: Path) -> str:
    """Summarise the folder in a few lines."""
    lines = [
        f"{out}: {record.documents:,} documents, {record.text_bytes / 1e6:,.1f} MB, {len(record.shards)} shards",
        f"licence: {record.licence} ({out / 'LICENCE.md'})",
    ]
    skipped = {"empty": record.empty_rows, "unreadable": record.unreadable_rows}
    if any(skipped.values()):
        lines.append(
            "rows left out: " + ", ".join(f"{count:,} {why}" for why, count in skipped.items() if count)
        )
    lines.append(
        "this is the whole set"
        if record.complete
        else "the limit was reached; a higher --limit continues from here"
    )
    return "\n".join(lines)


def _languages(source: CatalogueEntry) -> str:
    if source.languages != "any":
        return ", ".join(source.languages)
    return f"any ({source.default_language} unless named)" if source.default_language else "any"


def _size(source: CatalogueEntry, language: str | None) -> str:
    """GB as a person writes them, by language where it differs."""
    sizes = source.size_gb if isinstance(source.size_gb, dict) else {"": source.size_gb}
    known = {
        code: size
        for code, size in sizes.items()
        if size is not None and (not language or code in ("", language))
    }
    return "\n".join(f"{code} {size:,g}".strip() for code, size in known.items()) or "?"
