from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_rec.data.batches import IGNORE_INDEX, PackedBatches, PackedSequences, SeededSampler
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Corpus:
    """About 3,000 tokens in documents of 3 to 60, over several shards."""
    rng = random.Random(0)
    documents = ["".join(rng.choices("abcdefgh ", k=rng.randint(1, 58))) for _ in range(95)]
    return write_corpus(
        documents, byte_tokenizer, tmp_path_factory.mktemp("corpus"), shard_bytes=700, threads=1
    )


@pytest.mark.parametrize("seq_len", [2, 3, 16, 17, 64, 1000, "all"])
def test_packing_loses_nothing(corpus: Corpus, seq_len: int | str) -> None:
    length = corpus.tokens if seq_len == "all" else int(seq_len)
    sequences = PackedSequences(corpus, length)
    everything = corpus.read(0, corpus.tokens)
    starts = set(corpus.document_starts(0, corpus.tokens).tolist())
    labelled = np.zeros(corpus.tokens, dtype=int)
    for index in range(len(sequences)):
        row = sequences.batch(np.array([index]))
        first = index * (length - 1)
        size = min(length, corpus.tokens - first)
        ids, labels, documents = (row[name][0].numpy() for name in ("input_ids", "labels", "document_ids"))
        assert (ids[:size] == everything[first : first + size]).all()
        labelled[first : first + size] += labels[:size] != IGNORE_INDEX
        assert ((labels[:size] == IGNORE_INDEX) | (labels[:size] == ids[:size])).all()
        expected = [sum(1 for p in range(first + 1, first + t + 1) if p in starts) for t in range(size)]
        assert documents[:size].tolist() == expected
        assert ("attention_mask" in row) == (size < length)
        if size < length:
            assert index == len(sequences) - 1 and size >= 2
            assert (ids[size:] == corpus.header.pad_id).all() and (labels[size:] == IGNORE_INDEX).all()
            assert (documents[size:] == -1).all()
            assert row["attention_mask"][0].tolist() == [1] * size + [0] * (length - size)
    expected_labels = np.ones(corpus.tokens, dtype=int)
    expected_labels[list(starts)] = 0
    assert (labelled == expected_labels).all()


def test_rows_of_a_batch_are_the_rows_alone(corpus: Corpus) -> None:
    sequences = PackedSequences(corpus, 64)
    indices = np.array([3, len(sequences) - 1, 0])
    batch = sequences.batch(indices)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    for row, index in enumerate(indices):
        for name, tensor in sequences.batch(np.array([index])).items():
            assert torch.equal(batch[name][row], tensor[0])


def test_a_sequence_longer_than_the_corpus(corpus: Corpus) -> None:
    with pytest.raises(
        DataError, match=f"{corpus.tokens + 1:,} tokens.*{corpus.tokens:,}.*{corpus.tokens} or less"
    ):
        PackedSequences(corpus, corpus.tokens + 1)
    with pytest.raises(ConfigError, match="2 or more"):
        PackedSequences(corpus, 1)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_every_epoch_takes_each_sequence_once(batch_size: int) -> None:
    sampler = SeededSampler(10, batch_size, seed=7)
    stream = np.concatenate([sampler.indices(step) for step in range(60)])[: 60 * batch_size // 10 * 10]
    epochs = stream.reshape(-1, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
    assert sampler.epoch(0) == 0 and sampler.epoch(10) == batch_size


def test_the_order_depends_on_nothing_but_seed_and_step() -> None:
    steps = [5, 0, 31, 5, 2, 0]
    fresh = [SeededSampler(13, 4, seed=1).indices(step).tolist() for step in steps]
    sampler = SeededSampler(13, 4, seed=1)
    assert [sampler.indices(step).tolist() for step in steps] == fresh
    assert SeededSampler(13, 4, seed=2).indices(5).tolist() != fresh[0]
    assert SeededSampler(10, 10, seed=2**64 - 1).indices(0).tolist() == [8, 9, 0, 7, 4, 2, 6, 3, 1, 5]


def test_ranks_share_the_batch_of_one_process() -> None:
    whole = SeededSampler(17, 12, seed=3)
    ranks = [SeededSampler(17, 3, seed=3, rank=rank, world_size=4) for rank in range(4)]
    for step in range(20):
        assert np.concatenate([rank.indices(step) for rank in ranks]).tolist() == whole.indices(step).tolist()
        assert {rank.epoch(step) for rank in ranks} == {whole.epoch(step)}


@pytest.mark.parametrize("options", [(0, 1, 0), (5, 0, 0), (5, 1, -1), (5, 1, 2**64)])
def test_orders_that_cannot_be(options: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        SeededSampler(*options)


def test_accumulation_gives_the_same_sequences_as_one_batch(corpus: Corpus) -> None:
    whole = PackedBatches(corpus, 32, micro_batch=12, seed=5)
    parts = PackedBatches(corpus, 32, micro_batch=3, accumulation=4, seed=5)
    assert whole.tokens_per_step == parts.tokens_per_step == 12 * 32
    for step in range(int(2.5 * whole.steps_per_epoch)):
        pieces = [parts.batch_at(step, micro_step) for micro_step in range(4)]
        for name in ("input_ids", "labels", "document_ids"):
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole.batch_at(step)[name])


def test_an_epoch_of_batches_has_each_label_once(corpus: Corpus) -> None:
    batches = PackedBatches(corpus, 32, micro_batch=1, seed=5)
    count = sum(
        int((batches.batch_at(step)["labels"] != IGNORE_INDEX).sum())
        for step in range(len(batches.sequences))
    )
    assert count == corpus.tokens - corpus.documents
    assert batches.steps_per_epoch == len(batches.sequences) and batches.epoch(len(batches.sequences)) == 1


def test_a_state_is_taken_back_only_by_the_same_batches(
    corpus: Corpus, tmp_path: Path, byte_tokenizer: Any
) -> None:
    state = PackedBatches(corpus, 32, micro_batch=4, accumulation=2, seed=5).state_dict()
    PackedBatches(corpus, 32, micro_batch=8, seed=5).load_state_dict(state)
    PackedBatches(corpus, 32, micro_batch=2, accumulation=2, seed=5, rank=1, world_size=2).load_state_dict(
        state
    )
    with pytest.raises(CheckpointError, match="seed was 5 and is 6"):
        PackedBatches(corpus, 32, micro_batch=8, seed=6).load_state_dict(state)
    other = write_corpus(["x" * 500, "y" * 500], byte_tokenizer, tmp_path, threads=1)
    with pytest.raises(CheckpointError, match="corpus was"):
        PackedBatches(other, 32, micro_batch=8, seed=5).load_state_dict(state)


def test_an_order_by_kinds_keeps_groups_of_one_kind_and_every_sequence() -> None:
    kinds = np.arange(47) % 5 == 0
    sampler = SeededSampler(47, 1, seed=3, kinds=kinds, group_size=4)
    for epoch in range(3):
        drawn = sampler.sequences_at(np.arange(47 * epoch, 47 * (epoch + 1)))
        assert sorted(drawn.tolist()) == list(range(47))
        groups = kinds[drawn[:44]].reshape(11, 4)
        assert (groups.all(axis=1) | ~groups.any(axis=1)).sum() >= 10  # one may hold the last of both kinds
    plain = SeededSampler(47, 1, seed=3)
    same = SeededSampler(47, 1, seed=3, kinds=np.ones(47, dtype=bool), group_size=4)
    assert same.sequences_at(np.arange(47)).tolist() == plain.sequences_at(np.arange(47)).tolist()
    assert sampler.sequences_at(np.arange(47)).tolist() != plain.sequences_at(np.arange(47)).tolist()
