"""Pack conversations into rows of one length, and make the batches of fine-tuning.

A row of T tokens holds whole conversations, each a document of its own: best-fit decreasing (Johnson 1974) leaves
little of it empty, and the rest is padding that is a document too, so that no mask is needed. A conversation longer
than a row is split into segments of T tokens, one in each of consecutive micro-batches of a step, so that a model with
a state carries it from segment to segment (only the first token of a segment is then not trained on). Rows are put
into row groups of A, one row for each of the A micro-batches of a step; the sampler draws row groups.

Attention costs less in shorter rows. With `fold_rows`, conversations of up to T / 2 tokens never cross the middle of a
row (the fold), row groups without a crossing are drawn together, and a micro-batch in which nothing crosses is folded
into (2B, T / 2).

Shapes: B rows of a batch, T tokens of a row, G row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.batches import RowBatches
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.mixture import Mixture
from mm_rec.data.row_sources import Flags, Ids, IndexedRows, Rows, SeededRows, source_seed
from mm_rec.errors import DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX

MAX_CARRIED_SEQ_LEN = 2048  # tokens, where a model with a state may go on in the next row
MAX_PADDING_SHARE = 0.02


def pack_best_fit(lengths: Sequence[int], capacity: int, used: Sequence[int] = ()) -> list[list[int]]:
    """Best-fit decreasing: indices of items by bin, so that no bin holds more than `capacity`. The same every time.

    The first bins hold `used` already, which is no item. The bins' free spaces are bits of an integer, so the smallest
    that is large enough is found at once.
    """
    bins: list[list[int]] = [[] for _ in used]
    by_space: dict[int, list[int]] = {}
    for number, taken in enumerate(used):
        by_space.setdefault(capacity - taken, []).append(number)
    spaces = sum(1 << space for space in by_space)
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        size = lengths[item]
        if not 0 < size <= capacity:
            raise ValueError(f"item {item} has length {size}, which is not from 1 to {capacity}")
        if fitting := spaces >> size:
            space = size + (fitting & -fitting).bit_length() - 1
            chosen = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        by_space.setdefault(space - size, []).append(chosen)
        spaces |= 1 << space - size
    return bins


def choose_seq_len(lengths: Sequence[int], carry_state: bool, limit: int | None = None) -> int:
    """The smallest power of two from 256 on that wastes under 2 %; not below the longest unless a state is carried.

    `limit`: the most, where a row may not be longer than the model's context.
    """
    longest = max(lengths)
    least = min(longest, MAX_CARRIED_SEQ_LEN) if carry_state else longest
    first = 256
    while first < least:
        first *= 2
    best, best_waste = first, 1.0
    for seq_len in (first, 2 * first, 4 * first, 8 * first):
        if limit is not None and seq_len > limit:
            return min(best, limit)
        short = [length for length in lengths if length <= seq_len]
        waste = 1 - sum(short) / (len(pack_best_fit(short, seq_len)) * seq_len) if short else 0.0
        if waste < MAX_PADDING_SHARE:
            return seq_len
        if waste < best_waste:
            best, best_waste = seq_len, waste
    return best


def padded_length(lengths: Iterable[int]) -> int:
    """The smallest multiple of 32 that holds the longest: a row for one block of text; a batch is then of so many."""
    return -(-max(lengths) // 32) * 32


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start` … `stop` − 1 of a conversation, at `offset` in a row."""

    conversation: int
    start: int
    stop: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The position in the row after the last token."""
        return self.offset + self.stop - self.start

    def shifted(self, by: int) -> Segment:
        """Return the segment `by` tokens further on in the row."""
        return replace(self, offset=self.offset + by)


PackedRow = list[Segment]


class PackedConversations:
    """Conversations packed into rows of T tokens and groups of A rows; memory holds all of their tokens once."""

    def __init__(
        self,
        rendered: Sequence[TokenizedExample],
        seq_len: int,
        accumulation: int = 1,
        fold_rows: bool = False,
    ) -> None:
        """Raises DataError where there is no conversation, or one needs more than A rows."""
        if not rendered:
            raise DataError("there is no conversation to train on")
        self.ids = np.concatenate([one.ids for one in rendered])
        self.loss_mask = np.concatenate([one.loss_mask for one in rendered])
        lengths = [len(one.ids) for one in rendered]
        self.offsets = np.cumsum([0, *lengths])
        self.seq_len, self.rows_per_group, self.fold_rows = seq_len, accumulation, fold_rows
        runs = [
            _split_conversation(number, one.loss_mask, seq_len)
            for number, one in enumerate(rendered)
            if len(one.ids) > seq_len
        ]
        if max(map(len, runs), default=1) > accumulation:
            raise DataError(
                f"a conversation has {max(lengths):,} tokens, and a step reads {accumulation} rows of {seq_len:,} one "
                "behind the other. Choose longer rows, more accumulation, or truncation by turns"
            )
        short = {number: length for number, length in enumerate(lengths) if length <= seq_len}
        if fold_rows and not runs and seq_len % 2 == 0:
            runs = [[row] for row in _pack_folded_rows(short, seq_len)]
        else:
            rows = _pack_rows(short, seq_len, [run[-1][0].end for run in runs])
            for run, more in zip(runs, rows, strict=False):
                run[-1] += more
            runs += [[row] for row in rows[len(runs) :]]
        # `runs`: rows that must follow each other in one group; most are of one row.
        self.row_groups = [
            [row for index in sorted(group) for row in runs[index]]
            for group in pack_best_fit([len(run) for run in runs], accumulation)
        ]

    def __len__(self) -> int:
        return len(self.row_groups)

    @property
    def tokens(self) -> int:
        """Tokens of all conversations."""
        return len(self.ids)

    @property
    def padding_share(self) -> float:
        """The share of all positions of an epoch that is padding."""
        return 1 - self.tokens / (len(self.row_groups) * self.rows_per_group * self.seq_len)

    @property
    def carry_state(self) -> bool:
        """True where a conversation is longer than a row."""
        return bool(np.diff(self.offsets).max() > self.seq_len)

    def rows(self, groups: Ids, row: int = 0) -> Rows:
        """Row `row` of each group (B,); see IndexedRows. Padding is a document, so all is attended to."""
        rows = Rows.empty(len(groups), self.seq_len)
        for place, group in enumerate(groups.tolist()):
            parts = self.row_groups[group]
            for segment in parts[row] if row < len(parts) else []:
                first = int(self.offsets[segment.conversation])
                here = slice(segment.offset, segment.end)
                tokens = slice(first + segment.start, first + segment.stop)
                rows.ids[place, here] = self.ids[tokens]
                rows.labels[place, here] = np.where(self.loss_mask[tokens], self.ids[tokens], IGNORE_INDEX)
                rows.labels[place, segment.offset] = IGNORE_INDEX
                rows.documents[place, here] = segment.conversation
        return rows

    def crosses_fold(self) -> Flags:
        """Mark the row groups (G,) that may have a conversation across the fold."""
        half = self.seq_len // 2
        crosses = [
            not self.fold_rows or any(part.offset < half < part.end for row in group for part in row)
            for group in self.row_groups
        ]
        return np.array(crosses)

    def record(self) -> dict[str, Any]:
        """Return the conversations' digest and how they were cut."""
        digest = hashlib.sha256()
        for array in (self.ids, self.loss_mask, self.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {"conversations": digest.hexdigest(), "columns": len(self)}


def _pack_rows(lengths: Mapping[int, int], capacity: int, used: Sequence[int] = ()) -> list[PackedRow]:
    """Pack whole conversations, by number, into rows; the first rows hold `used` tokens already."""
    numbers = list(lengths)
    rows = []
    for items, taken in zip_longest(pack_best_fit(list(lengths.values()), capacity, used), used, fillvalue=0):
        assert isinstance(items, list)
        row, offset = [], taken
        for number in sorted(numbers[item] for item in items):
            row.append(Segment(number, 0, lengths[number], offset))
            offset += lengths[number]
        rows.append(row)
    return rows


def _pack_folded_rows(lengths: Mapping[int, int], seq_len: int) -> list[PackedRow]:
    """Pack rows with a long conversation, filled up with short ones; then rows of two halves of short ones alone."""
    half = seq_len // 2
    long = [number for number, length in lengths.items() if length > half]
    short = {number: length for number, length in lengths.items() if length <= half}
    # What is left beside a long one is less than a half: a half that is filled to its length minus a half already.
    rows = _pack_rows(short, half, [lengths[number] - half for number in long])
    whole = [
        [Segment(number, 0, lengths[number]), *(segment.shifted(half) for segment in row)]
        for number, row in zip(long, rows, strict=False)
    ]
    halves = rows[len(long) :]
    if len(halves) % 2:
        halves.append([])
    return whole + [
        [*first, *(segment.shifted(half) for segment in second)]
        for first, second in zip(halves[::2], halves[1::2], strict=True)
    ]


def count_rows(rendered: TokenizedExample, seq_len: int) -> int:
    """Return the number of rows that a conversation is spread over."""
    return len(_split_points(rendered.loss_mask, seq_len)) - 1


def _split_conversation(conversation: int, loss_mask: NDArray[np.bool_], seq_len: int) -> list[PackedRow]:
    """Split a long conversation into rows of one segment each."""
    return [
        [Segment(conversation, start, stop)] for start, stop in pairwise(_split_points(loss_mask, seq_len))
    ]


def _split_points(loss_mask: NDArray[np.bool_], seq_len: int) -> list[int]:
    """Return where a conversation is split, its beginning and end included.

    A row's first token has none before it there and cannot be trained on, so a split is moved back to a token outside
    the loss mask; within a long answer, at least never to the end of a turn.
    """
    points = [0]
    while len(loss_mask) - points[-1] > seq_len:
        latest, earliest = points[-1] + seq_len, points[-1] + seq_len // 2
        free = np.flatnonzero(~loss_mask[earliest : latest + 1])
        if len(free):
            points.append(earliest + int(free[-1]))
        else:
            ends_here = loss_mask[latest] and not loss_mask[latest + 1 : latest + 2].any()
            points.append(latest - int(ends_here))
    return [*points, len(loss_mask)]


def conversation_batches(
    sources: Mapping[str, IndexedRows],
    mixture: Mixture,
    seq_len: int,
    micro_batch: int,
    accumulation: int,
    seed: int,
    pad_id: int,
    carry_state: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> RowBatches:
    """The batches of a fine-tuning run: row groups of several sources by weight, each in its own seeded order.

    An epoch is one of the first source. `carry_state`: a row of a micro-batch may continue the one before.
    """
    settings = {
        "sources": [source.record() for source in sources.values()],
        "mixture": mixture.record(),
        "seq_len": seq_len,
        "batch": [micro_batch, accumulation, world_size],
        "seed": seed,
    }
    return RowBatches(
        {
            name: SeededRows(source, source_seed(seed, name), group_size=micro_batch * world_size)
            for name, source in sources.items()
        },
        mixture,
        micro_batch,
        accumulation,
        settings=settings,
        pad_id=pad_id,
        epoch_of=list(sources)[:1],
        carry_state=carry_state,
        rank=rank,
        world_size=world_size,
    )
