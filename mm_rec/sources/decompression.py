"""Decompress the bytes of a source as a stream of pieces."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, cast

from mm_rec.errors import needs_extra
from mm_rec.sources.locations import RemoteFile, SourceFile, compression

# zstd may expand four bytes to 128 KiB, so that what is decompressed at once stays small only if this does.
_ZSTD_FEED = 4096


def open_bytes(file: SourceFile) -> IO[bytes]:
    """Open a local or remote file as it is stored; raises OSError."""
    return file.open() if isinstance(file, RemoteFile) else file.open("rb")


def byte_pieces(file: SourceFile, most: int) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces of at most `most` bytes, each as soon as it is there.

    Raises EOFError where a compressed file ends too early, zlib.error where it is damaged, OSError where it
    cannot be read.
    """
    with open_bytes(file) as stored:
        kind = compression(file)
        if kind == "zst":
            yield from _zstd_pieces(stored, most)
        elif kind == "gz":
            yield from _gzip_pieces(stored, most)
        else:
            yield from _pieces(stored, most)


def _pieces(stored: IO[bytes], most: int) -> Iterator[bytes]:
    # Reading once, not until `most` bytes are there: what was read before a break is not lost to its error.
    while piece := stored.read1(most):  # type: ignore[attr-defined]
        yield piece


def _gzip_pieces(stored: IO[bytes], most: int) -> Iterator[bytes]:
    try:
        yield from _pieces(cast(IO[bytes], gzip.GzipFile(fileobj=stored)), most)
    except gzip.BadGzipFile as error:
        raise zlib.error(str(error)) from error


def _zstd_pieces(stored: IO[bytes], most: int) -> Iterator[bytes]:
    """Frame by frame, because zstandard's own stream reader takes a file that was cut short for a whole one."""
    with needs_extra("data", "reading .zst files"):
        import zstandard
    decoder = None
    try:
        while data := stored.read(_ZSTD_FEED):
            while data:
                decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
                piece = decoder.decompress(data)
                for start in range(0, len(piece), most):
                    yield piece[start : start + most]
                data, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    except zstandard.ZstdError as error:
        raise zlib.error(str(error)) from error
    if decoder is not None:
        raise EOFError
