from __future__ import annotations

import numpy as np
import pytest

from mm_rec.data.split import document_hash, plan_end_split, plan_split
from mm_rec.errors import ConfigError, DataError

MANY = [f"document number {i}, with some words" for i in range(5000)]


def test_the_hash_is_uniform_and_pinned() -> None:
    values = np.array([document_hash(text) for text in MANY])
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.02
    assert document_hash("ışık") == 0.562517417200441


def test_a_fraction_by_hash() -> None:
    split = plan_split(MANY, fraction=0.05)
    held = [text for text in MANY if split.is_validation(text)]
    assert split.rule == "hash" and split.threshold == 0.05
    assert split.validation_documents == len(held) and 180 < len(held) < 320
    assert split.validation_bytes == sum(len(text.encode()) for text in held)
    assert split.bytes == sum(len(text.encode()) for text in MANY) and split.documents == 5000
    assert split.record()["rule"] == "hash"


def test_adding_data_moves_no_document() -> None:
    before = plan_split(MANY[:2500], fraction=0.05)
    after = plan_split(MANY[::-1] + MANY[:10], fraction=0.05)
    assert before.threshold == after.threshold
    assert all(before.is_validation(text) == after.is_validation(text) for text in MANY)


def test_too_few_bytes_take_the_lowest_hashes() -> None:
    books = [f"book {i} " * 100 for i in range(20)]
    split = plan_split(books, fraction=1e-9, minimum=0.12)
    ranked = sorted(books, key=document_hash)
    assert split.rule == "lowest-hash"
    assert [text for text in ranked if split.is_validation(text)] == ranked[:3]
    assert split.validation_documents == 3 and split.validation_bytes >= 0.12 * split.bytes


def test_at_least_one_document_stays_on_each_side() -> None:
    pair = ["a short one", "a long one " * 1000]
    for minimum in (0.0, 0.01, 0.9999):
        split = plan_split(pair, minimum=minimum)
        assert sorted(split.is_validation(text) for text in pair) == [False, True]
    everything = plan_split(MANY[:30], fraction=0.999999999)
    assert everything.validation_documents == 29


def test_repeated_documents_stay_together() -> None:
    split = plan_split(["a", "b", "a", "a", "b", "c"], fraction=0.6)
    assert [split.is_validation(text) for text in "abc"] == [True, False, True]
    assert split.validation_documents == 4


@pytest.mark.parametrize("copies", [3, 20, 500])
def test_a_text_that_is_much_with_its_copies_is_not_held_out_whole(copies: int) -> None:
    for repeated in MANY[:40]:
        documents = [repeated] * copies + MANY[40:50]
        split = plan_split(documents, fraction=0.05)
        held = [text for text in documents if split.is_validation(text)]
        assert len(held) == split.validation_documents > 0
        assert split.validation_bytes <= 0.2 * split.bytes
        if split.kept:
            assert split.kept == {document_hash(repeated)} == set(split.record()["kept"])


@pytest.mark.parametrize("documents", [[], ["only one"], ["same"] * 3])
def test_nothing_to_hold_out(documents: list[str]) -> None:
    with pytest.raises(DataError, match=r"none can be held out.*Give more text.*--validation"):
        plan_split(documents)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("text", ["bir iki üç " * 50, "x" * 100, "上" * 3000, "word " * 100_000])
def test_the_end_of_one_document(text: str, copies: int) -> None:
    split = plan_end_split([text] * copies)
    kept, held = split.split_text(text)
    assert kept and held and kept + held == text
    assert split.rule == "end" and split.validation_bytes == copies * len(held.encode())
    assert 0.01 <= split.validation_bytes / split.bytes < 0.12
    assert not held.startswith(" ") and (kept.endswith(" ") or " " not in text)
    with pytest.raises(DataError, match="too few to hold out"):
        plan_end_split(["two words"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 7.0])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="--validation-fraction"):
        plan_split(MANY, fraction)
