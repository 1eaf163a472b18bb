"""`mmrec tokenizer`: train a tokenizer, and report how well it suits a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mm_rec.cli.data_options import Documents, Files, TextField
from mm_rec.errors import ConfigError
from mm_rec.sources.sections import DocumentsRule

if TYPE_CHECKING:
    from mm_rec.sources.locations import SourceFile
    from mm_rec.tokenizers.training import TokenizerConfig, TokenizerTrainingReport

app = typer.Typer(
    no_args_is_help=True, help="Train a tokenizer on your text, and see how well it suits a language."
)


@app.command()
def train(
    paths: Files,
    out: Annotated[Path, typer.Option(help="Folder to write the tokenizer to.")],
    vocab_size: Annotated[
        int, typer.Option(min=1, help="Pieces in the vocabulary, special tokens included.")
    ] = 32_000,
    text_field: TextField = "text",
    documents: Documents = None,
    sample_mb: Annotated[
        float, typer.Option(min=0, help="Train on at most this many MB, in lines drawn from all of the text.")
    ] = 100.0,
    character_coverage: Annotated[
        float,
        typer.Option(min=0, help="Share of the text's characters that get a piece of their own."),
    ] = 0.9995,
    byte_fallback: Annotated[
        bool, typer.Option(help="Write other characters as bytes, so that no text is ever lost.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads to use.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier tokenizer.")] = False,
) -> None:
    """Train a SentencePiece BPE tokenizer and prove its tokenizer.json exact before writing it."""
    from mm_rec.sources.documents import read_documents
    from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is there already. Give --out another folder, or --overwrite to replace it")
    rule: DocumentsRule | None = None if documents is None else documents.value
    config = TokenizerConfig.read(
        {
            "vocab_size": vocab_size,
            "character_coverage": character_coverage,
            "byte_fallback": byte_fallback,
            "sample_bytes": int(sample_mb * 1e6),
            "threads": threads,
            "seed": seed,
        },
        where="mmrec tokenizer train",
    )

    def texts() -> Iterator[str]:
        return (document.text for document in read_documents(paths, text_field=text_field, documents=rule))

    with _progress() as progress:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, size="")
            progress.update(tasks[stage], completed=done, total=total, size=f"{done / 1e6:,.1f} MB")

        result = train_tokenizer(texts, config, out, show)
    _print_trained(result, config, out)


@app.command()
def report(
    tokenizer: Annotated[Path, typer.Argument(help="Tokenizer folder or model folder.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILES...]", help="Text files; each is reported under its name."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Report FILE under NAME; may be repeated.")
    ] = None,
    text_field: TextField = "text",
    documents: Documents = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Tokens a word, bytes a token, byte fallback, longest and rarest pieces, for each file or language."""
    from mm_rec.runs.files import write_json
    from mm_rec.sources.documents import read_documents
    from mm_rec.tokenizers.loading import load_tokenizer
    from mm_rec.tokenizers.tokenizer_report import measure_tokenizer

    rule: DocumentsRule | None = None if documents is None else documents.value
    sources = _sources(paths or [], language or [])
    texts = {
        name: (document.text for document in read_documents(group, text_field=text_field, documents=rule))
        for name, group in sources.items()
    }
    figures = measure_tokenizer(load_tokenizer(tokenizer), texts)
    if json_file is not None:
        write_json(json_file, figures)
    _print_report(figures)


def _sources(paths: list[str], languages: list[str]) -> dict[str, list[SourceFile | str]]:
    """The files to report on by label: a file's name without suffixes, or the name given by --language."""
    from mm_rec.sources.documents import find_files

    sources: dict[str, list[SourceFile | str]] = {}
    for path in find_files(paths) if paths else []:
        label = path.name.split(".")[0]
        sources.setdefault(label if label not in sources else str(path), []).append(path)
    for entry in languages:
        name, separator, file = entry.partition("=")
        if not (name and separator and file):
            raise ConfigError(f"--language {entry!r}: write it as NAME=FILE, for example tr=stories.txt")
        sources.setdefault(name, []).append(file)
    if not sources:
        raise ConfigError("there is nothing to report on. Name files, or --language NAME=FILE")
    return sources


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[size]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print_trained(result: TokenizerTrainingReport, config: TokenizerConfig, out: Path) -> None:
    console = Console(highlight=False)
    everything = result.bytes_read <= config.sample_bytes
    drawn = "all of it" if everything else f"{result.bytes_used / 1e6:,.1f} MB of it"
    unknown = result.proof.lines_with_unknown
    console.print(
        f"Read {result.documents:,} documents, {result.bytes_read / 1e6:,.1f} MB; trained on {drawn}. "
        f"Vocabulary {result.vocab_size:,}."
    )
    console.print(
        f"Proof: {result.proof.lines:,} lines, 0 differ between SentencePiece and tokenizer.json; "
        + (f"{unknown:,} hold unknown characters, the others" if unknown else "all")
        + f" decode exactly ({result.seconds:,.1f} s in all)."
    )
    console.print(f"Tokenizer: {out}", markup=False, soft_wrap=True)


def _print_report(figures: dict[str, Any]) -> None:
    console = Console()
    table = Table("text", "documents", "MB", "tokens", box=None)
    for title in ("tokens\na word", "bytes\na token", "byte\nfallback", "pieces\nused"):
        table.add_column(title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in figures["languages"].items():
        table.add_row(
            Text(name),
            f"{row['documents']:,}",
            f"{row['bytes'] / 1e6:,.2f}",
            f"{row['tokens']:,}",
            f"{row['fertility']:.3f}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['byte_fallback_share']:.3%}",
            f"{row['used_pieces']:,}",
        )
    console.print(table)
    for name, row in figures["languages"].items():
        for title, key in (("longest pieces", "longest_pieces"), ("rarest pieces", "rarest_pieces")):
            shown = "  ".join(f"{item['piece']!r} ×{item['count']:,}" for item in row[key])
            console.print(Text(f"{name}, {title}: {shown}"))
    console.print(
        f"{figures['unused_pieces']:,} of {figures['ordinary_pieces']:,} ordinary pieces are used by none of "
        f"these texts (vocabulary {figures['vocab_size']:,}).",
        highlight=False,
    )
