"""The train/validation split, by a hash of each document's text: adding data moves no document."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm_rec.errors import ConfigError, DataError

LARGE_VALIDATION_SHARE = 0.2  # of the bytes: a larger share of held-out text is not what was wanted
_END_CHARACTERS = 2000  # held out of a single text, if that is no more than _END_SHARE of it
_END_SHARE = 0.1
_FEW_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainValSplit:
    """The documents that are held out: those whose hash is below `threshold`, but for those with a hash in `kept`.

    `rule` says how that came about: "hash" is the asked-for fraction; "lowest-hash" was moved so that validation has
    its minimum of bytes and training at least one document; "end" is the last `end` of the characters of a single
    document; "files" holds out separate files and no document of the sources (threshold 0). `kept` are texts that with
    their copies would be too much. Sizes are bytes of UTF-8 text.
    """

    threshold: float
    documents: int
    bytes: int
    validation_documents: int
    validation_bytes: int
    rule: Literal["hash", "lowest-hash", "end", "files"]
    kept: frozenset[float] = frozenset()
    end: float = 0.0

    def is_validation(self, text: str) -> bool:
        """True where this document is held out; the same text is always on the same side."""
        return self.holds_out(document_hash(text))

    def holds_out(self, key: float) -> bool:
        """True where the documents of this hash are held out."""
        return key < self.threshold and key not in self.kept

    def split_text(self, text: str) -> tuple[str | None, str | None]:
        """Return the part of a document for training, and the part that is held out."""
        if self.end:
            return _split_end(text, self.end)
        return (None, text) if self.is_validation(text) else (text, None)

    def record(self) -> dict[str, Any]:
        """The split as plain values, for the run's records."""
        values = {**dataclasses.asdict(self), "kept": sorted(self.kept)}
        return {name: value for name, value in values.items() if name not in ("kept", "end") or value}


def document_hash(text: str) -> float:
    """A number in [0, 1) that depends only on the text: 53 bits of BLAKE2b, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def plan_split(documents: Iterable[str], fraction: float = 0.01, minimum: float = 0.01) -> TrainValSplit:
    """Read all documents once and choose the threshold that holds out about `fraction` of them.

    Where that gives less than `minimum` of the bytes, the documents of lowest hash are held out until it does; one
    document always stays in training. A text that makes up more than a fifth of the bytes, its copies counted, is not
    held out where there is another. Memory: about 50 bytes a document. Raises DataError with fewer than two different
    documents.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"--validation-fraction is {fraction}; it lies between 0 and 1, for example 0.01")
    hashes, sizes, copies = _measure(documents)
    if len(hashes) < 2:
        raise DataError(
            f"the text is {len(hashes)} document, or copies of it, so none can be held out for validation. "
            "Give more text, or name the held-out text with --validation FILES"
        )
    total, count = int(sizes.sum()), int(copies.sum())
    small = sizes <= max(LARGE_VALIDATION_SHARE, fraction) * total
    if not small.any():
        small[np.argmin(sizes)] = True
    kept, (hashes, sizes, copies) = hashes[~small], (hashes[small], sizes[small], copies[small])
    cumulative = np.cumsum(sizes)
    threshold = fraction
    held = int(np.searchsorted(hashes, threshold))
    if held == 0 or cumulative[held - 1] < minimum * total:
        reaching = min(int(np.searchsorted(cumulative, minimum * total)), len(hashes) - 1)
        threshold = float(np.nextafter(hashes[reaching], 1.0))
    if not len(kept):
        threshold = min(threshold, float(hashes[-1]))
    held = int(np.searchsorted(hashes, threshold))
    return TrainValSplit(
        threshold=threshold,
        documents=count,
        bytes=total,
        validation_documents=int(copies[:held].sum()),
        validation_bytes=int(cumulative[held - 1]),
        rule="hash" if threshold == fraction else "lowest-hash",
        kept=frozenset(kept[kept < threshold].tolist()),
    )


def plan_end_split(documents: Iterable[str], fraction: float = 0.01) -> TrainValSplit:
    """Hold out the end of a text that is one document, or copies of one: `fraction` of it, or more where it is short.

    Raises DataError where there is too little to be cut.
    """
    text, copies = "", 0
    for document in documents:
        text, copies = document, copies + 1
    end = max(fraction, min(_END_SHARE, _END_CHARACTERS / max(1, len(text))))
    if len(text) < _FEW_CHARACTERS:
        raise DataError(
            f"the text is one document of {len(text)} characters, too few to hold out any for validation. Give more"
        )
    size, held = len(text.encode("utf-8")), len(_split_end(text, end)[1].encode("utf-8"))
    return TrainValSplit(
        threshold=0.0,
        documents=copies,
        bytes=copies * size,
        validation_documents=copies,
        validation_bytes=copies * held,
        rule="end",
        end=end,
    )


def _split_end(text: str, share: float) -> tuple[str, str]:
    """A text without about so much of its end, and that end, from a word's beginning where there are words."""
    place = len(text) - max(1, int(share * len(text)))
    words = max(text.rfind(" ", 0, place), text.rfind("\n", 0, place)) + 1
    place = words if text[:words].strip() else place
    return text[:place], text[place:]


def _measure(documents: Iterable[str]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Of every different document, by ascending hash: the hash, UTF-8 bytes of its copies, and how many they are."""
    hashes, sizes = array("d"), array("q")
    for text in documents:
        hashes.append(document_hash(text))
        sizes.append(len(text.encode("utf-8")))
    different, place, copies = np.unique(
        np.array(hashes, dtype=np.float64), return_inverse=True, return_counts=True
    )
    total = np.zeros(len(different), dtype=np.int64)
    np.add.at(total, place, np.array(sizes, dtype=np.int64))
    return different, total, copies.astype(np.int64)
