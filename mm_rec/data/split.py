"""Train and validation sides, chosen by a hash of each document's text: adding data moves no document."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mm_rec.errors import ConfigError, DataError

_REMEDY = (
    "Cut the text into more documents with --documents line or --documents blank-line, "
    "or name the held-out text with --validation FILES"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which documents are held out: those whose hash is below `threshold`.

    `rule` says how the threshold came about: "hash" is the asked-for fraction; "lowest-hash" was moved so
    that validation has its minimum of bytes and training at least one document; "files" holds out separate
    files and no document of the sources (threshold 0). Sizes are bytes of UTF-8 text.
    """

    threshold: float
    documents: int
    bytes: int
    validation_documents: int
    validation_bytes: int
    rule: Literal["hash", "lowest-hash", "files"]

    def is_validation(self, text: str) -> bool:
        """True where this document is held out; the same text is always on the same side."""
        return document_hash(text) < self.threshold

    def record(self) -> dict[str, Any]:
        """The split as plain values, for the run's records."""
        return dataclasses.asdict(self)


def document_hash(text: str) -> float:
    """A number in [0, 1) that depends only on the text: 53 bits of BLAKE2b, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def plan_split(documents: Iterable[str], fraction: float = 0.01, minimum: float = 0.01) -> Split:
    """Read all documents once and choose the threshold that holds out about `fraction` of them.

    Where that gives less than `minimum` of the bytes, the documents of lowest hash are held out until it
    does; one document always stays in training. Memory: 16 bytes a document. Raises DataError with fewer than
    two different documents.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"--validation-fraction is {fraction}; it lies between 0 and 1, for example 0.01")
    hashes, sizes = _measure(documents)
    if len(hashes) < 2:
        raise DataError(
            f"the text is {len(hashes)} document, so none can be held out for validation. {_REMEDY}"
        )
    order = np.argsort(hashes, kind="stable")
    hashes, cumulative = hashes[order], np.cumsum(sizes[order])
    if hashes[0] == hashes[-1]:
        raise DataError(f"all {len(hashes)} documents are the same text, so none can be held out. {_REMEDY}")
    threshold = fraction
    held = int(np.searchsorted(hashes, threshold))
    if held == 0 or cumulative[held - 1] < minimum * cumulative[-1]:
        reaching = int(np.searchsorted(cumulative, minimum * cumulative[-1]))
        threshold = float(np.nextafter(hashes[reaching], 1.0))
    threshold = min(threshold, float(hashes[-1]))
    held = int(np.searchsorted(hashes, threshold))
    return Split(
        threshold=threshold,
        documents=len(hashes),
        bytes=int(cumulative[-1]),
        validation_documents=held,
        validation_bytes=int(cumulative[held - 1]),
        rule="hash" if threshold == fraction else "lowest-hash",
    )


def _measure(documents: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash (float64) and UTF-8 size in bytes (int64) of every document."""
    hashes, sizes = array("d"), array("q")
    for text in documents:
        hashes.append(document_hash(text))
        sizes.append(len(text.encode("utf-8")))
    return np.array(hashes, dtype=np.float64), np.array(sizes, dtype=np.int64)
