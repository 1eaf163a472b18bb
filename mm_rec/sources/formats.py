"""Read the documents of a file of each kind, with the line or row where they start.

A row that cannot be used is told to `report`, which raises or goes on; ProblemError is raised where the rest of the
file cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from mm_rec.sources.json_reader import json_rows, jsonl_rows
from mm_rec.sources.line_reader import Row, read_lines, read_whole_text
from mm_rec.sources.locations import SourceFile, file_kind
from mm_rec.sources.problems import ProblemError, ProblemHandler, problem_error, shorten, too_large
from mm_rec.sources.sections import DocumentsRule
from mm_rec.sources.table_reader import csv_rows, parquet_rows


def txt_texts(
    path: SourceFile, rule: DocumentsRule, limit: int, report: ProblemHandler
) -> Iterator[tuple[int, str]]:
    """The documents of a .txt file, each with the line where it starts."""
    if rule == "file":
        yield 1, read_whole_text(path, limit)
    elif rule == "blank-line":
        yield from _paragraphs(path, limit, report)
    else:
        for number, line in read_lines(path, limit):
            if line is None:
                report(too_large(path, number, limit, "line").problem)
            else:
                yield number, line


def row_texts(path: SourceFile, field: str, limit: int, report: ProblemHandler) -> Iterator[tuple[int, str]]:
    """The text field of every row of a .jsonl, .csv, .tsv or .parquet file."""
    for number, row in read_rows(path, limit, report, field):
        try:
            text = field_text(row, field, path, number)
            if len(text) > limit:
                raise too_large(path, number, limit, "row")
        except ProblemError as error:
            report(error.problem)
        else:
            yield number, text


def read_rows(
    path: SourceFile, limit: int, report: ProblemHandler, field: str | None = None
) -> Iterator[Row]:
    """The rows of a structured file as mappings.

    With `field`, a CSV or Parquet file must have that column, and a Parquet file gives no other.
    """
    kind = file_kind(path)
    if kind == "jsonl":
        return jsonl_rows(path, limit, report)
    if kind == "json":
        return json_rows(path, limit, report)
    if kind == "parquet":
        return parquet_rows(path, report, field)
    return csv_rows(path, limit, report, field)


def field_text(row: dict[str, Any], field: str, path: SourceFile, line: int) -> str:
    """The text in a row; raises ProblemError where it is missing or not usable."""
    if field not in row:
        fields = ", ".join(map(repr, row)) or "none"
        raise problem_error(
            "no-field",
            f"this row has no field {field!r}; it has: {fields}. Choose one with --text-field",
            path,
            line,
        )
    text = row[field]
    if not isinstance(text, str):
        raise problem_error(
            "not-a-string",
            f"the field {field!r} is not a string but {shorten(json.dumps(text, default=repr))}. "
            "Choose another with --text-field, or mend or delete the row",
            path,
            line,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise problem_error(
            "surrogate",
            f"the field {field!r} holds half of a surrogate pair ({text[error.start]!a}) at character "
            f"{error.start}, which is no character; an emoji was probably cut in two. Mend or delete the row",
            path,
            line,
        ) from error
    return text


def _paragraphs(path: SourceFile, limit: int, report: ProblemHandler) -> Iterator[tuple[int, str]]:
    """The runs of lines between blank lines."""
    held: list[str] = []
    start = size = 0  # size: of the run so far, also of one that is too large to be held
    for number, line in read_lines(path, limit):
        if line is None or (line and not line.isspace()):
            start = start if size else number
            within = size <= limit
            size += limit + 1 if line is None else len(line)
            if size <= limit:
                held.append(cast(str, line))
            elif within:
                held = []
                report(too_large(path, start, limit, "run of lines without a blank line").problem)
        else:
            if held:
                yield start, "\n".join(held)
            held, size = [], 0
    if held:
        yield start, "\n".join(held)
