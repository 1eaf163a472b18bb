"""The bits of batches, pinned: a run that goes on from an older checkpoint must read the very next rows."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_rec.data.batches import corpus_batches, mixture_batches
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.mixture import Mixture
from mm_rec.data.packing import PackedConversations, conversation_batches
from mm_rec.data.row_sources import CorpusRows, PackedSequences
from mm_rec.data.streaming import plan_streams, stream_batches


def digest(batches: Iterable[dict[str, torch.Tensor]]) -> str:
    """A hash of the names, types, shapes and values of batches."""
    found = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for name in sorted(batch):
            array = batch[name].contiguous().numpy()
            found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def read(batches: Any, steps: Iterable[int], accumulation: int) -> str:
    return digest(batches.batch_at(step, micro) for step in steps for micro in range(accumulation))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> dict[str, Corpus]:
    """A long and a short corpus."""
    chance = random.Random(0)
    folder = tmp_path_factory.mktemp("corpora")
    found = {}
    for name, letters, count in (("web", "abcd ", 90), ("books", "wxyz ", 11)):
        documents = ["".join(chance.choices(letters, k=chance.randint(1, 58))) for _ in range(count)]
        found[name] = write_corpus(documents, byte_tokenizer, folder / name, threads=1)
    return found


def examples(count: int, longest: int, seed: int = 1) -> list[TokenizedExample]:
    """Made-up conversations: a question outside the loss mask, an answer inside."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        length = chance.randint(6, longest)
        ids = np.array([chance.randrange(256) for _ in range(length)], dtype=np.int32)
        made.append(TokenizedExample("", ids, np.arange(length) >= chance.randint(1, length // 2)))
    return made


def test_a_corpus(corpora: dict[str, Corpus]) -> None:
    """Three epochs in micro-batches; one rank of two."""
    whole = corpus_batches(corpora["web"], 32, micro_batch=3, accumulation=2, seed=5)
    assert read(whole, range(50), 2) == "80adf01ac9e6bd22"
    half = corpus_batches(corpora["web"], 32, micro_batch=3, accumulation=2, seed=5, rank=1, world_size=2)
    assert read(half, [3, 0, 40], 2) == "51ad75a68eb94ba3"
    assert [whole.epoch(step) for step in (0, 14, 15, 49)] == [0, 0, 0, 3]
    own = {"corpus": corpora["web"].fingerprint, "seq_len": 32, "global_batch": 6, "seed": 5}
    assert whole.state_dict() == own and whole.state_tensors() == {}
    whole.load_state_dict(json.loads(json.dumps(own)), {})


def test_a_mixture_of_corpora(corpora: dict[str, Corpus]) -> None:
    """Two sources of two phases, each in an order of its own, with padded rows."""
    mixture = Mixture(list(corpora), [(0, [2, 1]), (96, [1, 3])])
    whole = mixture_batches(corpora, mixture, 32, 3, 2, seed=5)
    assert read(whole, range(40), 2) == "391d527cca49a86d"
    half = mixture_batches(corpora, mixture, 32, 3, 2, seed=5, rank=1, world_size=2)
    assert read(half, [3, 0, 20], 2) == "f5b9aaa51c360752"
    assert [whole.epoch(step) for step in (0, 20, 39)] == [0, 1, 2]
    own = {
        "corpora": [corpus.fingerprint for corpus in corpora.values()],
        "mixture": mixture.record(),
        "seq_len": 32,
        "global_batch": 6,
        "seed": 5,
    }
    assert whole.state_dict() == own and whole.state_tensors() == {}
    whole.load_state_dict(json.loads(json.dumps(own)), {})


def test_conversations_that_are_folded() -> None:
    """Two sources; rows in which nothing crosses the middle are folded."""
    packed = {
        name: PackedConversations(examples(count, 26) + examples(5, 60), 64, 2, fold_rows=True)
        for name, count in (("a", 70), ("b", 25))
    }
    mixture = Mixture(["a", "b"], [(0, [3, 1])])
    data = conversation_batches(packed, mixture, 64, 3, 2, 7, 2)
    shapes = {tuple(data.batch_at(step)["input_ids"].shape) for step in range(12)}
    assert shapes == {(3, 64), (6, 32)}
    assert read(data, range(30), 2) == "747d01d0b0700027"
    assert [data.epoch(step) for step in (0, 8, 29)] == [0, 1, 6]
    own = {
        "sources": [one.record() for one in packed.values()],
        "mixture": mixture.record(),
        "seq_len": 64,
        "batch": [3, 2, 1],
        "seed": 7,
    }
    assert data.state_dict() == own and data.state_tensors() == {}
    assert [one.record()["columns"] for one in packed.values()] == [10, 4]
    data.load_state_dict(json.loads(json.dumps(own)), {})


def test_carried_conversations_beside_text(corpora: dict[str, Corpus]) -> None:
    """Conversations of several rows, text with padding beside them; one rank of two."""
    packed = PackedConversations(examples(40, 120), 32, 6)
    text = CorpusRows(PackedSequences(corpora["books"], 32), 6)
    mixture = Mixture(["talk", "text of the base"], [(0, [0.75, 0.25])])
    sources = {"talk": packed, "text of the base": text}
    assert packed.carry_state
    data = conversation_batches(sources, mixture, 32, 4, 6, 7, 2, carry_state=True)
    assert read(data, range(12), 6) == "3f31fff7b7f3302b"
    half = conversation_batches(sources, mixture, 32, 4, 6, 7, 2, carry_state=True, rank=1, world_size=2)
    assert read(half, [3, 0, 9], 6) == "6f5f81039438c841"
    assert data.state_dict()["sources"][1] == {"corpus": corpora["books"].fingerprint, "columns": len(text)}


def test_streams(tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources in shuffle buffers; a state is taken back in the middle."""
    monkeypatch.setattr("mm_rec.data.streaming._BATCH_CHARACTERS", 150)
    for number in range(3):
        (tmp_path / "web").mkdir(exist_ok=True)
        rows = [json.dumps({"text": f"page {number}-{i} " + "ab" * (i % 9)}) for i in range(30)]
        (tmp_path / "web" / f"{number}.jsonl").write_text("\n".join(rows))
    (tmp_path / "books").mkdir()
    books = "\n\n".join(f"BOOK {number}" * (1 + number % 4) for number in range(60))
    (tmp_path / "books" / "b.txt.gz").write_bytes(gzip.compress(books.encode()))
    sources = plan_streams(
        {name: [str(tmp_path / name)] for name in ("web", "books")},
        text_field="text",
        documents="blank-line",
        validation_fraction=0.2,
        validation_sources=[],
    )
    mixture = Mixture(["web", "books"], [(0, [3, 1])])

    def batches(seed: int = 3) -> Any:
        return stream_batches(sources, mixture, byte_tokenizer, 20, 2, 2, seed=seed, shuffle_rows=7)

    whole = batches()
    assert read(whole, range(90), 2) == "e579f37380e68391"
    assert whole.epoch(89) == 2
    first = batches()
    read(first, range(15), 2)
    state = json.loads(json.dumps(first.state_dict()))
    assert list(state) == [
        *["tokenizer", "mixture", "seq_len", "global_batch", "seed", "shuffle_rows", "held_out"],
        *["row", "streams"],
    ]
    assert state["row"] == 60 and list(state["streams"]) == ["web", "books"]
    assert list(state["streams"]["web"]) == ["drawn", "reader"]
    names = [f"{name}.{part}" for name in sources for part in ("ids", "starts", "buffer", "buffer_starts")]
    assert list(first.state_tensors()) == names
    second = batches()
    second.load_state_dict(state, first.state_tensors())
    assert read(second, range(15, 60), 2) == read(first, range(15, 60), 2) == "df915cbce06a745f"
