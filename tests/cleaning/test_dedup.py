"""Duplicates: the estimate against the exact Jaccard similarity, planted edits, and the choice of what stays."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from mm_rec.cleaning.dedup import (
    DedupConfig,
    Fingerprints,
    compute_fingerprints,
    find_duplicates,
    paragraphs,
    remove_paragraphs,
    repeated_paragraphs,
)
from mm_rec.errors import DataError
from mm_rec.text.normalise import dedup_key

CONFIG = DedupConfig()


def document(seed: int, words: int = 300) -> list[str]:
    chance = random.Random(seed)
    return [f"söz{chance.randrange(5000)}" for _ in range(words)]


def edited(words: list[str], share: float, seed: int = 1) -> list[str]:
    """The words with a share of them replaced."""
    chance = random.Random(seed)
    places = set(chance.sample(range(len(words)), round(share * len(words))))
    return [f"yeni{chance.randrange(5000)}" if place in places else word for place, word in enumerate(words)]


def jaccard(first: list[str], other: list[str], n: int = 5) -> float:
    sets = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (first, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def fingerprints(*texts: str) -> Fingerprints:
    return compute_fingerprints(texts, "tr", CONFIG)


def left_out(*texts: str, **settings: object) -> list[tuple[int, int, str]]:
    config = CONFIG.replace(**settings)
    found = find_duplicates(compute_fingerprints(texts, "tr", config), config)
    return [(duplicate.document, duplicate.kept, duplicate.kind) for duplicate in found]


def test_the_signatures_estimate_the_jaccard_similarity_of_five_word_runs():
    errors = []
    for seed in range(30):
        words = document(seed)
        other = edited(words, 0.002 * seed, seed)
        made = fingerprints(" ".join(words), " ".join(other))
        errors.append((made.signatures[0] == made.signatures[1]).mean() - jaccard(words, other))
    assert abs(np.mean(errors)) < 0.02  # unbiased …
    assert np.std(errors) < 0.06  # … and as steady as 128 hashes are: √(s(1 − s)/128) ≤ 0.044


def test_a_signature_does_not_depend_on_the_other_documents_of_its_batch():
    texts = [" ".join(document(seed, words)) for seed, words in enumerate((3, 4, 5, 6, 300, 1))]
    together = fingerprints(*texts)
    for number, text in enumerate(texts):
        alone = fingerprints(text)
        assert (alone.signatures[0] == together.signatures[number]).all()
        assert alone.documents[0] == together.documents[number]
        assert alone.shingles[0] == together.shingles[number] == max(0, len(text.split()) - 4)


def test_case_punctuation_and_unicode_form_hide_no_duplicate_and_other_letters_are_no_duplicate():
    assert left_out("IŞIK söndü, gece oldu!", "ışık söndü gece oldu") == [(1, 0, "exact")]
    assert left_out("İyi günler dilerim.", "i\u0307yi günler dilerim") == [(1, 0, "exact")]
    assert left_out("kâr yağdı", "kar yağdı", "ön taraf", "on taraf") == []


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1.0), (0.02, 1.0), (0.30, 0.0)])
def test_planted_edits_are_found_where_they_are_small_and_not_where_they_are_large(share, expected):
    texts = []
    for seed in range(40):
        words = document(seed)
        texts += [" ".join(words), " ".join(edited(words, share, seed))]
    found = left_out(*texts)
    assert len(found) / 40 == pytest.approx(expected, abs=0.06)
    assert all({document, kept} == {document // 2 * 2, document // 2 * 2 + 1} for document, kept, _ in found)


def test_of_a_cluster_the_longest_stays_or_the_first():
    words = document(1)
    texts = (" ".join(words), " ".join([*words, "ve", "son"]), " ".join(words[:-1]))
    assert left_out(*texts) == [(0, 1, "near"), (2, 1, "near")]
    assert left_out(*texts, keep="first") == [(1, 0, "near"), (2, 0, "near")]
    assert left_out(texts[0], texts[0], texts[1], near=False) == [(1, 0, "exact")]


def test_an_earlier_corpus_is_kept_and_its_repetitions_are_not():
    words = document(1)
    made = fingerprints(" ".join(words[:-2]), " ".join(words), " ".join(document(2)))
    assert [(item.document, item.kept) for item in find_duplicates(made, CONFIG, prior=1)] == [(1, 0)]
    assert find_duplicates(made, CONFIG, prior=3) == []


def test_short_documents_are_compared_only_for_equality():
    assert left_out("Evet.", "Hayır.", "Evet!", "") == [(2, 0, "exact")]


def test_fifty_near_copies_become_one():
    words = document(3)
    copies = [" ".join(edited(words, 0.004, seed)) for seed in range(50)]
    assert len(left_out(*copies)) == 49


def test_the_detection_curve_is_that_of_sixteen_bands_of_eight():
    assert CONFIG.detection_probability(0) == 0
    assert CONFIG.detection_probability(1) == 1
    assert CONFIG.detection_probability(0.8) == pytest.approx(1 - (1 - 0.8**8) ** 16)


BOILERPLATE = "Bu paragraf her sayfanın altında durur ve okuyana hiçbir şey anlatmaz, yine de yazılmıştır."


def test_a_paragraph_that_stood_in_an_earlier_kept_document_is_marked():
    texts = [
        f"Birinci yazı.\n\n{BOILERPLATE}",
        f"{BOILERPLATE.upper().replace('i', 'İ')}\n\nİkinci yazı.",
        "Üçüncü yazı.",
    ]
    texts[1] = f"{BOILERPLATE}!\n\nİkinci yazı."
    made = fingerprints(*texts)
    marked = repeated_paragraphs(made, np.array([True, True, True]))
    assert marked.tolist() == [False, False, True, False, False]
    assert remove_paragraphs(texts[1], marked[made.borders[1] : made.borders[2]]) == "İkinci yazı."
    assert not repeated_paragraphs(
        made, np.array([False, True, True])
    ).any()  # the first is not in the corpus
    assert repeated_paragraphs(made, np.array([True, True, True]), prior=1).tolist()[2]
    assert not repeated_paragraphs(made, np.array([True, True, True]), prior=2).any()


def test_paragraphs_are_blocks_or_where_there_are_none_lines():
    assert paragraphs("a\nb\n\nc") == ["a\nb", "c"]
    assert paragraphs("a\nb") == ["a", "b"]


def test_fingerprints_are_saved_selected_and_joined(tmp_path: Path):
    made = fingerprints("Bir.", f"İki.\n\n{BOILERPLATE}", "Üç.")
    made.save(tmp_path / "prints.npz")
    loaded = Fingerprints.load(tmp_path / "prints.npz")
    parts = [loaded.select(np.arange(3) == number) for number in range(3)]
    joined = Fingerprints.join(parts)
    for name in ("documents", "sizes", "signatures", "shingles", "paragraphs", "borders"):
        assert np.array_equal(getattr(joined, name), getattr(made, name)), name
    (tmp_path / "prints.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match="Clean that corpus again"):
        Fingerprints.load(tmp_path / "prints.npz")


def test_the_key_is_what_two_copies_share():
    assert dedup_key("IŞIK!", "tr") == dedup_key(" ışık ", "tr")
