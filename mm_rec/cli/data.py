"""`mmrec data`: from text wherever it is to token corpora."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mm_rec.cli.data_calibrate import calibrate
from mm_rec.cli.data_clean import clean
from mm_rec.cli.data_cluster import cluster
from mm_rec.cli.data_convert import convert
from mm_rec.cli.data_download import download, sources
from mm_rec.cli.data_inspect import inspect
from mm_rec.cli.data_list_format import list_format
from mm_rec.cli.data_masks import masks
from mm_rec.cli.data_options import Documents, Files, TextField
from mm_rec.cli.data_self_instruct import self_instruct

if TYPE_CHECKING:
    from mm_rec.data.prepare import PreparedCorpus

app = typer.Typer(no_args_is_help=True, help="Find, clean and tokenize text.")
app.command()(sources)
app.command()(download)
app.command()(inspect)
app.command()(clean)
app.command()(calibrate)
app.command()(cluster)
app.command()(convert)
app.command()(masks)
app.command(name="list-format")(list_format)
app.command(name="self-instruct")(self_instruct)


@app.callback()
def _group() -> None:
    """Find, clean and tokenize text."""


@app.command()
def tokenize(
    files: Files,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder to write; running again continues there.")],
    text_field: TextField = "text",
    documents: Documents = None,
    validation_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the documents to hold out.")
    ] = 0.01,
    validation: Annotated[
        list[str] | None, typer.Option(help="Hold out these files instead (may be given several times).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace corpora of other text.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Shards encoded at once (default: one a core).")
    ] = None,
) -> None:
    """Split text into train and validation and encode both into memory-mapped shards."""
    from mm_rec.data.prepare import is_prepared, open_prepared, plan_sources, prepare_corpus
    from mm_rec.errors import ConfigError
    from mm_rec.tokenizers.loading import load_tokenizer

    console = Console()
    loaded = load_tokenizer(tokenizer)
    with console.status("reading the text and planning the split"):
        plan = plan_sources(
            files,
            text_field=text_field,
            documents=None if documents is None else documents.value,
            validation_fraction=validation_fraction,
            validation_sources=validation or (),
        )
    console.print("\n".join(plan.describe()), highlight=False, markup=False)
    if not overwrite and is_prepared(out) and open_prepared(out).record != plan.record():
        raise ConfigError(f"{out} holds corpora of other text. Give --out another folder, or --overwrite")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("tokenizing", total=plan.split.bytes)
        prepared = prepare_corpus(
            plan, loaded, out, threads=threads, progress=lambda size: bar.advance(task, size)
        )
    console.print(_summary(prepared))
    for line in prepared.notes():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summary(prepared: PreparedCorpus) -> Table:
    """A row for each corpus."""
    table = Table("corpus", "folder")
    for name in ("documents", "text MB", "tokens", "bytes a token", "shards"):
        table.add_column(name, justify="right")
    for name, corpus in (("train", prepared.train), ("validation", prepared.validation)):
        table.add_row(
            name,
            str(corpus.path),
            f"{corpus.documents:,}",
            f"{corpus.text_bytes / 1e6:,.1f}",
            f"{corpus.tokens:,}",
            f"{corpus.text_bytes / corpus.tokens:.2f}",
            f"{len(corpus.shards):,}",
        )
    return table
