"""Read the documents of a file of each kind, with the line or row where they start.

A row that cannot be used is told to `report`, which raises or goes on; ProblemError is raised where the rest of the
file cannot be read.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

from mm_rec.errors import needs_extra
from mm_rec.sources.decompression import open_bytes
from mm_rec.sources.line_reader import read_line_blocks, read_lines, unreadable
from mm_rec.sources.locations import SourceFile, file_kind
from mm_rec.sources.problems import ProblemError, ProblemHandler, problem_error, too_large
from mm_rec.sources.sections import DocumentsRule
from mm_rec.strict_parsing import JSON_DECODER, DuplicateKey, with_line_numbers

Row = tuple[int, dict[str, Any]]

_BATCH_BYTES = 16 * 2**20  # of a Parquet file, decoded at once
_BATCH_ROWS = 1024
_READ_BYTES = 2**20  # of it, read at once
_NO_TEXT = object()  # stands for bytes that are not UTF-8
_JSON_GAP = re.compile(r"[\s,]*")


def txt_texts(
    path: SourceFile, rule: DocumentsRule, limit: int, report: ProblemHandler
) -> Iterator[tuple[int, str]]:
    """The documents of a .txt file, each with the line where it starts."""
    if rule == "file":
        yield 1, _whole_text(path, limit)
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
        return _jsonl_rows(path, limit, report)
    if kind == "json":
        return _json_rows(path, limit, report)
    if kind == "parquet":
        return _parquet_rows(path, report, field)
    return _csv_rows(path, limit, report, field)


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
            f"the field {field!r} is not a string but {_shorten(json.dumps(text, default=repr))}. "
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


def _whole_text(path: SourceFile, limit: int) -> str:
    parts: list[str] = []
    size = 0
    for _, text in read_line_blocks(path, limit):
        size += 0 if text is None else len(text)
        if text is None or size > limit:
            raise too_large(path, 1, limit, "file")
        parts.append(text)
    return "".join(parts)


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


def _jsonl_rows(path: SourceFile, limit: int, report: ProblemHandler) -> Iterator[Row]:
    """The objects of a .jsonl file; empty lines between them are passed over."""
    for number, line in read_lines(path, limit):
        if line is None:
            report(too_large(path, number, limit, "row").problem)
        elif line and not line.isspace():
            try:
                row = _json_object(line, path, number)
            except ProblemError as error:
                report(error.problem)
            else:
                yield number, row


def _json_object(line: str, path: SourceFile, number: int) -> dict[str, Any]:
    try:
        value = JSON_DECODER.decode(line)
    except DuplicateKey as error:
        raise problem_error("duplicate-key", f"{error}: {_shorten(line)!r}", path, number) from error
    # A number with too many digits is a plain ValueError, brackets nested too deep a RecursionError.
    except (ValueError, RecursionError) as error:
        remedy = "`jq -c . FILE > NEW.jsonl` rewrites pretty-printed JSON, otherwise mend or delete the row"
        if "\ufeff" in line:
            remedy = (
                "Files were joined here without a line end between (U+FEFF begins the second): put one there"
            )
        raise problem_error(
            "not-json",
            f"this row is not JSON ({error}): {_shorten(line)!r}. A .jsonl file has one whole object a line; {remedy}",
            path,
            number,
        ) from error
    return _require_object(value, line, path, number)


def _require_object(value: Any, text: str, path: SourceFile, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise problem_error(
            "not-json",
            f"this row is a JSON {type(value).__name__}, not an object: {_shorten(text)!r}. "
            'Write each row as an object, for example {"text": "…"}',
            path,
            line,
        )
    return value


def _json_rows(path: SourceFile, limit: int, report: ProblemHandler) -> Iterator[Row]:
    """The objects of a .json file, one array of them or one after another, with the lines where they start.

    The text of the whole file is held in memory. After a row that is not JSON, reading goes on at the next line that
    opens an object as far from the margin as that row.
    """
    text = _whole_text(path, sys.maxsize)
    start = _skip_gap(text, 0)
    in_array = text.startswith("[", start)
    position, line, counted, number = start + in_array, 1, 0, 0
    while (position := _skip_gap(text, position)) < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        number += 1
        try:
            value, end = JSON_DECODER.raw_decode(text, position)
            if end - position > limit:
                raise too_large(path, line, limit, "row")
            row = _require_object(value, text[position:end], path, line)
        except (ValueError, RecursionError) as error:
            end = _next_object(text, position)
            if isinstance(error, DuplicateKey):
                stop = end if end >= 0 else len(text)
                error = with_line_numbers(error, "\n" * (line - 1) + text[position:stop].rstrip(" \n,]"))
            message = f"this row is not JSON ({error})"
            if end < 0:
                rest = ". What follows is not read: where its rows begin is not known. Mend the file"
                raise problem_error("not-json", message + rest, path, line) from error
            report(problem_error("not-json", f"{message}. Mend or delete it", path, line).problem)
        except ProblemError as error:
            report(error.problem)
        else:
            yield line, row
        position = end
    if number == 0:
        raise problem_error("empty", "the file has no rows. Put rows in it or leave it out", path)
    if in_array and text[position : position + 1] != "]":
        raise problem_error("truncated", "the array of this file has no end: it was probably cut short", path)
    if text[position + in_array :].strip():
        line += text.count("\n", counted, position)
        raise problem_error("not-json", "more follows where the rows end. Mend the file", path, line)


def _skip_gap(text: str, position: int) -> int:
    match = _JSON_GAP.match(text, position)
    assert match
    return match.end()


def _next_object(text: str, position: int) -> int:
    """Find the next line that begins an object with the indentation of the one at `position`; -1 where none does."""
    indent = text[text.rfind("\n", 0, position) + 1 : position]
    return -1 if indent.strip() else text.find(f"\n{indent}{{", position)


def _csv_rows(path: SourceFile, limit: int, report: ProblemHandler, field: str | None) -> Iterator[Row]:
    """The rows under the header of a .csv or .tsv file, numbered from 1; a quoted field may span lines.

    A .csv may be separated by commas, semicolons (as spreadsheets do in Turkey) or tabs: the header shows which.
    """
    # The csv module has one limit for the whole program, too low for documents; _CsvLines has ours.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    stream = _CsvLines(path, limit)
    first = next(stream)
    delimiter = "\t" if file_kind(path) == "tsv" else max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter, strict=True)
    header, number = None, 0
    while True:
        begin = reader.line_num + 1
        stream.begin_row(number + 1)
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            number += 1
            report(_bad_quotes(path, number, begin, reader.line_num, error).problem)
            continue
        if header is None:
            header = values
            _require_different(header, path)
            _require_column(header, field, path)
        elif values:  # an empty line is no row
            number += 1
            if len(values) == len(header):
                yield number, dict(zip(header, values, strict=True))
            else:
                report(_bad_width(path, number, values, header).problem)
    if number == 0:
        raise problem_error(
            "empty", "the file has a header and no rows. Put rows in it or leave it out", path
        )


class _CsvLines:
    """The lines of a CSV file for its reader, which asks for more and more where a quotation mark is not closed."""

    def __init__(self, path: SourceFile, limit: int) -> None:
        self._path, self._limit = path, limit
        self._lines = read_lines(path, limit)
        self.begin_row(0)

    def begin_row(self, number: int) -> None:
        """Say which row, from 1, the next lines belong to."""
        self._row, self._size = number, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        self._size += 0 if line is None else len(line)
        # Where the next row begins is not known: this ends the file.
        if line is None or self._size > self._limit:
            what = "row (is a quotation mark of it not closed?)"
            raise too_large(self._path, self._row, self._limit, what)
        return line + "\n"


def _bad_quotes(path: SourceFile, number: int, begin: int, end: int, error: csv.Error) -> ProblemError:
    return problem_error(
        "bad-row",
        f"the quotation marks of this row (lines {begin} to {end} of the file) do not fit: {error}. A field "
        'that holds a quotation mark, a separator or a line end stands in "…", with each " in it doubled',
        path,
        number,
    )


def _bad_width(path: SourceFile, number: int, values: list[str], header: list[str]) -> ProblemError:
    return problem_error(
        "bad-row",
        f"this row has {len(values)} fields and the header {len(header)}: {_shorten(' | '.join(values))!r}. "
        'A field that holds a separator stands in "…"',
        path,
        number,
    )


def _require_different(names: list[str], path: SourceFile) -> None:
    """Raise ProblemError where two columns have one name; columns without a name are nobody's."""
    for number, name in enumerate(names):
        if name and (first := names.index(name)) < number:
            raise problem_error(
                "duplicate-key",
                f"the columns {first + 1} and {number + 1} are both called {name!r}; only one of them can count. "
                "Rename or delete one",
                path,
                1,
            )


def _require_column(names: list[str], field: str | None, path: SourceFile) -> None:
    if field is not None and field not in names:
        columns = ", ".join(map(repr, names)) or "none"
        raise problem_error(
            "no-field",
            f"there is no column {field!r}; the columns are: {columns}. Choose one with --text-field",
            path,
        )


def _parquet_rows(path: SourceFile, report: ProblemHandler, field: str | None) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 1, decoded in batches of about _BATCH_BYTES."""
    with needs_extra("data", "reading .parquet files"):
        import pyarrow
        import pyarrow.parquet
    number = 0
    try:
        with open_bytes(path) as stored:
            file = pyarrow.parquet.ParquetFile(stored, buffer_size=_READ_BYTES)
            _require_different(file.schema_arrow.names, path)
            _require_column(file.schema_arrow.names, field, path)
            columns = None if field is None else [field]
            batch_rows = _batch_rows(file.metadata)
            for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
                for row in _batch_to_rows(batch):
                    number += 1
                    column = next((name for name, value in (row or {}).items() if value is _NO_TEXT), None)
                    if row is None or column is not None:
                        what = "this row" if column is None else f"the column {column!r} of this row"
                        message = f"{what} is not UTF-8. Mend or delete it"
                        report(problem_error("encoding", message, path, number).problem)
                    else:
                        yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        message = f"this is not a sound Parquet file, or it could not be read whole ({error}). Fetch it again"
        raise problem_error("damaged", message, path, number + 1) from error
    if number == 0:
        raise problem_error("empty", "the file has no rows. Put rows in it or leave it out", path)


def _batch_rows(metadata: Any) -> int:
    """As many rows as make about _BATCH_BYTES, by the file's own account of its uncompressed size."""
    size = sum(int(metadata.row_group(index).total_byte_size) for index in range(metadata.num_row_groups))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * int(metadata.num_rows) // max(1, size)))


def _batch_to_rows(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch; None for one whose strings are not UTF-8."""
    try:
        rows = cast("list[dict[str, Any]]", batch.to_pylist())
        if "binary" in str(batch.schema):
            rows = [{name: _decoded(value) for name, value in row.items()} for row in rows]
        return cast("list[dict[str, Any] | None]", rows)
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [row for index in range(batch.num_rows) for row in _batch_to_rows(batch.slice(index, 1))]


def _decoded(value: Any) -> Any:
    """A value of Parquet with its bytes as UTF-8 text, as some programs store it; _NO_TEXT where they are none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return _NO_TEXT
    if isinstance(value, list | tuple):  # the entries of a map are pairs
        parts = [_decoded(part) for part in value]
        return _NO_TEXT if any(part is _NO_TEXT for part in parts) else parts
    if isinstance(value, dict):
        fields = {name: _decoded(part) for name, part in value.items()}
        return _NO_TEXT if any(part is _NO_TEXT for part in fields.values()) else fields
    return value


def _shorten(text: str, length: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= length else text[: length - 1] + "…"
