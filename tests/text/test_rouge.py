"""ROUGE-L by bits: equal to the plain dynamic programme, and to rouge-score."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from mm_rec.text.rouge import lcs_length, most_similar, rouge_l
from mm_rec.text.words import lower, words


def plain_lcs(a: list[str], b: list[str]) -> int:
    """The dynamic programme as it is in every textbook."""
    row = [0] * (len(b) + 1)
    for first in a:
        before = row
        row = [0]
        for place, second in enumerate(b):
            row.append(before[place] + 1 if first == second else max(before[place + 1], row[place]))
    return row[-1]


def random_words(length: int, different: int) -> list[str]:
    return [f"w{random.randrange(different)}" for _ in range(length)]


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        ("", "", 0),
        ("", "a", 0),
        ("a", "", 0),
        ("a", "b", 0),
        ("a", "a", 1),
        ("a b c d e", "b d x e", 3),
        ("a a a", "a a a a", 3),
        ("b a", "a b", 1),
        ("police killed the gunman", "the gunman kill police", 2),  # Lin 2004, section 3
        ("police killed the gunman", "police kill the gunman", 3),
    ],
)
def test_lengths_by_hand(a: str, b: str, length: int) -> None:
    assert lcs_length(a.split(), b.split()) == length


@pytest.mark.parametrize("different", [2, 10, 200])
def test_equal_to_the_plain_dynamic_programme(different: int) -> None:
    for size in [*range(10), 31, 32, 33, 63, 64, 65, 127, 128, 129, 400]:
        a, b = random_words(size, different), random_words(random.randrange(200), different)
        assert lcs_length(a, b) == lcs_length(b, a) == plain_lcs(a, b)


def test_equal_to_rouge_score() -> None:
    class Spaces:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Spaces())
    for _ in range(50):
        a, b = random_words(random.randrange(80), 20), random_words(random.randrange(80), 20)
        expected = scorer.score(" ".join(a), " ".join(b))["rougeL"].fmeasure
        assert rouge_l(a, b) == pytest.approx(expected, rel=1e-12)


def test_turkish_words_in_the_letters_of_their_language() -> None:
    first, second = "IŞIK söndü, İrem uyudu.", "ışık söndü; irem UYUDU"
    assert rouge_l(*(words(lower(text, "tr")) for text in (first, second))) == 1
    assert rouge_l(*(words(lower(text, "en")) for text in (first, second))) == pytest.approx(3 / 4)


def test_the_closest_is_the_first_of_the_highest() -> None:
    for _ in range(100):
        text = random_words(random.randrange(12), 8)
        others = [random_words(random.randrange(12), 8) for _ in range(30)]
        scores = [rouge_l(text, other) for other in others]
        best, index = most_similar(text, others)
        assert best == max(scores)
        assert index == (scores.index(best) if best else -1)
    assert most_similar(["a"], []) == most_similar([], [["a"], []]) == (0, -1)
