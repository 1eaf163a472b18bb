"""Read rows of tables: files with named columns, .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any, cast

from mm_rec.errors import needs_extra
from mm_rec.sources.decompression import open_bytes
from mm_rec.sources.line_reader import Row, read_lines, unreadable
from mm_rec.sources.locations import SourceFile, file_kind
from mm_rec.sources.problems import ProblemError, ProblemHandler, problem_error, shorten, too_large

_BATCH_BYTES = 16 * 2**20  # of a Parquet file, decoded at once
_BATCH_ROWS = 1024
_READ_BYTES = 2**20  # of it, read at once
_NO_TEXT = object()  # stands for bytes that are not UTF-8


def csv_rows(path: SourceFile, limit: int, report: ProblemHandler, field: str | None) -> Iterator[Row]:
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
        f"this row has {len(values)} fields and the header {len(header)}: {shorten(' | '.join(values))!r}. "
        'A field that holds a separator stands in "…"',
        path,
        number,
    )


def parquet_rows(path: SourceFile, report: ProblemHandler, field: str | None) -> Iterator[Row]:
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
