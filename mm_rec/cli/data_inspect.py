"""`mmrec data inspect`: what files of text hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mm_rec.cli.data_options import DocumentsChoice

if TYPE_CHECKING:
    from mm_rec.cleaning.inspect import FileReport, LengthStats

_BARS = "▁▂▃▄▅▆▇█"
_KINDS = {"txt": "plain text", "jsonl": "JSON Lines", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet"}
_RULES = {"file": "the whole file", "blank-line": "a block between blank lines", "line": "a line"}


def inspect(
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs.")],
    rows: Annotated[int, typer.Option(min=0, help="Documents to show from the beginning.")] = 3,
    text_field: Annotated[
        str | None, typer.Option(help="Field of a row that holds the text (default: what looks like it).")
    ] = None,
    documents: Annotated[
        DocumentsChoice | None,
        typer.Option(help="What a document is in .txt (default: file; blank-line for one .txt)."),
    ] = None,
    limit: Annotated[str, typer.Option(help="Text to read of each file.")] = "200MB",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show format, fields, lengths, languages, duplicates, problems and samples of files, without changing anything."""
    from mm_rec.cleaning.inspect import default_detector, inspect_file
    from mm_rec.sources.documents import default_documents_rule, find_files
    from mm_rec.sources.download import parse_size

    size = parse_size(limit)
    found = find_files(files)
    rule = default_documents_rule(found, None if documents is None else documents.value)
    detect, detector = default_detector()
    console = Console(highlight=False)
    reports = []
    for file in found:
        with console.status(f"reading {file}"):
            report = inspect_file(
                file, detect, text_field=text_field, documents=rule, samples=rows, limit=size
            )
        reports.append(report)
        if not as_json:
            _print_report(report, detector, console)
    if as_json:
        _print_json(reports)


def _print_json(reports: list[FileReport]) -> None:
    import dataclasses
    import json

    typer.echo(json.dumps([dataclasses.asdict(report) for report in reports], indent=2, ensure_ascii=False))


def _print_report(report: FileReport, detector: str, console: Console) -> None:
    console.print(Text(report.path, style="bold"), soft_wrap=True)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(report, detector):
        facts.add_row(name, Text(value))
    console.print(facts)
    if report.fields:
        console.print(_fields(report))
    for number, sample in enumerate(report.samples, start=1):
        line = Text.assemble((f"{number}: ", "dim"), " ".join(sample.split()))
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print()


def _facts(report: FileReport, detector: str) -> list[tuple[str, str]]:
    """List the facts of a report, a line each."""
    packed = {"gz": ", gzip", "zst": ", zstd", None: ""}[report.compression]
    size = "size unknown" if report.bytes is None else f"{report.bytes:,} bytes"
    rule = f", each {_RULES[report.documents_rule]}" if report.documents_rule else ""
    part = (
        ""
        if report.complete
        else f" in the first {report.characters / 1e6:,.0f} million characters (--limit)"
    )
    facts = [
        ("format", f"{_KINDS[report.kind]}{packed}, {size}"),
        ("documents", f"{report.documents:,}{rule}{part}"),
    ]
    if report.fields and report.text_field is None:
        facts.append(("text", f"no field of the first {report.rows} rows is a string"))
    if report.blank:
        facts.append(("blank", f"{report.blank:,} documents of white space alone"))
    if report.lengths:
        lengths = report.lengths
        facts += [
            (
                "characters",
                f"min {lengths.minimum:,}, median {lengths.median:,}, 90 % below {lengths.p90:,}, "
                f"max {lengths.maximum:,}",
            ),
            ("", _histogram(lengths)),
            (
                "duplicates",
                f"{report.duplicates:,} ({report.duplicates / report.documents:.1%}), letter for letter",
            ),
        ]
    if report.languages:
        total = sum(report.languages.values())
        shares = ", ".join(f"{code} {count / total:.1%}" for code, count in report.languages.items())
        facts.append(("languages", f"{shares} (a sample of {total:,}, by {detector})"))
    if report.line_ends or report.byte_order_mark:
        mark = ", byte-order mark" if report.byte_order_mark else ""
        facts.append(("line ends", ", ".join(report.line_ends) + mark))
    if report.mojibake:
        facts.append(("mojibake", f"{report.mojibake:,} documents have signs of wrongly decoded letters"))
    for reason, problem in report.problems.items():
        facts.append((f"problem: {reason}", f"{problem.count:,} times, first {problem.first}"))
    if not report.problems:
        facts.append(("problems", "none"))
    return facts


def _fields(report: FileReport) -> Table:
    table = Table("field", "in rows", "types", "mean characters", box=None, padding=(0, 2, 0, 0))
    for column in (1, 3):
        table.columns[column].justify = "right"
    for name, item in report.fields.items():
        strings = item.types.get("string", 0)
        types = ", ".join(
            kind if count == item.rows else f"{kind} {count / item.rows:.1%}"
            for kind, count in item.types.items()
        )
        table.add_row(
            Text(name + (" (the text)" if name == report.text_field else "")),
            f"{item.rows / report.rows:.1%}",
            types,
            f"{item.characters / strings:,.0f}" if strings else "",
        )
    return table


def _histogram(lengths: LengthStats) -> str:
    """Bars for the numbers of documents of 1, 2, 4, 8 … characters and more."""
    low, high = min(lengths.histogram), max(lengths.histogram)
    powers = [2**power for power in range(int(math.log2(low)), int(math.log2(high)) + 1)]
    most = max(lengths.histogram.values())
    counts = [lengths.histogram.get(power, 0) for power in powers]
    bars = "".join(_BARS[math.ceil(count / most * len(_BARS)) - 1] if count else " " for count in counts)
    return f"{low:,} {bars} {2 * high - 1:,}"
