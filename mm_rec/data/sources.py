"""Local text sources: files, folders and globs of .txt and .jsonl, plain or gzipped, read as a stream.

Reading is the check: `read_documents` raises DataError at the first thing that cannot be used, and the pass
that plans the train/validation split reads every byte, so bad input is found before anything is written and
no separate scan is needed.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TextIO, cast

from mm_rec.errors import DataError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
DocumentsRule = Literal["file", "blank-line", "line"]

_TURKISH_BYTES = frozenset("ğışĞİŞ".encode("cp1254"))
_CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1a\x1b")
_HEAD_BYTES = 4096
_CONVERSIONS = {
    ".json": "write one object a line: jq -c '.[]' FILE.json > FILE.jsonl",
    ".zst": "unpack it first: zstd -d FILE.zst",
    ".bz2": "unpack it first: bunzip2 FILE.bz2",
    ".xz": "unpack it first: unxz FILE.xz",
    ".zip": "unpack it first: unzip FILE.zip",
    ".md": "if it is plain text, give it the suffix .txt",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its text, and the file and line (from 1) where it starts."""

    text: str
    path: Path
    line: int


@dataclass(slots=True)
class ReadCounts:
    """What a reading pass met: documents given out, and whitespace-only documents skipped."""

    documents: int = 0
    blank: int = 0


def find_files(paths: Iterable[Path | str]) -> list[Path]:
    """Resolve files, folders (recursively, hidden names left out) and globs to a sorted list without repeats.

    Folders and globs give their supported files; a file named directly must be supported. Raises DataError
    where an argument leads to nothing.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for file in _expand(Path(path).expanduser()):
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError(f"no text files were given. Name files, folders or globs of {_supported()}")
    return sorted(found.values(), key=Path.as_posix)


def documents_rule(files: Sequence[Path], chosen: DocumentsRule | None = None) -> DocumentsRule:
    """What a document is in .txt: the choice, or "file", or "blank-line" where there is one .txt file."""
    if chosen is not None:
        return chosen
    return "blank-line" if sum(not _is_jsonl(file) for file in files) == 1 else "file"


def read_documents(
    paths: Iterable[Path | str],
    text_field: str = "text",
    documents: DocumentsRule | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[Document]:
    """Stream the documents of all files in sorted order, holding one document in memory at a time.

    .txt is UTF-8 (a byte-order mark is stripped, line ends become "\\n") cut by the `documents` rule; each
    line of .jsonl is an object whose `text_field` is the text, unchanged. Whitespace-only documents are
    skipped and counted in `counts`. Raises DataError with file, line and remedy for anything that cannot be
    used.
    """
    files = find_files(paths)
    rule = documents_rule(files, documents)
    counts = ReadCounts() if counts is None else counts
    for path in files:
        for line, text in _jsonl_texts(path, text_field) if _is_jsonl(path) else _txt_texts(path, rule):
            if text.isspace() or not text:
                counts.blank += 1
                continue
            counts.documents += 1
            yield Document(text, path, line)


def _supported() -> str:
    return ", ".join(SUFFIXES)


def _is_supported(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().endswith((".jsonl", ".jsonl.gz"))


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _expand(path: Path) -> list[Path]:
    """The files that one argument stands for."""
    if path.is_dir():
        return _walk(path)
    if path.exists():
        if not _is_supported(path):
            remedy = _CONVERSIONS.get(path.suffix.lower(), "convert it to one of them")
            raise DataError(f"this kind of file is not supported (supported: {_supported()}); {remedy}", path)
        return [path]
    if not glob.has_magic(str(path)):
        raise DataError("there is no such file or folder. Check the name", path)
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = [
        file for match in matches for file in (_walk(match, required=False) if match.is_dir() else [match])
    ]
    files = [file for file in files if _is_supported(file)]
    if not files:
        met = (
            f"{len(matches)} names match this pattern, none of them" if matches else "nothing that matches is"
        )
        raise DataError(f"{met} a text file ({_supported()}). Check the pattern", path)
    return files


def _walk(folder: Path, required: bool = True) -> list[Path]:
    """The supported, not hidden files under a folder, links to folders followed once."""
    files: list[Path] = []
    others = 0
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(parent, name) for name in names if not name.startswith(".")]
        files += [path for path in visible if _is_supported(path)]
        others += sum(not _is_supported(path) for path in visible)
    if required and not files:
        held = f"{others} files of other kinds" if others else "no files"
        raise DataError(f"no text found: the folder holds {held}. Supported: {_supported()}", folder)
    return files


def _txt_texts(path: Path, rule: DocumentsRule) -> Iterator[tuple[int, str]]:
    """The documents of a .txt file, each with the line where it starts."""
    if rule == "file":
        yield 1, "".join(line for _, line in _lines(path))
    elif rule == "line":
        for number, line in _lines(path):
            yield number, line.rstrip("\n")
    else:
        yield from _paragraphs(path)


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """The runs of lines between blank lines."""
    lines: list[str] = []
    start = 1
    for number, line in _lines(path):
        if not line.isspace():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield start, "".join(lines).rstrip("\n")
            lines = []
    if lines:
        yield start, "".join(lines).rstrip("\n")


def _jsonl_texts(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The text field of every row of a .jsonl file; empty lines between rows are passed over."""
    for number, line in _lines(path):
        if not line.isspace():
            yield number, _row_text(line, field, path, number)


def _row_text(row: str, field: str, path: Path, line: int) -> str:
    """The text of one JSON row; raises DataError where the row or its field cannot be used."""
    try:
        value = json.loads(row)
    # A number with too many digits is a plain ValueError, brackets nested too deep a RecursionError.
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"this row is not JSON ({error}): {_shorten(row)!r}. A .jsonl file has one whole object a line; "
            "`jq -c . FILE > NEW.jsonl` rewrites pretty-printed JSON, otherwise mend or delete the row",
            path,
            line,
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"this row is a JSON {type(value).__name__}, not an object: {_shorten(row)!r}. "
            f'Write each row as {{"{field}": "…"}}',
            path,
            line,
        )
    if field not in value:
        fields = ", ".join(map(repr, value)) or "none"
        raise DataError(
            f"this row has no field {field!r}; it has: {fields}. Choose one with --text-field", path, line
        )
    text = value[field]
    if not isinstance(text, str):
        raise DataError(
            f"the field {field!r} is not a string but {_shorten(json.dumps(text))}. "
            "Choose another with --text-field, or mend or delete the row",
            path,
            line,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the field {field!r} holds half of a surrogate pair ({text[error.start]!a}) at character "
            f"{error.start}, which is no character; an emoji was probably cut in two. Mend or delete the row",
            path,
            line,
        ) from error
    return text


def _shorten(text: str, length: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= length else text[: length - 1] + "…"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file with their "\\n"; every failure to read it leaves as a DataError."""
    number = 0
    try:
        with _open_text(path) as handle:
            for number, line in enumerate(handle, start=1):
                if "\0" in line:
                    raise _encoding_error(path)
                yield number, line
    except UnicodeDecodeError as error:
        raise _encoding_error(path) from error
    except EOFError as error:
        raise DataError(
            f"the compressed file ends too early, after {number} whole lines: a download or a copy was "
            "probably cut short. Fetch it again (gzip -t FILE tests it)",
            path,
            number + 1,
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"this is not a sound gzip file ({error}). Fetch it again, or rename it if it is not compressed "
            "(gzip -t FILE tests it)",
            path,
            number + 1,
        ) from error
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error}). Check the name and your rights", path
        ) from error
    if number == 0:
        raise DataError("the file is empty. Put text in it or leave it out", path)


def _open_text(path: Path) -> TextIO:
    if _is_gzip(path):
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


def _open_bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_gzip(path) else path.open("rb")


def _encoding_error(path: Path) -> DataError:
    """Why a file is not UTF-8 text: the byte, a guess at what it is, and the command that mends it."""
    # Where a compressed file also ends too early, what could be read is judged.
    head, offset, multibyte = b"", 0, False
    with contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile), _open_bytes(path) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        if known := _known_format(path, head):
            return known
        for number, raw in enumerate(file, start=1):
            if b"\0" in raw:
                return _binary_error(path, number, offset + raw.index(b"\0"))
            try:
                multibyte |= len(raw.decode("utf-8")) < len(raw)
            except UnicodeDecodeError as error:
                if _looks_binary(head):
                    return _binary_error(path, number, offset + error.start)
                return _wrong_byte_error(path, number, offset, raw, error, multibyte)
            offset += len(raw)
    return DataError("the file changed while it was read. Run it again", path)


def _known_format(path: Path, head: bytes) -> DataError | None:
    """The error for a file whose first bytes say what it is."""
    wide = _wide_encoding(head)
    if wide:
        return DataError(
            f"the file is {wide}, not UTF-8 (seen at byte 0). Convert it: {_iconv(path, wide)}", path, 1
        )
    if head.startswith(b"\x1f\x8b"):
        return DataError("the file is gzip-compressed. Give it a name that ends in .gz", path)
    return None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 told by the byte-order mark, or by zero bytes that stand at every second place."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd, pairs = head[0::2].count(0), head[1::2].count(0), len(head) // 2
    if pairs and max(even, odd) > 0.4 * pairs and min(even, odd) < 0.02 * pairs:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return None


def _looks_binary(head: bytes) -> bool:
    """True where more than 1 % of the first bytes are control characters, which no text has."""
    return sum(byte in _CONTROL_BYTES for byte in head) > len(head) / 100


def _binary_error(path: Path, line: int, offset: int) -> DataError:
    return DataError(
        f"this is a binary file, not text (byte {offset} cannot stand in a text). "
        "Leave it out, or extract its text into a UTF-8 .txt",
        path,
        line,
    )


def _wrong_byte_error(
    path: Path, line: int, offset: int, raw: bytes, error: UnicodeDecodeError, multibyte: bool
) -> DataError:
    """The error for text in another encoding, or for UTF-8 with a damaged place."""
    place = f"byte {offset + error.start} (0x{raw[error.start]:02X}) is not UTF-8"
    if error.reason == "unexpected end of data" and error.end == len(raw):
        return DataError(
            f"the file ends in the middle of a character ({place}): it was probably cut short. Fetch it "
            f"again, or drop the broken character: {_iconv(path, 'UTF-8', '-c ')}",
            path,
            line,
        )
    if multibyte:
        return DataError(
            f"{place}, though the text before it is: the file is damaged here, or joined from files of "
            f"different encodings. Drop such bytes: {_iconv(path, 'UTF-8', '-c ')}",
            path,
            line,
        )
    nearby = raw[max(0, error.start - 15) : error.start + 15].strip()
    turkish = any(byte in _TURKISH_BYTES for byte in raw)
    readings = " or ".join(
        f"{nearby.decode(encoding, errors='replace')!r} ({encoding})" for encoding in ("cp1254", "latin-1")
    )
    return DataError(
        f"{place}; the file is in another encoding, likely cp1254 (Turkish) or latin-1: it reads {readings}. "
        f"Convert it: {_iconv(path, 'CP1254' if turkish else 'LATIN1')}",
        path,
        line,
    )


def _iconv(path: Path, encoding: str, option: str = "") -> str:
    """The shell line that rewrites a file as UTF-8 beside the old one."""
    convert = f"iconv {option}-f {encoding} -t UTF-8"
    stem, _, suffixes = path.name.partition(".")
    target = path.with_name(f"{stem}.utf8.{suffixes}")
    if _is_gzip(path):
        return f"gzip -dc '{path}' | {convert} | gzip > '{target}'"
    return f"{convert} '{path}' > '{target}'"
