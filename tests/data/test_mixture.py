"""Mixing: shares at any time, pure functions of the row, curriculum, ranks, and recipes that cannot be meant."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_rec.data.batches import RowBatches, mixture_batches
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.mixture import (
    CYCLE,
    Mixture,
    check_mixture,
    describe_mixture,
    group_sources,
    plan_mixture,
)
from mm_rec.data.prepare import plan_groups
from mm_rec.data.row_sources import PackedSequences
from mm_rec.data.sections import DataSource, Phase
from mm_rec.data.split import document_hash
from mm_rec.errors import CheckpointError, ConfigError, DataError

WEIGHTS = [[1.0], [1, 2], [1, 1, 1], [5, 3, 1, 0.01], [0, 3, 1], [1, 1e-9], list(range(1, 12))]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_after_every_row_each_source_has_its_share_rounded_down_or_up(weights: list[float]) -> None:
    mixture = Mixture([str(number) for number in range(len(weights))], [(0, weights)])
    rows = CYCLE + 1000
    sources, places = mixture.assign(0, rows)
    wanted = np.array(weights) / sum(weights)
    shares = mixture.counts(CYCLE) / CYCLE
    assert np.abs(shares - wanted).max() <= 1 / CYCLE and ((shares > 0) == (wanted > 0)).all()
    for source, share in enumerate(shares):
        counts = np.cumsum(sources == source)
        expected = np.arange(1, rows + 1) * share
        assert (np.abs(counts - expected) < 1).all()
        assert (places[sources == source] == np.arange(counts[-1])).all()


def test_any_window_is_that_of_the_whole_run_across_cycles_and_stages() -> None:
    mixture = Mixture(["a", "b", "c"], [(0, [1, 2, 0]), (70, [1, 0, 5]), (CYCLE + 200, [2, 2, 1])])
    length = 3 * CYCLE
    whole = mixture.assign(0, length)
    chance = random.Random(0)
    for first in [0, 69, 70, CYCLE + 199, *(chance.randrange(length - 100) for _ in range(50))]:
        count = chance.randint(1, 100)
        for part, all_of_it in zip(mixture.assign(first, count), whole, strict=True):
            assert (part == all_of_it[first : first + count]).all()
        assert (mixture.counts(first) == np.bincount(whole[0][:first], minlength=3)).all()
    for source in range(3):
        assert (whole[1][whole[0] == source] == np.arange((whole[0] == source).sum())).all()
    assert not (whole[0][:70] == 2).any() and not (whole[0][70 : CYCLE + 200] == 1).any()


def sources(**weights: float) -> list[DataSource]:
    return [DataSource(path=f"{name}/", name=name, weight=weight) for name, weight in weights.items()]


@pytest.mark.parametrize(("temperature", "expected"), [(1, [0.9, 0.1]), (2, [0.75, 0.25]), (1e9, [0.5, 0.5])])
def test_temperature_flattens_sizes_and_weights_multiply(temperature: float, expected: list[float]) -> None:
    sizes = {"web": 9_000, "books": 1_000}
    plain = plan_mixture(sizes, sources(web=1, books=1), temperature, [], 100, 4)
    assert list(plain.shares(CYCLE).values()) == pytest.approx(expected, abs=1 / CYCLE)
    doubled = plan_mixture(sizes, sources(web=1, books=2), temperature, [], 100, 4)
    ratio = 2 * expected[1] / (expected[0] + 2 * expected[1])
    assert doubled.shares(CYCLE)["books"] == pytest.approx(ratio, abs=1 / CYCLE)


def test_stages_change_weights_at_a_step() -> None:
    stages = [Phase(until=0.55, weights={"books": 0}), Phase(until=1.0, weights={"web": 0})]
    mixture = plan_mixture({"web": 100, "books": 100}, sources(web=1, books=3), 1, stages, 10, 4)
    first = round(0.55 * 10) * 4
    chosen, _ = mixture.assign(0, 40)
    assert (chosen[:first] == 0).all() and (chosen[first:] == 1).all()
    lines = describe_mixture(mixture, 40, 16, {"web": 500, "books": 20})
    assert lines[0] == "phase 1, from 0% of the run on: web 100.0%, books 0.0%"
    assert "warning: books is read 12.8 times" in lines[-1] and "Muennighoff" in lines[-1]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> dict[str, Corpus]:
    chance = random.Random(0)
    folder = tmp_path_factory.mktemp("corpora")
    found = {}
    for name, letters, count in (("web", "abcd ", 90), ("books", "wxyz ", 11)):
        documents = ["".join(chance.choices(letters, k=chance.randint(1, 58))) for _ in range(count)]
        found[name] = write_corpus(documents, byte_tokenizer, folder / name, threads=1)
    return found


def batches(corpora: dict[str, Corpus], micro: int, times: int = 1, **options: int) -> RowBatches:
    return mixture_batches(
        corpora, Mixture(list(corpora), [(0, [2, 1])]), 32, micro, times, **{"seed": 5, **options}
    )


def test_each_source_is_read_whole_once_an_epoch_in_an_order_of_its_own(corpora: dict[str, Corpus]) -> None:
    run = batches(corpora, micro=3)
    lengths = [len(PackedSequences(corpus, 32)) for corpus in corpora.values()]
    steps = 3 * max(lengths)
    ids = torch.cat([run.batch_at(step)["input_ids"] for step in range(steps)]).numpy()
    chosen, _ = run.mixture.assign(0, 3 * steps)
    for source, (corpus, length) in enumerate(zip(corpora.values(), lengths, strict=True)):
        rows = PackedSequences(corpus, 32).batch(np.arange(length))["input_ids"].numpy()
        expected = sorted(map(tuple, rows.tolist()))
        read = ids[chosen == source]
        epochs = [read[start : start + length] for start in range(0, len(read) - length + 1, length)]
        assert len(epochs) > 1
        assert all(sorted(map(tuple, epoch.tolist())) == expected for epoch in epochs)
        assert (epochs[0] != epochs[1]).any()


def test_accumulation_and_ranks_cut_the_same_rows(corpora: dict[str, Corpus]) -> None:
    whole = batches(corpora, micro=12)
    parts, ranks = batches(corpora, 3, 4), [batches(corpora, 3, 2, rank=r, world_size=2) for r in range(2)]
    padded = 0
    for step in range(40):
        expected = whole.batch_at(step)
        for pieces in (
            [parts.batch_at(step, micro) for micro in range(4)],
            [rank.batch_at(step, micro) for rank in ranks for micro in range(2)],
        ):
            for name in ("input_ids", "labels", "document_ids"):
                assert torch.equal(torch.cat([piece[name] for piece in pieces]), expected[name])
        if "attention_mask" in expected:  # a row with padding beside rows without
            padded += 1
            assert torch.equal(expected["attention_mask"] == 0, expected["document_ids"] == -1)
    assert padded and whole.epoch(39) == parts.epoch(39) == ranks[1].epoch(39) > 0


def test_a_state_is_taken_back_only_by_the_same_mixture(corpora: dict[str, Corpus]) -> None:
    state = batches(corpora, 8).state_dict()
    batches(corpora, 2, 4).load_state_dict(state, {})
    batches(corpora, 2, 2, rank=1, world_size=2).load_state_dict(state)
    other = mixture_batches(corpora, Mixture(list(corpora), [(0, [1, 1])]), 32, 8, seed=5)
    with pytest.raises(CheckpointError, match="mixture was"):
        other.load_state_dict(state)


def test_a_source_is_a_path_or_a_path_with_name_and_weight() -> None:
    plain = DataSource.model_validate("a/b.txt")
    named = DataSource.read({"path": "data/web/*.jsonl.gz", "weight": 2})
    assert (plain.name, plain.weight, named.name) == ("text", 1.0, "web")
    assert DataSource.read({"path": "s3://bucket/x/books.parquet"}).name == "books"
    assert plain.model_dump() == "a/b.txt"
    for source in (plain, named):
        assert DataSource.model_validate(source.model_dump(mode="json")) == source
    assert group_sources([plain, named, DataSource.model_validate("c/")]) == {
        "text": ["a/b.txt", "c/"], "web": ["data/web/*.jsonl.gz"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="needs a name"):
        DataSource.read({"path": "*.txt"})


@pytest.mark.parametrize(
    ("weights", "temperature", "stages", "message"),
    [
        ({"web": 1}, 2, [], "mix sources, and there is one"),
        ({"web": 1}, 1, [(1, {})], "mix sources, and there is one"),
        ({"web": 1, "books": 1}, 1, [(0.5, {})], "must rise to 1.0"),
        ({"web": 1, "books": 1}, 1, [(0.7, {}), (0.6, {}), (1, {})], "must rise to 1.0"),
        ({"web": 1, "books": 1}, 1, [(1, {"boks": 1})], "no source 'boks'; did you mean 'books'"),
        ({"web": 1, "books": 1}, 1, [(1, {"books": -1})], "weight of 'books' is -1"),
        ({"web": 1, "books": 1}, 1, [(0.5, {}), (1, {"web": 0, "books": 0})], "weighs 0 in phase 2"),
        ({"web": 0}, 1, [], "weighs 0"),
    ],
)
def test_mixtures_that_cannot_be_meant(
    weights: dict[str, float], temperature: float, stages: list[tuple[float, dict[str, float]]], message: str
) -> None:
    planned = [Phase(until=until, weights=changed) for until, changed in stages]
    with pytest.raises(ConfigError, match=message):
        check_mixture(sources(**weights), temperature, planned)


def test_one_name_with_two_weights() -> None:
    twice = [*sources(web=1), *sources(web=2)]
    with pytest.raises(ConfigError, match="'web' weighs 1 in one place and 2 in another"):
        check_mixture(twice, 1, [])


def test_no_source_trains_on_what_another_holds_out(tmp_path: Path) -> None:
    """A small source holds out more than the asked-for share; the large one has a copy of the same documents."""
    small = [f"a document with the number {number}" for number in range(40)]
    large = [f"another document with the number {number}" for number in range(4000)]
    for name, documents in (("small", small), ("large", [*large, *small])):
        (tmp_path / f"{name}.txt").write_text("\n".join(documents))
    options = {"documents": "line", "validation_fraction": 0.002}
    groups = {name: [tmp_path / f"{name}.txt"] for name in ("small", "large")}
    plans = plan_groups(groups, **options)
    held = set(plans["small"].texts("validation")) | set(plans["large"].texts("validation"))
    trained = [text for plan in plans.values() for text in plan.texts("train")]
    assert plans["small"].split.rule == "lowest-hash" and plans["large"].left_out > 0
    assert not held & set(trained) and held
    assert len(trained) + plans["large"].left_out + sum(
        plan.split.validation_documents for plan in plans.values()
    ) == len(small) + len([*large, *small])
    assert all(document_hash(text) >= plans["large"].split.threshold for text in trained)
    assert "are also held out elsewhere" in "\n".join(plans["large"].describe())


def test_a_source_shorter_than_a_row_is_named(corpora: dict[str, Corpus]) -> None:
    with pytest.raises(DataError, match="books"):
        mixture_batches(corpora, Mixture(list(corpora), [(0, [1, 1])]), corpora["books"].tokens + 1, 1)
