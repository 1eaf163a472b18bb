"""Make the batches of a run: the mixture says which source each row comes from, the sources give the rows.

Shapes: B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mm_rec.data.corpus import Corpus
from mm_rec.data.mixture import Mixture
from mm_rec.data.row_sources import (
    PADDING,
    Ids,
    PackedSequences,
    Rows,
    RowSource,
    SeededRows,
    make_batch,
    source_seed,
)
from mm_rec.errors import CheckpointError, ConfigError


class RowBatches:
    """The batches of a run on one or several row sources, in micro-batches for accumulation.

    Where a row group is one row, a step takes micro_batch · accumulation of them on each rank, and M micro-steps of N
    rows are the same rows in the same order as one batch of N·M. Where a group has as many rows as a step has
    micro-batches, a step takes micro_batch groups, and micro-batch m holds their m-th rows. Step s takes the mixture's
    row groups from s · (groups of a step) on, rank r the r-th block of them.
    """

    def __init__(
        self,
        sources: Mapping[str, RowSource],
        mixture: Mixture,
        micro_batch: int,
        accumulation: int = 1,
        *,
        settings: Mapping[str, Any],
        pad_id: int,
        epoch_of: Sequence[str] | None = None,
        carry_state: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`settings`: what the batches depend on, as plain values; `epoch_of`: the sources that make an epoch, or all.

        `carry_state`: a row of a micro-batch may continue the one before, so a state is carried in a step.
        """
        if list(sources) != mixture.names:
            raise ConfigError(
                f"the sources are {', '.join(sources)}, and those of the mixture {', '.join(mixture.names)}"
            )
        if min(micro_batch, accumulation, world_size) < 1:
            raise ConfigError(
                f"batches need at least one row and rank; there are {micro_batch} rows a batch, {accumulation} batches "
                f"a step, {world_size} ranks"
            )
        assert 0 <= rank < world_size, (rank, world_size)
        self.sources, self.mixture = dict(sources), mixture
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.settings, self.pad_id, self.carry_state = dict(settings), pad_id, carry_state
        self.epoch_of = list(sources) if epoch_of is None else list(epoch_of)
        self.rank, self.world_size = rank, world_size
        (self.seq_len,) = {source.seq_len for source in self.sources.values()}
        (self.rows_per_group,) = {source.rows_per_group for source in self.sources.values()}
        assert accumulation % self.rows_per_group == 0, (accumulation, self.rows_per_group)
        self.fold_rows = any(source.can_fold for source in self.sources.values())

    @property
    def groups_per_step(self) -> int:
        """Row groups that all ranks together read at a step."""
        return self.micro_batch * self.accumulation // self.rows_per_group * self.world_size

    def epoch(self, step: int) -> int:
        """The epoch (from 0) in which a step starts: how often as much as the sources hold was read before it.

        Of streams, whose length nobody knows, how often the one read least was read to its end.
        """
        counts = dict(
            zip(self.sources, self.mixture.counts(step * self.groups_per_step).tolist(), strict=True)
        )
        lengths = [self.sources[name].row_groups for name in self.epoch_of]
        if None in lengths:
            return min(self.sources[name].epoch(counts[name]) for name in self.epoch_of)
        read = sum(counts[name] for name in self.epoch_of)
        return int(read // sum(length or 0 for length in lengths))

    def batch_at(self, step: int, micro_step: int = 0) -> dict[str, torch.Tensor]:
        """A micro-batch of a step, both counted from 0, as `make_batch` gives it; of streams, it must be the next one.

        Where no document crosses the middle of a row and the sources say so, it is folded into (2B, T / 2). With
        `carry_state`, `carried` is a bool that says that rows may go on from the micro-batch before.
        """
        assert 0 <= micro_step < self.accumulation, (micro_step, self.accumulation)
        before, row = divmod(micro_step, self.rows_per_group)
        first = step * self.groups_per_step + self.rank * (self.groups_per_step // self.world_size)
        rows = self._rows(first + before * self.micro_batch, row)
        batch = make_batch(rows, self.pad_id)
        if self.fold_rows and not _any_crosses_fold(rows.documents):
            batch = {name: tensor.view(-1, self.seq_len // 2) for name, tensor in batch.items()}
        if self.carry_state:
            batch["carried"] = torch.tensor(micro_step > 0)
        return batch

    def _rows(self, first: int, row: int) -> Rows:
        """Row `row` of each of the mixture's row groups from `first` on."""
        chosen, places = self.mixture.assign(first, self.micro_batch)
        rows = Rows.empty(self.micro_batch, self.seq_len)
        for number, source in enumerate(self.sources.values()):
            here = chosen == number
            if here.any():
                for whole, part in zip(rows, source.rows(places[here], row), strict=True):
                    whole[here] = part
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what the batches depend on, and where streams stand; the position elsewhere is the step."""
        states = {name: source.state_dict() for name, source in self.sources.items()}
        streams = {name: state for name, state in states.items() if state}
        if not streams:
            return dict(self.settings)
        return {
            **self.settings,
            "row": sum(state["drawn"] for state in streams.values()),
            "streams": streams,
        }

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """What streams have read and not handed out."""
        return dict(
            itertools.chain.from_iterable(source.state_tensors().items() for source in self.sources.values())
        )

    def load_state_dict(
        self, state: dict[str, Any], tensors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Go on behind the saved state; raises CheckpointError unless these batches continue it exactly."""
        _require_same_settings(self.settings, state)
        positions = state.get("streams", {})
        for name, source in self.sources.items():
            source.load_state_dict(positions.get(name, {}), tensors or {})


def corpus_batches(
    corpus: Corpus,
    seq_len: int,
    micro_batch: int,
    accumulation: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> RowBatches:
    """The batches of a run on one corpus, in seeded order."""
    settings = {
        "corpus": corpus.fingerprint,
        "seq_len": seq_len,
        "global_batch": micro_batch * accumulation * world_size,
        "seed": seed,
    }
    return RowBatches(
        {"corpus": SeededRows(PackedSequences(corpus, seq_len), seed)},
        Mixture(["corpus"], [(0, [1.0])]),
        micro_batch,
        accumulation,
        settings=settings,
        pad_id=corpus.header.pad_id,
        rank=rank,
        world_size=world_size,
    )


def mixture_batches(
    corpora: Mapping[str, Corpus],
    mixture: Mixture,
    seq_len: int,
    micro_batch: int,
    accumulation: int = 1,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> RowBatches:
    """The batches of a run on several corpora of one tokenizer; each is read in its own seeded order."""
    settings = {
        "corpora": [corpus.fingerprint for corpus in corpora.values()],
        "mixture": mixture.record(),
        "seq_len": seq_len,
        "global_batch": micro_batch * accumulation * world_size,
        "seed": seed,
    }
    return RowBatches(
        {
            name: SeededRows(PackedSequences(corpus, seq_len), source_seed(seed, name))
            for name, corpus in corpora.items()
        },
        mixture,
        micro_batch,
        accumulation,
        settings=settings,
        pad_id=next(iter(corpora.values())).header.pad_id,
        rank=rank,
        world_size=world_size,
    )


def _require_same_settings(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming what these batches depend on and a checkpoint's batches had otherwise."""
    changed = [
        f"{name} was {saved.get(name)} and is {own[name]}" for name in own if own[name] != saved.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint was trained on other batches: {'; '.join(changed)}. "
            "Give the same data and sizes, or start a new run from the model"
        )


def _any_crosses_fold(documents: Ids) -> bool:
    """Return True if a document, of ids (B, T), has tokens on both sides of a row's middle."""
    left, right = documents[:, documents.shape[1] // 2 - 1], documents[:, documents.shape[1] // 2]
    return bool(((left == right) & (left != PADDING)).any())
