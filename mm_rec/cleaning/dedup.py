"""Find duplicates among documents: exact ones, near ones by MinHash and LSH, and repeated paragraphs.

MinHash: Broder 1997, "On the resemblance and containment of documents"; LSH by bands: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4. With b bands of r hashes, two documents whose shingles (runs of five words)
have Jaccard similarity s meet in a band with probability 1 − (1 − s^r)^b; pairs that meet are then held against the
similarity that all b·r hashes estimate. What counts as the same word is said by `text.normalise.dedup_key`.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mm_rec.cleaning.document import Dropped, Reason
from mm_rec.config import Section
from mm_rec.errors import DataError, needs_extra
from mm_rec.runs.files import atomic_path
from mm_rec.text.ngrams import combine_hashes, hash_ngrams, hash_words, ngrams_within_rows
from mm_rec.text.normalise import dedup_key

DUPLICATE: dict[Literal["exact", "near"], Reason] = {
    "exact": Reason("exact duplicate"),
    "near": Reason("near duplicate"),
}
REPEATED_PARAGRAPHS = Reason("repeated paragraphs")
_SEED = 1
_NEIGHBOURS = 16  # documents of a band's bucket are compared with as many that follow: enough for any cluster
_PAIRS = 2**16  # held against each other at once


class DedupConfig(Section):
    """Settings of deduplication."""

    near: bool = True
    paragraphs: bool = True
    paragraph_length: int = Field(
        default=60, ge=1
    )  # characters; shorter ones may well stand in many documents
    shingle_words: int = Field(default=5, ge=1)
    bands: int = Field(default=16, ge=1)
    rows: int = Field(default=8, ge=1)  # hashes a band
    threshold: float = Field(default=0.7, ge=0, le=1)  # estimated similarity from which two documents are one
    keep: Literal["longest", "first"] = "longest"

    @property
    def hashes(self) -> int:
        """MinHashes of a document."""
        return self.bands * self.rows

    def detection_probability(self, similarity: float) -> float:
        """Probability that two documents of this Jaccard similarity meet in a band."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Hashes and MinHash signatures of N documents with P paragraphs in all.

    documents: (N,) uint64, hash of the whole; sizes: (N,) int64 characters; signatures: (N, hashes) uint32 MinHashes;
    shingles: (N,) int64, how many there were (0: too short for MinHash); paragraphs: (P,) uint64, 0 where too short
    to count; borders: (N + 1,) int64, where each document's paragraphs begin and end.
    """

    documents: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    signatures: NDArray[np.uint32]
    shingles: NDArray[np.int64]
    paragraphs: NDArray[np.uint64]
    borders: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write the arrays as one .npz file."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises DataError where it is damaged."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"these are no fingerprints ({error}). Clean that corpus again", path) from error

    def select(self, kept: NDArray[np.bool_]) -> Self:
        """The fingerprints of the marked documents: (N,) bool."""
        lengths = np.diff(self.borders)
        columns = {
            name: getattr(self, name)[kept] for name in ("documents", "sizes", "signatures", "shingles")
        }
        return type(self)(
            paragraphs=self.paragraphs[np.repeat(kept, lengths)],
            borders=np.concatenate(([0], np.cumsum(lengths[kept]))),
            **columns,
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The fingerprints of all parts' documents, in order."""
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name != "borders"
        }
        lengths = np.concatenate([np.diff(part.borders) for part in parts])
        return cls(borders=np.concatenate(([0], np.cumsum(lengths))), **columns)


def paragraphs(text: str) -> list[str]:
    """Split a text into the units of paragraph deduplication: blocks between blank lines, or else lines."""
    return text.split(_separator(text))


def remove_paragraphs(text: str, removed: NDArray[np.bool_]) -> str:
    """Return the text without the marked ones of its `paragraphs`: (paragraphs,) bool."""
    parts = zip(paragraphs(text), removed.tolist(), strict=True)
    return _separator(text).join(part for part, gone in parts if not gone)


def _separator(text: str) -> str:
    return "\n\n" if "\n\n" in text else "\n"


def compute_fingerprints(texts: Sequence[str], language: str, config: DedupConfig) -> Fingerprints:
    """Compute the fingerprints of documents."""
    documents = np.empty(len(texts), np.uint64)
    word_rows: list[list[str]] = []
    paragraph_hashes: list[int] = []
    borders = [0]
    for index, text in enumerate(texts):
        keys = [dedup_key(part, language) for part in paragraphs(text)]
        whole = " ".join(filter(None, keys))
        documents[index] = _hash(whole)
        word_rows.append(whole.split())
        counted = (
            config.paragraph_length if config.paragraphs else len(text) + 1
        )  # longer than any: none counts
        paragraph_hashes += (_hash(key) if len(key) >= counted else 0 for key in keys)
        borders.append(len(paragraph_hashes))
    signatures, shingles = _signatures(word_rows, config)
    return Fingerprints(
        documents=documents,
        sizes=np.fromiter(map(len, texts), np.int64, len(texts)),
        signatures=signatures,
        shingles=shingles,
        paragraphs=np.array(paragraph_hashes, dtype=np.uint64),
        borders=np.array(borders, dtype=np.int64),
    )


def _hash(text: str) -> int:
    """64 bits of BLAKE2b, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _signatures(rows: list[list[str]], config: DedupConfig) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """MinHashes (N, hashes) of each row of words, and its number of shingles (N,)."""
    with needs_extra("data", "finding near-duplicates"):
        from rensa import RMinHash
    if not rows:
        return np.empty((0, config.hashes), np.uint32), np.empty(0, np.int64)
    numbers = hash_words([word for row in rows for word in row])
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    counts = np.maximum(lengths - config.shingle_words + 1, 0)
    inside = ngrams_within_rows(numbers, lengths, config.shingle_words)
    kept = hash_ngrams(numbers, config.shingle_words)[inside]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(kept, offsets, config.hashes, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32), counts


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A document that is left out: its number, that of the kept one, their similarity, and the kind."""

    document: int
    kept: int
    similarity: float
    kind: Literal["exact", "near"]

    @property
    def dropped(self) -> Dropped:
        """Why the document is left out."""
        return Dropped(DUPLICATE[self.kind], f"{self.similarity:.2f} alike")


def find_duplicates(fingerprints: Fingerprints, config: DedupConfig, prior: int = 0) -> list[Duplicate]:
    """Return the documents to leave out, by number; the first `prior` are an earlier corpus's and are always kept.

    Equal documents form a cluster, near ones too (through each other). Of a cluster the longest stays, or the first.
    Memory: 8 bytes a document and band at a time, beside the fingerprints.
    """
    clusters = _UnionFind(len(fingerprints.documents))
    for first, other in _equal_pairs(fingerprints.documents):
        clusters.union(first, other)
    if config.near:
        for first, other in _near_pairs(fingerprints, config):
            clusters.union(first, other)
    duplicates: list[Duplicate] = []
    for members in clusters.groups():
        earlier = [member for member in members if member < prior]
        best = earlier[0] if earlier else members[0]
        if not earlier and config.keep == "longest":
            best = max(members, key=lambda member: (int(fingerprints.sizes[member]), -member))
        others = (member for member in members if member >= prior and member != best)
        duplicates.extend(_duplicate(fingerprints, member, best) for member in others)
    return sorted(duplicates, key=lambda duplicate: duplicate.document)


def repeated_paragraphs(
    fingerprints: Fingerprints, kept: NDArray[np.bool_], prior: int = 0
) -> NDArray[np.bool_]:
    """Mark the paragraphs (P,) of kept documents that an earlier kept document has; the first `prior` count as kept."""
    belongs: NDArray[np.bool_] = np.repeat(kept, np.diff(fingerprints.borders)) & (
        fingerprints.paragraphs != 0
    )
    places = np.flatnonzero(belongs)
    _, first = np.unique(fingerprints.paragraphs[places], return_index=True)
    repeated = belongs.copy()
    repeated[places[first]] = False
    repeated[: fingerprints.borders[prior]] = False
    return repeated


def _equal_pairs(keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of documents with equal keys: each with the one before it that has its key."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    yield from zip(order[same].tolist(), order[same + 1].tolist(), strict=True)


def _near_pairs(fingerprints: Fingerprints, config: DedupConfig) -> Iterator[tuple[int, int]]:
    """Pairs that meet in a band and whose estimated similarity reaches the threshold; equal documents only once."""
    _, unique = np.unique(fingerprints.documents, return_index=True)
    documents = np.sort(unique[fingerprints.shingles[unique] > 0])
    for band in range(config.bands):
        hashes = fingerprints.signatures[documents, band * config.rows : (band + 1) * config.rows]
        keys = combine_hashes(hashes.T)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for distance in range(1, _NEIGHBOURS + 1):
            met = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(met):
                break
            first, other = documents[order[met]], documents[order[met + distance]]
            alike = _similarity(fingerprints, first, other) >= config.threshold
            yield from zip(first[alike].tolist(), other[alike].tolist(), strict=True)


def _similarity(
    fingerprints: Fingerprints, first: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of each pair: (pairs,)."""
    result = np.empty(len(first))
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        equal = fingerprints.signatures[first[part]] == fingerprints.signatures[other[part]]
        result[part] = equal.mean(axis=1)
    return result


def _duplicate(fingerprints: Fingerprints, document: int, kept: int) -> Duplicate:
    if fingerprints.documents[document] == fingerprints.documents[kept]:
        return Duplicate(document, kept, 1.0, "exact")
    alike = float((fingerprints.signatures[document] == fingerprints.signatures[kept]).mean())
    return Duplicate(document, kept, alike, "near")


class _UnionFind:
    """Disjoint sets of numbers (union–find with path halving)."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)

    def union(self, first: int, other: int) -> None:
        low, high = sorted((self._find_root(first), self._find_root(other)))
        self.parent[high] = low

    def _find_root(self, number: int) -> int:
        parent = self.parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    def groups(self) -> Iterator[list[int]]:
        """Yield the sets of more than one number, by their lowest, each in order."""
        moved = np.flatnonzero(self.parent != np.arange(len(self.parent)))
        members: dict[int, list[int]] = {}
        for number in moved.tolist():
            members.setdefault(self._find_root(number), []).append(number)
        for root in sorted(members):
            yield [root, *members[root]]
