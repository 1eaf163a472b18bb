"""Read rows of JSON: .jsonl, an object a line, and .json, an array or one object after another."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from mm_rec.sources.line_reader import Row, read_lines, read_whole_text
from mm_rec.sources.locations import SourceFile
from mm_rec.sources.problems import ProblemError, ProblemHandler, problem_error, shorten, too_large
from mm_rec.strict_parsing import JSON_DECODER, DuplicateKey, with_line_numbers

_JSON_GAP = re.compile(r"[\s,]*")


def jsonl_rows(path: SourceFile, limit: int, report: ProblemHandler) -> Iterator[Row]:
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
        raise problem_error("duplicate-key", f"{error}: {shorten(line)!r}", path, number) from error
    # A number with too many digits is a plain ValueError, brackets nested too deep a RecursionError.
    except (ValueError, RecursionError) as error:
        remedy = "`jq -c . FILE > NEW.jsonl` rewrites pretty-printed JSON, otherwise mend or delete the row"
        if "\ufeff" in line:
            remedy = (
                "Files were joined here without a line end between (U+FEFF begins the second): put one there"
            )
        raise problem_error(
            "not-json",
            f"this row is not JSON ({error}): {shorten(line)!r}. A .jsonl file has one whole object a line; {remedy}",
            path,
            number,
        ) from error
    return _require_object(value, line, path, number)


def _require_object(value: Any, text: str, path: SourceFile, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise problem_error(
            "not-json",
            f"this row is a JSON {type(value).__name__}, not an object: {shorten(text)!r}. "
            'Write each row as an object, for example {"text": "…"}',
            path,
            line,
        )
    return value


def json_rows(path: SourceFile, limit: int, report: ProblemHandler) -> Iterator[Row]:
    """The objects of a .json file, one array of them or one after another, with the lines where they start.

    The text of the whole file is held in memory. After a row that is not JSON, reading goes on at the next line that
    opens an object as far from the margin as that row.
    """
    text = read_whole_text(path, sys.maxsize)
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
