"""Locate sources and tell their kind of file: local paths, and files behind any fsspec URL."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

Kind = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"]
Compression = Literal["gz", "zst"]

# A .json in a folder of text is more often a setting or a report than a corpus, so that only rows are read from it.
TEXT_KINDS: tuple[Kind, ...] = ("txt", "jsonl", "csv", "tsv", "parquet")
ROW_KINDS: tuple[Kind, ...] = ("jsonl", "json", "csv", "tsv", "parquet")

_SUFFIX = re.compile(r"\.(?:(txt|jsonl|json|csv|tsv)(?:\.(gz|zst))?|(parquet))\Z", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WEB = ("http://", "https://")
_BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL that fsspec knows (s3://…, hf://…, https://…, memory://…)."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL, without the query of a web address."""
        path = urlsplit(self.url).path if self.url.startswith(_WEB) else self.url
        return path.rpartition("/")[2]

    def open(self) -> io.BufferedReader:
        """Open for reading bytes; whatever goes wrong, now or later, is an OSError."""
        system, path = file_system(self.url)
        with _as_os_error():
            return io.BufferedReader(_RemoteStream(system.open(path, "rb")), _BUFFER)

    def size(self) -> int | None:
        """Bytes, or None where the server does not say."""
        system, path = file_system(self.url)
        with _as_os_error():
            return cast("int | None", system.info(path)["size"])


SourceFile = Path | RemoteFile


def is_url(name: Path | str | RemoteFile) -> bool:
    """True for `protocol://…`, but file:///…, which is a path; a Path never is one: it has lost the second slash."""
    return isinstance(name, str) and _URL.match(name) is not None and not name.startswith("file://")


def file_kind(file: SourceFile) -> Kind | None:
    """Return the kind of a file by its name; None for a kind that is not supported."""
    match = _SUFFIX.search(file.name)
    return cast(Kind, (match[1] or match[3]).lower()) if match else None


def name_kinds(kinds: Sequence[Kind]) -> str:
    """Kinds of files by their suffixes, in words."""
    *packable, parquet = (f".{kind}" for kind in kinds)
    return f"{', '.join(packable)} (each also as .gz or .zst) and {parquet}"


def compression(file: SourceFile) -> Compression | None:
    """Return how a supported file is compressed, by its name."""
    match = _SUFFIX.search(file.name)
    return cast(Compression, match[2].lower()) if match and match[2] else None


def file_size(file: SourceFile) -> int | None:
    """Bytes as stored, or None where nobody says."""
    return file.stat().st_size if isinstance(file, Path) else file.size()


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it; ImportError or ValueError where there is none."""
    import fsspec

    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))


def list_url(url: str) -> list[RemoteFile] | None:
    """The files that a URL stands for: a file, a folder (with all below it) or a pattern; None for nothing.

    A web server cannot tell a folder from a file, so there a folder is a URL that ends in "/". Raises OSError.
    """
    system, path = file_system(url)
    with _as_os_error():
        if _is_folder(system, path, url):
            names = system.find(path)
        elif system.exists(path):
            names = [path]
        elif "*" in url or ("?" in url and not url.startswith(_WEB)):
            found = system.glob(path, detail=True).values()
            names = [item["name"] for item in found if item["type"] == "file"]
        else:
            return None
        return [RemoteFile(system.unstrip_protocol(name)) for name in names]


def _is_folder(system: Any, path: str, url: str) -> bool:
    return url.endswith("/") if url.startswith(_WEB) else system.isdir(path)


class _RemoteStream(io.RawIOBase):
    """A remote file as Python's own kind of stream, with OSError as its only kind of failure."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _as_os_error():
            return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Every file system has errors of its own kind, which have no other base in common than Exception."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
