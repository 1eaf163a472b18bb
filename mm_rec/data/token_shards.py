"""The shards of a token corpus: their records, and the writer that keeps the whole ones and makes the others."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_rec.errors import DataError, TokenizerError
from mm_rec.runs.files import atomic_path, read_json, remove, remove_leftovers, require_free_space, write_json
from mm_rec.tokenizers.loading import count_special_tokens, encode_documents

MANIFEST = "corpus.json"
_BATCH_CHARACTERS = 2**20  # text given to the encoder at once: its own objects take about 100 bytes a token
_SHARD_FILE = re.compile(r"(\d{5,})\.(?:bin|index\.npy|json)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShard:
    """One shard: counts, bytes of UTF-8 text, and hashes of the text and of both files.

    `specials`: special tokens that are written out in the text, and so are text, with how often.
    """

    name: str
    tokens: int
    documents: int
    text_bytes: int
    text_hash: str
    sha256: str
    index_sha256: str
    specials: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusHeader:
    """The settings that all shards of a corpus share; a shard made under another header is never used."""

    format: int
    tokenizer: str
    vocab_size: int
    dtype: str
    pad_id: int
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShardText:
    """The text of one shard."""

    texts: list[str]
    size: int
    digest: str


class ShardWriter:
    """Writes the shards of one corpus; `write_shard` may be called from several threads."""

    def __init__(self, out: Path, tokenizer: Any, header: CorpusHeader) -> None:
        self.out = out
        self.tokenizer = tokenizer
        self.header = header
        self.dtype = np.dtype(header.dtype)

    def prepare(self, expected_bytes: int) -> None:
        """Remove unfinished shards and those of another header, then check the disk for what is to come."""
        self.out.mkdir(parents=True, exist_ok=True)
        # The first call may switch off the tokenizer's truncation, which several threads must not do at once.
        encode_documents(self.tokenizer, [])
        kept = 0
        for name in self._shard_names():
            known = self._read_shard(name)
            if known is None:
                self._delete_shard(name)
            else:
                kept += known.text_bytes
        remove_leftovers(self.out)
        # About three bytes of text a token; each shard is checked again with its own size.
        needed = (expected_bytes - kept) // 3 * self.dtype.itemsize
        if needed > 0:
            require_free_space(self.out, needed, "tokenizing the text")

    def write_shard(self, number: int, shard_text: ShardText) -> TokenShard:
        """Keep the shard of this number if it was made of the same text, or encode and write it."""
        name = f"{number:05d}"
        known = self._read_shard(name)
        made_of = shard_text.digest, len(shard_text.texts)
        if known is not None and (known.text_hash, known.documents) == made_of:
            return known
        ids, index = self._encode(shard_text)
        token_bytes, index_bytes = ids.tobytes(), _npy(index)
        shard = TokenShard(
            name=name,
            tokens=len(ids),
            documents=len(index),
            text_bytes=shard_text.size,
            text_hash=shard_text.digest,
            sha256=hashlib.sha256(token_bytes).hexdigest(),
            index_sha256=hashlib.sha256(index_bytes).hexdigest(),
            specials=dict(count_special_tokens(self.tokenizer, shard_text.texts)),
        )
        self._write(shard, token_bytes, index_bytes)
        return shard

    def _write(self, shard: TokenShard, token_bytes: bytes, index_bytes: bytes) -> None:
        """Put the three files of a shard in place, its record last."""
        require_free_space(self.out, len(token_bytes) + len(index_bytes), "writing a shard")
        self._delete_shard(shard.name)
        # write_bytes and not ndarray.tofile, whose error on a full disk does not say that the disk is full.
        for suffix, content in ((".bin", token_bytes), (".index.npy", index_bytes)):
            with atomic_path(self.out / (shard.name + suffix)) as temporary:
                temporary.write_bytes(content)
        record = {"corpus": dataclasses.asdict(self.header), **dataclasses.asdict(shard)}
        write_json(self.out / f"{shard.name}.json", record)

    def finish(self, shards: list[TokenShard]) -> None:
        """Remove shards past the last one and write `corpus.json`."""
        if not shards:
            raise DataError("there is no document to tokenize. Give more text", self.out)
        for name in self._shard_names() - {shard.name for shard in shards}:
            self._delete_shard(name)
        manifest = {
            **dataclasses.asdict(self.header),
            "shards": [dataclasses.asdict(shard) for shard in shards],
        }
        write_json(self.out / MANIFEST, manifest)

    def _encode(self, shard_text: ShardText) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Token ids of all documents in a row, and where each starts."""
        parse = bool(self.header.settings.get("parse_specials"))
        rows = [
            row
            for texts in _batches(shard_text.texts)
            for row in encode_documents(self.tokenizer, texts, parse)
        ]
        assert len(rows) == len(shard_text.texts)
        ids = np.concatenate(rows)
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        assert lengths.min() > 0
        if ids.max() >= self.header.vocab_size or ids.min() < 0:
            raise TokenizerError(
                f"the tokenizer gives the id {ids.max()}, and its vocabulary has {self.header.vocab_size} "
                "entries. Its files do not belong together: train or fetch it again"
            )
        return ids.astype(self.dtype), np.cumsum(lengths) - lengths

    def _shard_names(self) -> set[str]:
        """The names of all shards of which any file is there."""
        matches = (_SHARD_FILE.fullmatch(path.name) for path in self.out.iterdir())
        return {match.group(1) for match in matches if match}

    def _read_shard(self, name: str) -> TokenShard | None:
        """The record of a whole shard of this header; None where it is absent, broken or of another."""
        try:
            values = read_json(self.out / f"{name}.json")
            header = values.pop("corpus")
            shard = TokenShard(**values)
        except (DataError, KeyError, TypeError, AttributeError):
            return None
        whole = header == dataclasses.asdict(self.header) and not find_damage(
            self.out, shard, self.dtype, int(name)
        )
        return shard if whole else None

    def _delete_shard(self, name: str) -> None:
        """Delete a shard after `corpus.json` and its own record, so that nothing vouches for what is gone."""
        for file in (MANIFEST, f"{name}.json", f"{name}.bin", f"{name}.index.npy"):
            remove(self.out / file)


def find_damage(path: Path, shard: TokenShard, dtype: np.dtype[Any], number: int) -> str | None:
    """Describe damage to the files of a shard, judged by their sizes, or None."""
    if shard.name != f"{number:05d}":
        return f"shard {number} is called {shard.name}"
    for name, size in (
        (f"{shard.name}.bin", shard.tokens * dtype.itemsize),
        (f"{shard.name}.index.npy", None),
    ):
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        expected = len(_npy(np.empty(0, np.int64))) + shard.documents * 8 if size is None else size
        if file.stat().st_size != expected:
            return f"{name} has {file.stat().st_size:,} bytes instead of {expected:,}"
    return None


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Runs of texts of about `_BATCH_CHARACTERS`."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
