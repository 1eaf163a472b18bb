"""Download a corpus of the catalogue: rows are streamed from the hub, or from a local copy, into shards of text.

A shard is there whole or not at all, and `download.json` says after each how far the rows were read. So a download
that was stopped continues after its last shard and gives the same files as one that never stopped.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mm_rec.errors import ConfigError, DataError
from mm_rec.runs.files import read_json, remove_leftovers, write_json, write_text
from mm_rec.sources.catalogue import CatalogueEntry
from mm_rec.sources.hub import StreamPosition, iterate_rows, open_rows, resolve_commit
from mm_rec.sources.writers import document_writer, row_writer
from mm_rec.strict_parsing import parse_json

SHARD_BYTES = 64_000_000  # of text, before compression
RECORD = "download.json"
LICENCE = "LICENCE.md"

ShardFormat = Literal["jsonl.zst", "txt.gz"]
DownloadProgress = Callable[[int, int], None]  # bytes of text and rows since the last call

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_PROGRESS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """A set to fetch and the folder to put it in; `limit` is in bytes of text."""

    source: CatalogueEntry
    out: Path
    limit: int | None = None
    language: str | None = None
    split: str | None = None
    format: ShardFormat = "jsonl.zst"
    local: Path | None = None
    revision: str | None = None


@dataclass(slots=True)
class DownloadedShard:
    """One finished file: its documents, their bytes of text, and the rows read when it was finished."""

    file: str
    documents: int
    text_bytes: int
    rows: int


@dataclass(slots=True)
class DownloadRecord:
    """`download.json`: what was asked for, and how far it has come."""

    wanted: dict[str, str | None]
    licence: str
    licence_page: str
    commit: str | None
    complete: bool = False
    empty_rows: int = 0
    unreadable_rows: int = 0
    shards: list[DownloadedShard] = field(default_factory=list)
    position: dict[str, Any] | None = None

    @property
    def text_bytes(self) -> int:
        """Bytes of text in all shards."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(shard.documents for shard in self.shards)


def parse_size(text: str) -> int:
    """Bytes of a size such as 2GB, 500 MB or 1.5GB; raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)\s*", text.upper())
    size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= size < 2**63:
        raise ConfigError(f"--limit {text!r}: write a size such as 500MB or 2GB (units: {', '.join(_UNITS)})")
    return int(size)


def _no_progress(text_bytes: int, rows: int) -> None:
    """Ignore progress."""


def download(request: DownloadRequest, progress: DownloadProgress = _no_progress) -> DownloadRecord:
    """Fetch until the limit or the end of the set, going on where an earlier call stopped.

    The document that reaches the limit is the last. Raises DataError and ConfigError with the remedy where the set
    cannot be reached or read; the shards that are finished stay, and the same call continues after them.
    """
    record = _load_record(request)
    if record.complete or _limit_reached(record, request.limit):
        return record
    stream = _DocumentStream(request, record)
    write_text(request.out / LICENCE, _licence_text(request.source, record))
    with closing(iter(stream)) as documents:
        while not _limit_reached(record, request.limit):
            first = next(documents, None)
            if first is None:
                record.complete = True
                break
            record.shards.append(
                _write_shard(request, record, stream, itertools.chain([first], documents), progress)
            )
            _save(request, record, stream)
    _save(request, record, stream)
    if not record.shards:
        raise DataError(f"the set has no text: {stream.position.rows:,} rows were read", request.out)
    return record


def _limit_reached(record: DownloadRecord, limit: int | None) -> bool:
    return limit is not None and record.text_bytes >= limit


def _save(request: DownloadRequest, record: DownloadRecord, stream: _DocumentStream) -> None:
    record.position = asdict(stream.position)
    record.empty_rows, record.unreadable_rows = stream.empty, stream.unreadable
    write_json(request.out / RECORD, asdict(record))


def _load_record(request: DownloadRequest) -> DownloadRecord:
    """The record of an earlier call, checked against what is asked for now, or a new one."""
    source = request.source
    if source.row_fields and request.format != "jsonl.zst":
        raise ConfigError(
            f"{source.name} has rows of {', '.join(source.row_fields)}, which are kept as JSON: --format jsonl.zst"
        )
    wanted = {
        "set": source.name,
        "hub": source.hub,
        "language": source.choose_language(request.language),
        "split": request.split or source.split,
        "format": request.format,
        "local": None if request.local is None else str(request.local.absolute()),
        "revision": request.revision or source.revision,
    }
    remove_leftovers(request.out)
    path = request.out / RECORD
    if path.exists():
        return _resume_record(path, wanted)
    commit = None if request.local else resolve_commit(source, wanted["revision"])
    return DownloadRecord(wanted, source.licence, source.licence_page, commit)


def _resume_record(path: Path, wanted: dict[str, str | None]) -> DownloadRecord:
    values = read_json(path)
    try:
        record = DownloadRecord(
            **{**values, "shards": [DownloadedShard(**shard) for shard in values["shards"]]}
        )
    except (TypeError, KeyError) as error:
        raise DataError("this is not the record of a download; give --out another folder", path) from error
    for key, value in wanted.items():
        if record.wanted.get(key) != value:
            raise DataError(
                f"this folder holds a download with {key} {record.wanted.get(key)!r}, not {value!r}. "
                "Give --out another folder",
                path,
            )
    for shard in record.shards:
        if not (path.parent / shard.file).exists():
            raise DataError(
                "a finished shard is missing. Put it back, or delete the folder to start again",
                path.parent / shard.file,
            )
    return record


def _write_shard(
    request: DownloadRequest,
    record: DownloadRecord,
    stream: _DocumentStream,
    documents: Iterator[Any],
    progress: DownloadProgress,
) -> DownloadedShard:
    """Write documents until the shard is full, the limit is reached or there are no more."""
    name = f"{request.source.name}-{len(record.shards):05d}.{request.format}"
    room = SHARD_BYTES if request.limit is None else min(SHARD_BYTES, request.limit - record.text_bytes)
    count = size = told = 0
    rows = stream.position.rows
    open_writer = row_writer if request.source.row_fields else document_writer
    with open_writer(request.out / name) as write:
        for document in documents:
            write(document)
            count += 1
            size += _size(document)
            if size - told >= _PROGRESS_BYTES:
                progress(size - told, stream.position.rows - rows)
                told, rows = size, stream.position.rows
            if size >= room:
                break
    progress(size - told, stream.position.rows - rows)
    return DownloadedShard(name, count, size, stream.position.rows)


def _size(document: Any) -> int:
    """Bytes of a text, or of a row as JSON."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return len(text.encode())


class _DocumentStream:
    """The documents of a set from a position on: texts, or whole rows of a chat set; empty rows are counted."""

    def __init__(self, request: DownloadRequest, record: DownloadRecord) -> None:
        self._source = request.source
        self._where = str(request.local or request.source.hub)
        self._start = re.compile(self._source.document_start) if self._source.document_start else None
        self.position = StreamPosition(**record.position) if record.position else StreamPosition()
        self.empty = record.empty_rows
        self.unreadable = record.unreadable_rows
        self._rows = open_rows(
            request.source,
            language=record.wanted["language"],
            split=str(record.wanted["split"]),
            local=request.local,
            commit=record.commit,
            position=self.position,
        )

    def __iter__(self) -> Generator[Any, None, None]:
        with closing(iterate_rows(self._rows, self._source, self.position)) as rows:
            for row in rows:
                document = self._read(row)
                if document is not None:
                    yield document
        if self.position.pending:
            last, self.position.pending = self.position.pending, ""
            yield last

    def _read(self, row: dict[str, Any]) -> Any:
        """The document that a row gives, or None."""
        if self._source.layout == "jsonl":
            row = self._parse(row["text"])
        if not row:
            return None
        self._require_fields(row)
        if self._source.text_field is None:
            return self._readable(row)
        text = row[self._source.text_field]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"row {self.position.rows:,}: the field {self._source.text_field!r} is not a text "
                f"but {str(text)[:60]!r}",
                self._where,
            )
        if self._start is not None:
            return self._join(text or "")
        if not text or text.isspace():
            self.empty += 1
            return None
        return self._readable(text.strip("\n") if self._source.layout == "paragraphs" else text)

    def _parse(self, line: str) -> dict[str, Any]:
        """The object in a line of .jsonl; {} for one that is none."""
        try:
            row = parse_json(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            return row
        self.unreadable += 1
        return {}

    def _readable(self, document: Any) -> Any:
        """The document, or None where half a surrogate pair in it cannot be written."""
        try:
            _size(document)
        except UnicodeEncodeError:
            self.unreadable += 1
            return None
        return document

    def _join(self, line: str) -> str | None:
        """Collect lines; where one begins a new document, the one before it is whole."""
        if self._start is not None and self._start.match(line.rstrip("\n")) and self.position.pending.strip():
            whole, self.position.pending = self.position.pending, line
            return whole
        self.position.pending += line
        return None

    def _require_fields(self, row: dict[str, Any]) -> None:
        needed = self._source.row_fields or (str(self._source.text_field),)
        missing = [name for name in needed if name not in row]
        if missing:
            raise DataError(
                f"row {self.position.rows:,} has no field {missing[0]!r}; it has: {', '.join(map(repr, row))}. "
                f"{self._source.name} is read by that field: is this another set or another version of it?",
                self._where,
            )


def _licence_text(source: CatalogueEntry, record: DownloadRecord) -> str:
    """Return the note beside the shards: the licence, where it is written, and what to cite."""
    lines = [
        f"# {source.title}",
        "",
        f"Licence: {source.licence}.",
        f"Read it on its page before you use or pass on the text: {source.licence_page}",
        "",
        f"Set: {source.page}" + (f" (commit {record.commit})" if record.commit else ""),
    ]
    if source.cite:
        lines += ["", f"Cite: {source.cite}."]
    if source.note:
        lines += ["", source.note]
    return "\n".join(lines) + "\n"
