"""Read text files as blocks of whole lines: decompressed, checked and decoded as a stream, in bounded memory."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from mm_rec.sources.decompression import byte_pieces
from mm_rec.sources.encoding import HEAD_BYTES, not_text
from mm_rec.sources.locations import SourceFile, compression
from mm_rec.sources.problems import ProblemError, problem_error, too_large

Row = tuple[int, dict[str, Any]]  # the line or row where it starts, and its values by name

_PIECE = 2**16  # small enough for a processor's cache, which makes it twice as fast as a MiB
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
# A carriage return alone ends a line too, but what follows the last one of a piece is not known yet.
_LINE_END = re.compile(rb"\n|\r(?=[^\n])")


def read_lines(file: SourceFile, limit: int) -> Iterator[tuple[int, str | None]]:
    """Yield the numbered lines (from 1) of a UTF-8 file without their ends; None for one above `limit` bytes.

    Raises ProblemError where the file, or the rest of it, cannot be read.
    """
    for first, text in read_line_blocks(file, limit):
        if text is None:
            yield first, None
            continue
        parts = text.split("\n")
        if not parts[-1]:
            parts.pop()
        yield from enumerate(parts, start=first)


def read_line_blocks(file: SourceFile, limit: int) -> Iterator[tuple[int, str | None]]:
    """Runs of whole lines with the number of the first; (number, None) is a line above `limit` bytes.

    UTF-8; a byte-order mark where a line begins, of the file or of one that was joined to it, is left out; each line
    ends with "\\n", however the file has it. Memory: what a line of `limit` bytes needs. Raises ProblemError where the
    file, or the rest of it, cannot be read.
    """
    line, head, multibyte, empty = 1, b"", False, True
    try:
        for offset, stored in _whole_lines(byte_pieces(file, min(_PIECE, limit)), limit):
            if stored is None:
                yield line, None
                line, empty = line + 1, False
                continue
            head = head or stored[:HEAD_BYTES]
            text, bad = _decode(stored)
            multibyte = multibyte or not text.isascii()
            if text:
                yield line, text
                line, empty = line + text.count("\n"), False
            if bad:
                raise not_text(file, head, line, offset + bad.start, stored[bad], multibyte)
    except (EOFError, zlib.error, OSError) as error:
        raise _reading_error(file, line, error) from error
    if empty:
        raise problem_error("empty", "the file is empty. Put text in it or leave it out", file)


def unreadable(file: SourceFile, error: OSError) -> ProblemError:
    """The error for a file that the system does not let us read."""
    message = f"the file cannot be read ({error.strerror or error}). Check the name and your rights"
    return problem_error("unreadable", message, file)


def _reading_error(file: SourceFile, line: int, error: Exception) -> ProblemError:
    """The error for a file that broke off before `line`."""
    if isinstance(error, OSError):
        return unreadable(file, error)
    program = "zstd" if compression(file) == "zst" else "gzip"
    if isinstance(error, EOFError):
        return problem_error(
            "truncated",
            f"the compressed file ends too early, after {line - 1} whole lines: a download or a copy was "
            f"probably cut short. Fetch it again ({program} -t FILE tests it)",
            file,
            line,
        )
    return problem_error(
        "damaged",
        f"this is not a sound {program} file ({error}). Fetch it again, or rename it if it is not compressed "
        f"({program} -t FILE tests it)",
        file,
        line,
    )


def _decode(raw: bytes) -> tuple[str, slice | None]:
    """The text up to the first line that is not UTF-8 or holds a zero byte, and where that line lies."""
    position, bad = raw.find(b"\0"), None
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        position = error.start if position < 0 else min(position, error.start)
    if position >= 0:
        bad = slice(raw.rfind(b"\n", 0, position) + 1, raw.find(b"\n", position) + 1 or len(raw))
        text = raw[: bad.start].decode()
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (_MARKS.sub("", text) if "\ufeff" in text else text), bad


def _whole_lines(pieces: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """A stream of bytes cut after line ends: (offset, lines), or (offset, None) for a line above `limit` bytes.

    No piece may be larger than `limit`. A line's end counts with it.
    """
    held: list[bytes] = []  # the beginning of a line, unless it is too long already
    size, offset = 0, 0  # how long it is so far, where it starts
    for piece in pieces:
        start, end = 0, _last_line_end(piece)
        if not end:
            size += len(piece)
            held.append(piece)
            if size > limit:
                held.clear()
            continue
        if size + end > limit and (first := _first_line_end(piece)) + size > limit:
            yield offset, None
            held, size, offset, start = [], 0, offset + size + first, first
        if start < end:
            yield offset, b"".join((*held, piece[start:end]))
            offset += size + end - start
        held, size = [piece[end:]], len(piece) - end
    if size > limit:
        yield offset, None
    elif size:
        yield offset, b"".join(held)


def _first_line_end(piece: bytes) -> int:
    match = _LINE_END.search(piece)
    assert match
    return match.end()


def _last_line_end(piece: bytes) -> int:
    return max(piece.rfind(b"\n"), piece.rfind(b"\r", 0, len(piece) - 1)) + 1


def read_whole_text(path: SourceFile, limit: int) -> str:
    """The text of a whole file of at most `limit` characters."""
    parts: list[str] = []
    size = 0
    for _, text in read_line_blocks(path, limit):
        size += 0 if text is None else len(text)
        if text is None or size > limit:
            raise too_large(path, 1, limit, "file")
        parts.append(text)
    return "".join(parts)
