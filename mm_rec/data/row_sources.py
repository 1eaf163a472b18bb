"""Row sources: what a run reads, as rows of one length.

A source of known length (`IndexedRows`) gives its rows by index, and a seeded order makes it endless (`SeededRows`);
a stream (`streaming.RowStream`) can only be read in order. Rows come in row groups: of one row, or of several that a
step reads one after the other (see `packing`).
Shapes: B rows, T tokens of a row, G row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mm_rec.data.corpus import Corpus
from mm_rec.errors import ConfigError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX

PADDING = -1  # the document id of padding

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Rows(NamedTuple):
    """Rows of T tokens: four arrays (B, T)."""

    ids: Ids
    labels: Ids  # unshifted (labels[t] = ids[t]); −100 where a token is not learnt
    documents: Ids  # PADDING where a row has no token
    attended: Flags  # what the attention mask has; padding that is a document of its own needs none

    @classmethod
    def empty(cls, count: int, seq_len: int) -> Self:
        """Rows of nothing but padding that is a document of its own."""
        shape = (count, seq_len)
        return cls(
            np.zeros(shape, dtype=np.int64),
            np.full(shape, IGNORE_INDEX, dtype=np.int64),
            np.full(shape, PADDING, dtype=np.int64),
            np.ones(shape, dtype=bool),
        )


class IndexedRows(Protocol):
    """Row groups by index."""

    @property
    def seq_len(self) -> int:
        """The tokens of a row."""

    @property
    def rows_per_group(self) -> int:
        """The rows of a row group."""

    def __len__(self) -> int:
        """The row groups of an epoch."""

    def rows(self, groups: Ids, row: int = 0) -> Rows:
        """Row `row` of each of the row groups (B,)."""

    def crosses_fold(self) -> Flags:
        """Mark the row groups (G,) that may have a document across the middle of a row."""

    def record(self) -> dict[str, Any]:
        """Return what the rows depend on."""


class RowSource(Protocol):
    """Row groups without end, in the order in which a run reads them."""

    @property
    def seq_len(self) -> int:
        """The tokens of a row."""

    @property
    def rows_per_group(self) -> int:
        """The rows of a row group."""

    @property
    def row_groups(self) -> int | None:
        """The row groups of an epoch; None where nobody knows."""

    @property
    def can_fold(self) -> bool:
        """Whether there are row groups in which no document crosses the middle of a row."""

    def rows(self, places: Ids, row: int = 0) -> Rows:
        """Row `row` of each of the row groups at rising places (B,) of the endless order."""

    def epoch(self, groups: int) -> int:
        """How often the source was read to its end after so many row groups."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values; {} where it follows from the step."""

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """What was read and not handed out, by names that begin with the source's."""

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on behind the saved position."""


class PackedSequences:
    """A corpus cut into rows of T tokens in which every token is a label exactly once.

    Row i holds tokens i·(T − 1) … i·(T − 1) + T − 1: neighbours share one token, which is the last label of
    one row and the first input of the next. Only the first token of each document is never a label, and only
    the last row can have padding.
    """

    rows_per_group = 1

    def __init__(self, corpus: Corpus, seq_len: int) -> None:
        if seq_len < 2:
            raise ConfigError(
                f"the sequence length is {seq_len}; it must be 2 or more, so that a token has a next one"
            )
        if seq_len > corpus.tokens:
            raise DataError(
                f"the sequence length is {seq_len:,} tokens and the corpus has {corpus.tokens:,}. "
                f"Add text, or choose a sequence length of {corpus.tokens} or less",
                corpus.path,
            )
        self.corpus = corpus
        self.seq_len = seq_len

    def __len__(self) -> int:
        """The number of rows that an epoch has."""
        return -(-(self.corpus.tokens - 1) // (self.seq_len - 1))

    def rows(self, groups: Ids, row: int = 0) -> Rows:
        """The rows of these indices (B,); see `rows_of_text`."""
        assert row == 0
        shape = (len(groups), self.seq_len)
        ids = np.zeros(shape, dtype=np.int64)
        starts = np.zeros(shape, dtype=bool)
        present = np.ones(shape, dtype=bool)
        for place, index in enumerate(groups):
            first = int(index) * (self.seq_len - 1)
            stop = min(first + self.seq_len, self.corpus.tokens)
            ids[place, : stop - first] = self.corpus.read(first, stop)
            starts[place, self.corpus.document_starts(first, stop) - first] = True
            present[place, stop - first :] = False
        return rows_of_text(ids, starts, present)

    def batch(self, indices: Ids) -> dict[str, torch.Tensor]:
        """The rows of these indices (B,) as `make_batch` gives them."""
        return make_batch(self.rows(indices), self.corpus.header.pad_id)

    def crosses_fold(self) -> Flags:
        """Mark all: which ones cross is not known without reading them."""
        return np.ones(len(self), dtype=bool)

    def record(self) -> dict[str, Any]:
        """Return the corpus's fingerprint."""
        return {"corpus": self.corpus.fingerprint}


class CorpusRows:
    """Rows of a corpus beside conversations: in groups of A, and their padding is a document, as it is there."""

    def __init__(self, sequences: PackedSequences, rows_per_group: int = 1) -> None:
        self.sequences, self.rows_per_group = sequences, rows_per_group

    @property
    def seq_len(self) -> int:
        """The tokens of a row."""
        return self.sequences.seq_len

    def __len__(self) -> int:
        return -(-len(self.sequences) // self.rows_per_group)

    def rows(self, groups: Ids, row: int = 0) -> Rows:
        """Row `row` of each group; see IndexedRows."""
        ids, labels, documents, present = self.sequences.rows(
            (groups * self.rows_per_group + row) % len(self.sequences)
        )
        # Other ids in each row of a group: no row goes on where the one before it ended.
        documents[present] += row * self.seq_len
        return Rows(ids, labels, documents, np.ones_like(present))

    def crosses_fold(self) -> Flags:
        """Mark all: which ones cross is not known without reading them."""
        return np.ones(len(self), dtype=bool)

    def record(self) -> dict[str, Any]:
        """Return the corpus's fingerprint."""
        return {**self.sequences.record(), "columns": len(self)}


def rows_of_text(ids: Ids, starts: Flags, present: Flags) -> Rows:
    """Rows of running text from token ids, where a document starts, and what is no padding; each (B, T).

    The first token of each document and of the row is not learnt. Document ids start at 0 in each row and rise by one
    where a document starts.
    """
    starts = starts.copy()
    starts[:, 0] = False
    documents = np.cumsum(starts, axis=1, dtype=np.int64)
    labels = np.where(starts, IGNORE_INDEX, ids)
    labels[:, 0] = IGNORE_INDEX
    labels[~present] = IGNORE_INDEX
    documents[~present] = PADDING
    return Rows(ids, labels, documents, present)


def make_batch(rows: Rows, pad_id: int) -> dict[str, torch.Tensor]:
    """A batch of rows as int64 tensors (B, T): `input_ids`, `labels`, `document_ids`.

    Where not all is attended to, `attention_mask` (1 token, 0 padding) is added. Padding gets the id `pad_id`.
    """
    arrays = {
        "input_ids": np.where(rows.documents == PADDING, pad_id, rows.ids),
        "labels": rows.labels,
        "document_ids": rows.documents,
    }
    if not rows.attended.all():
        arrays["attention_mask"] = rows.attended.astype(np.int64)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def source_seed(seed: int, name: str) -> int:
    """A seed of 64 bits for one source, so that sources of equal length are not read in the same order."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class SeededSampler:
    """The endless order of N row groups: a permutation for each epoch, one behind the other, by a seed.

    With `kinds` (N,), those of one kind stand together, `group_size` at a time, as far as they go: in random order, and
    the groups of both kinds mixed evenly.
    """

    def __init__(self, count: int, seed: int, kinds: Flags | None = None, group_size: int = 1) -> None:
        if not 0 <= seed < 2**64:
            raise ConfigError(f"the seed is {seed}; it must be from 0 to 2^64 − 1")
        assert count > 0
        self.count = count
        self.seed = seed
        self.kinds, self.group_size = kinds, group_size
        self._permutations: dict[int, Ids] = {}

    def indices(self, places: Ids) -> Ids:
        """The indices (B,) at rising places (B,) of the endless order."""
        epochs, within = np.divmod(places, self.count)
        taken = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            taken[here] = self._permutation(epoch)[within[here]]
        return taken

    def _permutation(self, epoch: int) -> Ids:
        """The order of an epoch; two are kept, for steps that span two epochs."""
        if epoch not in self._permutations:
            # Raw words and a stable sort: numpy promises that these never change, not so for `permutation`.
            random = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
            kept = {known: order for known, order in self._permutations.items() if known == epoch - 1}
            self._permutations = {**kept, epoch: self._order(random.random_raw(self.count))}
        return self._permutations[epoch]

    def _order(self, keys: NDArray[np.uint64]) -> Ids:
        """The indices by random keys (N,), and by kinds where there are any."""
        order = np.argsort(keys, kind="stable")
        if self.kinds is None or self.kinds.all() or not self.kinds.any():
            return order
        order = order[np.argsort(self.kinds[order], kind="stable")]
        # What is no whole group stays at the end.
        whole = self.count - self.count % self.group_size
        groups = order[:whole].reshape(-1, self.group_size)
        # By the keys of their first: both kinds come as evenly as they do one by one.
        return np.concatenate([groups[np.argsort(keys[groups[:, 0]], kind="stable")].ravel(), order[whole:]])


class SeededRows:
    """Indexed rows in a seeded order, epoch after epoch: a pure function of the place, so there is no state.

    Row groups that can be folded are drawn together, `group_size` at a time.
    """

    def __init__(self, source: IndexedRows, seed: int, group_size: int = 1) -> None:
        crosses_fold = source.crosses_fold()
        self.source = source
        self.sampler = SeededSampler(len(source), seed, crosses_fold, group_size)
        self.can_fold = not crosses_fold.all()

    @property
    def seq_len(self) -> int:
        """The tokens of a row."""
        return self.source.seq_len

    @property
    def rows_per_group(self) -> int:
        """The rows of a row group."""
        return self.source.rows_per_group

    @property
    def row_groups(self) -> int:
        """The row groups of an epoch."""
        return len(self.source)

    def rows(self, places: Ids, row: int = 0) -> Rows:
        """Row `row` of each of the row groups at rising places (B,)."""
        return self.source.rows(self.sampler.indices(places), row)

    def epoch(self, groups: int) -> int:
        """How often the source was read to its end after so many row groups."""
        return groups // len(self.source)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position follows from the step."""
        return {}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Nothing: the order is computed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing to do."""
