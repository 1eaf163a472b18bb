"""Make batches of a corpus: lossless packing in a seeded order that is a pure function of the step.

Notation: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mm_rec.data.corpus import Corpus
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX

# Token ids, where a document starts, and what is no padding; each (B, T).
RowArrays = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


class PackedSequences:
    """A corpus cut into rows of T tokens in which every token is a label exactly once.

    Row i holds tokens i·(T − 1) … i·(T − 1) + T − 1: neighbours share one token, which is the last label of
    one row and the first input of the next. Only the first token of each document is never a label, and only
    the last row can have padding.
    """

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

    def batch(self, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The rows `indices` (B,) as `make_batch` gives them."""
        return make_batch(*self.rows(indices))

    def rows(self, indices: NDArray[np.int64]) -> RowArrays:
        """The rows `indices` (B,): token ids, where a document starts, and what is no padding; each (B, T)."""
        shape = (len(indices), self.seq_len)
        ids = np.full(shape, self.corpus.header.pad_id, dtype=np.int64)
        starts = np.zeros(shape, dtype=bool)
        present = np.ones(shape, dtype=bool)
        for row, index in enumerate(indices):
            first = int(index) * (self.seq_len - 1)
            stop = min(first + self.seq_len, self.corpus.tokens)
            ids[row, : stop - first] = self.corpus.read(first, stop)
            starts[row, self.corpus.document_starts(first, stop) - first] = True
            present[row, stop - first :] = False
        return ids, starts, present


def make_batch(
    ids: NDArray[np.int64], starts: NDArray[np.bool_], present: NDArray[np.bool_]
) -> dict[str, torch.Tensor]:
    """A batch of rows as int64 tensors (B, T): `input_ids`, `labels`, `document_ids`.

    Labels are unshifted (labels[t] = input_ids[t]) and −100 for the first token of each document and of
    the row. Document ids start at 0 in each row and rise by one where a document starts. Where the batch
    has padding, `attention_mask` (1 token, 0 padding) is added; padding has label −100 and document −1.
    """
    starts = starts.copy()
    starts[:, 0] = False
    documents = np.cumsum(starts, axis=1, dtype=np.int64)
    labels = np.where(starts, IGNORE_INDEX, ids)
    labels[:, 0] = IGNORE_INDEX
    if present.all():
        return _tensors(input_ids=ids, labels=labels, document_ids=documents)
    labels[~present] = IGNORE_INDEX
    documents[~present] = -1
    return _tensors(
        input_ids=ids, labels=labels, document_ids=documents, attention_mask=present.astype(np.int64)
    )


def _tensors(**arrays: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class SeededSampler:
    """Choose the sequences of each step: a pure function of seed, step and rank layout.

    The epochs' permutations, one after the other, form one endless row of positions; step s takes the
    batch_size · world_size positions from s · batch_size · world_size on, rank r the r-th block of them. So a
    step may span two epochs, and within an epoch nothing is dropped or repeated.

    With `kinds` (N,), those of one kind stand together, `group_size` at a time, as far as they go: in random order, and
    the groups of both kinds mixed evenly.
    """

    def __init__(
        self,
        n_sequences: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        kinds: NDArray[np.bool_] | None = None,
        group_size: int = 1,
    ) -> None:
        if min(n_sequences, batch_size, world_size) < 1:
            raise ConfigError(
                f"batches need at least one sequence, row and rank; there are {n_sequences} sequences, "
                f"{batch_size} rows a batch, {world_size} ranks"
            )
        if not 0 <= seed < 2**64:
            raise ConfigError(f"the seed is {seed}; it must be from 0 to 2^64 − 1")
        assert 0 <= rank < world_size, (rank, world_size)
        self.n_sequences = n_sequences
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.kinds, self.group_size = kinds, group_size
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def indices(self, step: int) -> NDArray[np.int64]:
        """The sequences (batch_size,) that this rank takes at a step (from 0)."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return self.sequences_at(np.arange(first, first + self.batch_size))

    def sequences_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequences at rising positions of the endless row."""
        epochs, places = np.divmod(positions, self.n_sequences)
        taken = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            taken[here] = self._permutation(epoch)[places[here]]
        return taken

    def epoch(self, step: int) -> int:
        """The epoch (from 0) in which a step's first sequence lies."""
        return step * self.world_size * self.batch_size // self.n_sequences

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch's sequences; two are kept, for steps that span two epochs."""
        if epoch not in self._permutations:
            # Raw words and a stable sort: numpy promises that these never change, not so for `permutation`.
            random = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
            kept = {known: order for known, order in self._permutations.items() if known == epoch - 1}
            self._permutations = {**kept, epoch: self._order(random.random_raw(self.n_sequences))}
        return self._permutations[epoch]

    def _order(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The sequences by random keys (N,), and by kinds where there are any."""
        order = np.argsort(keys, kind="stable")
        if self.kinds is None or self.kinds.all() or not self.kinds.any():
            return order
        order = order[np.argsort(self.kinds[order], kind="stable")]
        # What is no whole group stays at the end.
        whole = self.n_sequences - self.n_sequences % self.group_size
        groups = order[:whole].reshape(-1, self.group_size)
        # By the keys of their first sequences: both kinds come as evenly as they do one by one.
        return np.concatenate([groups[np.argsort(keys[groups[:, 0]], kind="stable")].ravel(), order[whole:]])


class StatelessBatches(ABC):
    """Batches that are a function of the step: only what they depend on is saved."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the order of the data depends on; the position itself is the step."""

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Nothing: the order of the data is computed."""
        return {}

    def load_state_dict(
        self, state: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Raise CheckpointError unless these batches continue those of the saved state exactly."""
        require_same_data(self.state_dict(), state)


class PackedBatches(StatelessBatches):
    """The batches of a training run: packed sequences in seeded order, in micro-batches for accumulation.

    A step takes micro_batch · accumulation rows on each rank. M micro-steps of N rows are the same sequences
    in the same order as one batch of N·M rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        micro_batch: int,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sequences = PackedSequences(corpus, seq_len)
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.sampler = SeededSampler(len(self.sequences), micro_batch * accumulation, seed, rank, world_size)

    @property
    def tokens_per_step(self) -> int:
        """Tokens, padding included, that all ranks together read at a step."""
        return self.sampler.batch_size * self.sampler.world_size * self.sequences.seq_len

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every sequence is read once; not a whole number where a step spans two epochs."""
        return len(self.sequences) / (self.sampler.batch_size * self.sampler.world_size)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) in which a step starts."""
        return self.sampler.epoch(step)

    def batch_at(self, step: int, micro_step: int = 0) -> dict[str, torch.Tensor]:
        """One micro-batch of a step, both counted from 0, as `PackedSequences.batch` gives it."""
        assert 0 <= micro_step < self.accumulation, (micro_step, self.accumulation)
        first = micro_step * self.micro_batch
        return self.sequences.batch(self.sampler.indices(step)[first : first + self.micro_batch])

    def state_dict(self) -> dict[str, Any]:
        """Return what the order of the data depends on; the position itself is the step."""
        return {
            "corpus": self.sequences.corpus.fingerprint,
            "seq_len": self.sequences.seq_len,
            "global_batch": self.sampler.batch_size * self.sampler.world_size,
            "seed": self.sampler.seed,
        }


def require_same_data(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming what these batches depend on and a checkpoint's batches had otherwise."""
    changed = [
        f"{name} was {saved.get(name)} and is {own[name]}" for name in own if own[name] != saved.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint was trained on other batches: {'; '.join(changed)}. "
            "Give the same data and sizes, or start a new run from the model"
        )
