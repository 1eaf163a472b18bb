from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_rec.data.batches import RowBatches, corpus_batches
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.row_sources import PackedSequences, SeededSampler
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX


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
    sampler = SeededSampler(10, seed=7)
    drawn = [sampler.indices(np.arange(batch_size) + batch_size * step) for step in range(60)]
    epochs = np.concatenate(drawn)[: 60 * batch_size // 10 * 10].reshape(-1, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_the_order_depends_on_nothing_but_seed_and_place() -> None:
    places = [np.arange(4) + 4 * step for step in (5, 0, 31, 5, 2, 0)]
    fresh = [SeededSampler(13, seed=1).indices(one).tolist() for one in places]
    sampler = SeededSampler(13, seed=1)
    assert [sampler.indices(one).tolist() for one in places] == fresh
    assert SeededSampler(13, seed=2).indices(places[0]).tolist() != fresh[0]
    order = SeededSampler(10, seed=2**64 - 1).indices(np.arange(10)).tolist()
    assert order == [8, 9, 0, 7, 4, 2, 6, 3, 1, 5]


def test_ranks_share_the_batch_of_one_process(corpus: Corpus) -> None:
    whole = corpus_batches(corpus, 32, 12, seed=3)
    ranks = [corpus_batches(corpus, 32, 3, seed=3, rank=rank, world_size=4) for rank in range(4)]
    for step in range(20):
        parts = [rank.batch_at(step)["input_ids"] for rank in ranks]
        assert torch.equal(torch.cat(parts), whole.batch_at(step)["input_ids"])
        assert {rank.epoch(step) for rank in ranks} == {whole.epoch(step)}


@pytest.mark.parametrize(("micro_batch", "seed"), [(0, 0), (1, -1), (1, 2**64)])
def test_orders_that_cannot_be(corpus: Corpus, micro_batch: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        corpus_batches(corpus, 32, micro_batch, seed=seed)


def rows_of(batches: RowBatches) -> int:
    (source,) = batches.sources.values()
    assert source.row_groups is not None
    return source.row_groups


def test_accumulation_gives_the_same_sequences_as_one_batch(corpus: Corpus) -> None:
    whole = corpus_batches(corpus, 32, micro_batch=12, seed=5)
    parts = corpus_batches(corpus, 32, micro_batch=3, accumulation=4, seed=5)
    assert whole.groups_per_step == parts.groups_per_step == 12
    for step in range(int(2.5 * rows_of(whole) / 12)):
        pieces = [parts.batch_at(step, micro_step) for micro_step in range(4)]
        for name in ("input_ids", "labels", "document_ids"):
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole.batch_at(step)[name])


def test_an_epoch_of_batches_has_each_label_once(corpus: Corpus) -> None:
    batches = corpus_batches(corpus, 32, micro_batch=1, seed=5)
    count = sum(
        int((batches.batch_at(step)["labels"] != IGNORE_INDEX).sum()) for step in range(rows_of(batches))
    )
    assert count == corpus.tokens - corpus.documents
    assert batches.epoch(rows_of(batches) - 1) == 0 and batches.epoch(rows_of(batches)) == 1


def test_a_state_is_taken_back_only_by_the_same_batches(
    corpus: Corpus, tmp_path: Path, byte_tokenizer: Any
) -> None:
    state = corpus_batches(corpus, 32, micro_batch=4, accumulation=2, seed=5).state_dict()
    corpus_batches(corpus, 32, micro_batch=8, seed=5).load_state_dict(state)
    corpus_batches(corpus, 32, micro_batch=2, accumulation=2, seed=5, rank=1, world_size=2).load_state_dict(
        state
    )
    with pytest.raises(CheckpointError, match="seed was 5 and is 6"):
        corpus_batches(corpus, 32, micro_batch=8, seed=6).load_state_dict(state)
    other = write_corpus(["x" * 500, "y" * 500], byte_tokenizer, tmp_path, threads=1)
    with pytest.raises(CheckpointError, match="corpus was"):
        corpus_batches(other, 32, micro_batch=8, seed=5).load_state_dict(state)


def test_an_order_by_kinds_keeps_groups_of_one_kind_and_every_sequence() -> None:
    kinds = np.arange(47) % 5 == 0
    sampler = SeededSampler(47, seed=3, kinds=kinds, group_size=4)
    for epoch in range(3):
        drawn = sampler.indices(np.arange(47 * epoch, 47 * (epoch + 1)))
        assert sorted(drawn.tolist()) == list(range(47))
        groups = kinds[drawn[:44]].reshape(11, 4)
        assert (groups.all(axis=1) | ~groups.any(axis=1)).sum() >= 10  # one may hold the last of both kinds
    plain = SeededSampler(47, seed=3)
    same = SeededSampler(47, seed=3, kinds=np.ones(47, dtype=bool), group_size=4)
    assert same.indices(np.arange(47)).tolist() == plain.indices(np.arange(47)).tolist()
    assert sampler.indices(np.arange(47)).tolist() != plain.indices(np.arange(47)).tolist()
