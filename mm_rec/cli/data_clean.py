"""`mmrec data clean`: from sources to one clean corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mm_rec.cli.data_options import Documents, Files, TextField

if TYPE_CHECKING:
    from mm_rec.cleaning.corpus import CleanCorpus
    from mm_rec.cleaning.dedup import DedupConfig

_SHOWN = 10  # problems printed while the work goes on; all are in the report


def clean(
    sources: Files,
    out: Annotated[Path, typer.Option(help="The clean corpus: .txt or .jsonl, also with .gz or .zst.")],
    language: Annotated[str, typer.Option(help="Language of the text; others are left out.")] = "tr",
    text_field: TextField = "text",
    documents: Documents = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="Leave out documents that hold text of this evaluation file (may be repeated)."),
    ] = None,
    earlier: Annotated[
        list[str] | None,
        typer.Option(help="Leave out what stands in the corpus of this report folder (may be repeated)."),
    ] = None,
    keep_dropped: Annotated[
        bool, typer.Option("--keep-dropped", help="Write every document left out, with its reason.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Also count tokens, with the tokenizer in this folder.")
    ] = None,
    bad_words: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Leave out documents that hold a word of this file, one a line."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing corpus.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes (default: one a core).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting, for example cleaning.rules.gopher_words.min=20, dedup.near=false.",
        ),
    ] = None,
) -> None:
    """Clean, deduplicate and report: what is kept goes into one file, what is not is counted, with samples.

    A killed or interrupted call goes on where it was when it is run again.
    """
    from mm_rec.cleaning.corpus import CorpusConfig, clean_corpus
    from mm_rec.cleaning.report import write_report
    from mm_rec.config import apply_overrides
    from mm_rec.errors import ConfigError
    from mm_rec.sources.documents import MAX_DOCUMENT_BYTES
    from mm_rec.sources.line_reader import read_lines

    words = (
        [] if bad_words is None else [line for _, line in read_lines(bad_words, MAX_DOCUMENT_BYTES) if line]
    )
    values: dict[str, Any] = {
        "cleaning": {"language": language, "bad_words": words},
        "text_field": text_field,
        "documents": None if documents is None else documents.value,
        "evaluation": evaluation or [],
        "earlier": earlier or [],
    }
    config = CorpusConfig.read(apply_overrides(values, settings or []), where="mmrec data clean")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already. Give --out another name, or --overwrite to replace it")
    console = Console(highlight=False)
    counter = None if tokenizer is None else _token_counter(tokenizer)
    try:
        with _ProgressBars(console) as bars:
            corpus = clean_corpus(
                sources,
                out,
                config,
                processes=processes,
                keep_dropped=keep_dropped,
                count_tokens=counter,
                progress=bars.callbacks(),
            )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the finished shards", markup=False)
        raise typer.Exit(130) from None
    page = write_report(corpus)
    console.print(f"{len(corpus.files)} files; .txt was cut into documents by --documents {corpus.rule}")
    console.print(_summary(corpus))
    console.print(_detection(config.dedup), markup=False)
    console.print(f"{out}: what was removed and why, with samples: {page}", soft_wrap=True, markup=False)


class _ProgressBars:
    """The progress of the stages, and problems as they are met."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.task: TaskID | None = None
        self.problems = 0

    def __enter__(self) -> _ProgressBars:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def callbacks(self) -> Any:
        """The callables that `clean_corpus` tells."""
        from mm_rec.cleaning.corpus import CleaningProgress

        return CleaningProgress(self._stage, self._advance, self._problem)

    def _stage(self, name: str, size: int) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=size or None)

    def _advance(self, size: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, size)

    def _problem(self, problem: Any) -> None:
        self.problems += 1
        if self.problems <= _SHOWN:
            self.console.print(f"passed over: {problem}", soft_wrap=True, markup=False)
        elif self.problems == _SHOWN + 1:
            self.console.print("passed over: more, which the report lists", markup=False)


def _token_counter(folder: Path) -> Callable[[str], int]:
    """Tokens of a document, as training will read it."""
    from mm_rec.tokenizers.loading import encode_documents, load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda text: len(encode_documents(tokenizer, [text])[0])


def _detection(dedup: DedupConfig) -> str:
    """The detection curve of near-duplicates in a line."""
    if not dedup.near:
        return "near-duplicates were not looked for"
    points = ", ".join(
        f"{x:.0%} alike {dedup.detection_probability(x):.0%}" for x in (0.5, 0.6, 0.7, 0.8, 0.9)
    )
    return f"near-duplicates: the chance that two documents are compared is: {points}; out from {dedup.threshold:.0%}"


def _summary(corpus: CleanCorpus) -> Table:
    """Summarise what was read, dropped for each reason, and kept."""
    total = corpus.stats.total()
    table = Table("", show_header=True, box=None, pad_edge=False)
    for name in ("documents", "MB", "of all text"):
        table.add_column(name, justify="right")

    def row(name: str, count: int, size: int, style: str | None = None) -> None:
        share = f"{size / total.read.bytes:.1%}" if total.read.bytes else ""
        table.add_row(name, f"{count:,}", f"{size / 1e6:,.1f}", share, style=style)

    row("read", total.read.count, total.read.bytes, "bold")
    for reason, removal in sorted(corpus.stats.dropped.items(), key=lambda entry: -entry[1].bytes):
        row(f"  left out: {reason}", removal.count, removal.bytes)
    for cut, removal in sorted(corpus.stats.cut.items(), key=lambda entry: -entry[1].bytes):
        row(f"  cut out: {cut}", removal.count, removal.bytes)
    rest = corpus.stats.markup_bytes()
    table.add_row("  markup, white space", "", f"{rest / 1e6:,.1f}", f"{rest / total.read.bytes:.1%}")
    row("kept", total.kept.count, total.kept.bytes, "bold")
    return table
