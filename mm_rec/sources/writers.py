"""Write documents to one file, .txt or .jsonl, plain or compressed: whole or absent, and always the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from mm_rec.errors import DataError, needs_extra
from mm_rec.runs.files import atomic_path

SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")

DocumentWriter = Callable[[str], None]


def require_document_path(path: Path) -> None:
    """Raise DataError unless documents can be written under this name."""
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"documents are written as {', '.join(SUFFIXES)}; give --out such a name", path)
    if path.is_dir():
        raise DataError("this is a folder; give --out the name of a file", path)
    if path.name.endswith(".zst"):
        _zstandard()


@contextlib.contextmanager
def document_writer(path: Path) -> Iterator[DocumentWriter]:
    """Yield a function that writes one document; the file is there when all are written.

    In .txt a blank line stands between documents, and blank lines inside them become plain line ends, so that
    `--documents blank-line` reads back what was written. A row of .jsonl is {"text": …}.
    """
    require_document_path(path)
    if ".jsonl" in path.suffixes:
        with row_writer(path) as write_row:
            yield lambda text: write_row({"text": text})
    else:
        with atomic_path(path) as temporary, _open(temporary, path.suffix) as file:
            yield lambda text: _discard(file.write(f"{_one_block(text)}\n\n".encode()))


@contextlib.contextmanager
def row_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes one object as a line of JSON; the file is there when all are written."""
    with atomic_path(path) as temporary, _open(temporary, path.suffix) as file:
        yield lambda row: _discard(
            file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        )


def _discard(written: int) -> None:
    """Drop the count of bytes: a writer returns nothing."""


def _one_block(text: str) -> str:
    """The text without the blank lines that would cut it into several documents; every kind of line end is one."""
    return _BLANK_LINES.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n").strip())


@contextlib.contextmanager
def _open(path: Path, suffix: str) -> Iterator[IO[bytes]]:
    """Open a file for bytes that are compressed as the suffix says; no name and no time is stored in it."""
    with path.open("wb") as raw:
        if suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        elif suffix == ".zst":
            with _zstandard().ZstdCompressor(level=9).stream_writer(raw, closefd=False) as packed:
                yield packed
        else:
            yield raw


def _zstandard() -> Any:
    with needs_extra("data", "writing .zst files"):
        import zstandard
    return zstandard
