"""A token corpus: text encoded once, in memory-mapped shards with an index of documents.

A corpus is a folder. Each shard is three files: `00000.bin` (token ids), `00000.index.npy` (int64, where each
document starts in the shard) and `00000.json` (what the shard is made of; written last, so a shard without it
is not there). `corpus.json` is written when every shard is whole; a folder without it is no corpus.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.token_shards import MANIFEST, CorpusHeader, ShardText, ShardWriter, TokenShard, find_damage
from mm_rec.errors import DataError, TokenizerError
from mm_rec.runs.files import hash_file, read_json
from mm_rec.tokenizers.loading import fingerprint, vocabulary_size

FORMAT = 1
SHARD_BYTES = 16 * 2**20
_OPEN_SHARDS = 200  # memory maps held at once; each keeps a file open, and 1,024 open files is a common limit


class Corpus:
    """A finished corpus, read as one long row of tokens: the concatenation of its shards."""

    def __init__(self, path: Path, header: CorpusHeader, shards: list[TokenShard]) -> None:
        self.path = path
        self.header = header
        self.shards = shards
        self.tokens = sum(shard.tokens for shard in shards)
        self.documents = sum(shard.documents for shard in shards)
        self.text_bytes = sum(shard.text_bytes for shard in shards)
        self._shard_offsets = np.cumsum([0, *(shard.tokens for shard in shards)])
        self._ids = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._map_ids)
        self._starts = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._map_starts)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a corpus and check all file sizes; raises DataError where it is unfinished or damaged."""
        if not (path / MANIFEST).is_file():
            raise DataError(
                "there is no finished corpus here (no corpus.json). Make it: mmrec data tokenize", path
            )
        values = read_json(path / MANIFEST)
        version = values.get("format") if isinstance(values, dict) else None
        if version != FORMAT:
            raise DataError(
                f"this is corpus format {version}, and {FORMAT} is read here. Tokenize again", path
            )
        try:
            shards = [TokenShard(**shard) for shard in values.pop("shards")]
            corpus = cls(path, CorpusHeader(**values), shards)
        except (KeyError, TypeError) as error:
            raise DataError(f"corpus.json is damaged ({error}). Tokenize again", path) from error
        for number, shard in enumerate(shards):
            problem = find_damage(path, shard, np.dtype(corpus.header.dtype), number)
            if problem:
                raise DataError(f"the corpus is damaged: {problem}. Tokenize again", path / shard.name)
        return corpus

    @property
    def specials(self) -> Counter[str]:
        """Special tokens that are written out in the text, with how often."""
        return sum((Counter(shard.specials) for shard in self.shards), Counter())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over tokenizer and shards: equal where documents, tokens, order and shards are the same."""
        values = [self.header.tokenizer, self.header.dtype]
        values += [digest for shard in self.shards for digest in (shard.sha256, shard.index_sha256)]
        return hashlib.sha256("\n".join(values).encode()).hexdigest()

    def verify(self) -> None:
        """Check every file's content by its hash (reads everything); raises DataError where it differs."""
        for shard in self.shards:
            for name, expected in (
                (f"{shard.name}.bin", shard.sha256),
                (f"{shard.name}.index.npy", shard.index_sha256),
            ):
                if hash_file(self.path / name) != expected:
                    raise DataError(
                        "the corpus is damaged: the content has changed. Tokenize again", self.path / name
                    )

    def require_tokenizer(self, tokenizer_fingerprint: str) -> None:
        """Raise TokenizerError unless the corpus was made with this tokenizer."""
        if tokenizer_fingerprint != self.header.tokenizer:
            raise TokenizerError(
                f"{self.path} was made with tokenizer {self.header.tokenizer[:12]}, not with this one "
                f"({tokenizer_fingerprint[:12]}). Use that tokenizer, or tokenize the text again"
            )

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start … stop − 1 of the whole corpus, as int64 of shape (stop − start,)."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        parts = [self._ids(shard)[low:high] for shard, low, high in self._shard_ranges(start, stop)]
        return np.concatenate(parts, dtype=np.int64, casting="safe") if parts else np.empty(0, np.int64)

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions start ≤ p < stop where a document starts, counted from the corpus's first token."""
        parts = []
        for shard, low, high in self._shard_ranges(start, stop):
            starts = self._starts(shard)
            first, last = np.searchsorted(starts, (low, high))
            parts.append(starts[first:last] + self._shard_offsets[shard])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _shard_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards that hold tokens start … stop − 1, each with its own first and last + 1."""
        shard = int(np.searchsorted(self._shard_offsets, start, side="right")) - 1
        while start < stop:
            offset, end = int(self._shard_offsets[shard]), min(stop, int(self._shard_offsets[shard + 1]))
            yield shard, start - offset, end - offset
            shard, start = shard + 1, end

    # Plain arrays over the maps: slicing a np.memmap costs several times as much.
    def _map_ids(self, shard: int) -> NDArray[Any]:
        return np.asarray(
            np.memmap(self.path / f"{self.shards[shard].name}.bin", dtype=self.header.dtype, mode="r")
        )

    def _map_starts(self, shard: int) -> NDArray[np.int64]:
        return np.asarray(np.load(self.path / f"{self.shards[shard].name}.index.npy", mmap_mode="r"))


def write_corpus(
    documents: Iterable[str],
    tokenizer: Any,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    settings: Mapping[str, Any] | None = None,
    parse_specials: bool = False,
    expected_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Encode documents as `encode_documents` does into shards of about `shard_bytes` of text, in parallel.

    Shards already in `out` whose tokenizer, `settings` and text are the same are kept, so a killed call
    continues where it stopped; everything else of a corpus in `out` is replaced. The files do not depend on
    `threads` (default: one a core); `parse_specials` is that of `encode_documents`. Memory holds about `threads` + 2
    shards. The disk is checked for `expected_bytes` of text before anything is written; `progress` receives the text
    bytes of each finished shard. One process a folder.
    """
    threads = threads or os.cpu_count() or 1
    settings = {**(settings or {}), **({"parse_specials": True} if parse_specials else {})}
    writer = ShardWriter(out, tokenizer, _header(tokenizer, shard_bytes, settings))
    writer.prepare(expected_bytes or 0)
    shards: list[TokenShard] = []
    pending: deque[Future[TokenShard]] = deque()

    def finish_oldest() -> None:
        shards.append(pending.popleft().result())
        if progress is not None:
            progress(shards[-1].text_bytes)

    with ThreadPoolExecutor(threads, thread_name_prefix="tokenize") as pool:
        try:
            for number, shard_text in enumerate(_split_into_shards(documents, shard_bytes)):
                if len(pending) > threads:
                    finish_oldest()
                pending.append(pool.submit(writer.write_shard, number, shard_text))
            while pending:
                finish_oldest()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    writer.finish(shards)
    return Corpus.open(out)


def _split_into_shards(documents: Iterable[str], shard_bytes: int) -> Iterator[ShardText]:
    """Cut a stream of documents into pieces of at least `shard_bytes` (the last may be smaller)."""
    texts: list[str] = []
    size, digest = 0, hashlib.sha256()
    for text in documents:
        encoded = text.encode("utf-8")
        texts.append(text)
        size += len(encoded)
        # The length makes the hash see the borders between documents too.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
        if size >= shard_bytes:
            yield ShardText(texts, size, digest.hexdigest())
            texts, size, digest = [], 0, hashlib.sha256()
    if texts:
        yield ShardText(texts, size, digest.hexdigest())


def _header(tokenizer: Any, shard_bytes: int, settings: Mapping[str, Any]) -> CorpusHeader:
    """The header of a new corpus; the padding id falls back on the end-of-text id."""
    vocab_size = vocabulary_size(tokenizer)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad_id is None:
        raise TokenizerError(
            "the tokenizer has neither a padding nor an end-of-text token. Train one with mmrec"
        )
    return CorpusHeader(
        format=FORMAT,
        tokenizer=fingerprint(tokenizer),
        vocab_size=vocab_size,
        dtype="uint16" if vocab_size <= 2**16 else "uint32",
        pad_id=int(pad_id),
        # Through JSON and back, so that it can be compared with what is read from a file.
        settings=json.loads(json.dumps({"shard_bytes": shard_bytes, **settings})),
    )
