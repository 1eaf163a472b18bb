"""Measures of replies beside given answers: by hand, and against the published numbers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from mm_rec.errors import MissingExtraError
from mm_rec.evaluation import text_metrics
from mm_rec.evaluation.text_metrics import (
    bleu,
    chrf,
    distinct,
    exact_match,
    package_rouge,
    rouge,
    signatures,
)

REPLIES = ["the cat sat on the mat here now", "Kız dün eve çok geç geldi ."]
REFERENCES = ["today the cat sat on the mat here", "Kız dün eve geç geldi ."]


def test_package_rouge_equals_the_published_numbers(real_data: Callable[[str], Path]) -> None:
    rows = json.loads(real_data("eval/rouge_tests_data.json").read_text("utf-8"))
    assert len(rows) == 4
    for row in rows:
        scores = package_rouge(row["hyp"], row["ref"])
        assert scores.keys() == row["scores"].keys()
        for name, expected in row["scores"].items():
            assert scores[name] == pytest.approx(expected, rel=1e-12, abs=0), name


def test_package_rouge_by_hand() -> None:
    scores = package_rouge("a a b c", "a c d")
    assert scores["rouge-1"] == pytest.approx({"p": 2 / 3, "r": 2 / 3, "f": 2 / 3})
    assert scores["rouge-2"] == {"p": 0, "r": 0, "f": 0}
    p, r = 2 / 4, 2 / 3
    beta2 = (p / r) ** 2
    f = (1 + beta2) * p * r / (r + beta2 * p)
    assert scores["rouge-l"] == pytest.approx({"p": p, "r": r, "f": f})
    assert (
        package_rouge("", "a b")["rouge-l"] == package_rouge("a b", "")["rouge-2"] == {"p": 0, "r": 0, "f": 0}
    )


def test_rouge_of_english_letters_is_that_of_the_default_tokeniser(real_data: Callable[[str], Path]) -> None:
    default = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for row in json.loads(real_data("eval/rouge_tests_data.json").read_text("utf-8")):
        hyp, ref = (row[key].replace("'", " ") for key in ("hyp", "ref"))  # within a word ours joins
        expected = [score.fmeasure for score in default.score(ref, hyp).values()]
        assert list(rouge(hyp, ref, "en").values()) == expected


def test_rouge_keeps_turkish_letters() -> None:
    assert RougeScorer(["rouge1"]).score("şık ışık", "k ik")["rouge1"].fmeasure > 0  # what it does by itself
    assert rouge("k ik", "şık ışık", "tr")["rouge_1"] == 0
    assert rouge("IŞIK İÇİN!", "ışık için", "tr") == {"rouge_1": 1, "rouge_2": 1, "rouge_l": 1}
    assert rouge("IŞIK", "ışık", "en")["rouge_1"] == 0
    assert rouge("a b c d", "a c b d") == {"rouge_1": 1, "rouge_2": 0, "rouge_l": 0.75}
    assert rouge("", "a") == {"rouge_1": 0, "rouge_2": 0, "rouge_l": 0}


def plain_bleu(replies: list[str], references: list[str]) -> float:
    """Papineni et al. 2002, for texts whose words are cut already and that share a 4-gram."""
    logs = []
    for size in range(1, 5):
        shared = total = 0
        for reply, reference in zip(replies, references, strict=True):
            ours, theirs = (
                Counter(zip(*(text.split()[shift:] for shift in range(size)), strict=False))
                for text in (reply, reference)
            )
            shared, total = shared + (ours & theirs).total(), total + ours.total()
        logs.append(math.log(shared / total))
    length, wanted = (sum(len(text.split()) for text in texts) for texts in (replies, references))
    return 100 * min(1, math.exp(1 - wanted / length)) * math.exp(sum(logs) / 4)


def test_bleu_of_a_corpus() -> None:
    assert bleu(REPLIES, REFERENCES) == pytest.approx(plain_bleu(REPLIES, REFERENCES))
    assert bleu(REFERENCES, REPLIES) == pytest.approx(plain_bleu(REFERENCES, REPLIES))
    assert bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    assert bleu(["", ""], REFERENCES) == 0


def test_chrf_of_a_corpus() -> None:
    def grams(text: str, size: int) -> Counter[str]:
        text = text.replace(" ", "")
        return Counter(text[start : start + size] for start in range(len(text) - size + 1))

    reply, reference = REPLIES[1], REFERENCES[1]
    shared = [(grams(reply, size) & grams(reference, size)).total() for size in range(1, 7)]
    p, r = (
        sum(same / grams(text, size).total() for size, same in enumerate(shared, 1)) / 6
        for text in (reply, reference)
    )
    assert chrf([reply], [reference]) == pytest.approx(100 * 5 * p * r / (4 * p + r))
    assert chrf(REFERENCES, REFERENCES) == pytest.approx(100)


def test_signatures_say_what_was_used() -> None:
    given = signatures()
    assert given.keys() == {"bleu", "chrf", "rouge"}
    assert "tok:13a" in given["bleu"] and "nrefs:1" in given["bleu"] and "version:" in given["bleu"]
    assert "nc:6" in given["chrf"]
    assert "tok:mm_rec.text.words" in given["rouge"] and "rouge-score:0." in given["rouge"]


@pytest.mark.parametrize(
    ("reply", "reference", "language", "same"),
    [
        ("Paris", "paris.", None, True),
        ("  The  answer\nis 4 !", "the answer is 4", None, True),
        ("ILIK", "ılık", "tr", True),
        ("ILIK", "ılık", "en", False),
        ("İzmir", "izmir", "en", True),
        ("g\u0306o\u0308l", "ğöl", "tr", True),
        ("4.5", "45", None, False),
        ("", ".", None, True),
        ("4", "5", None, False),
    ],
)
def test_exact_match(reply: str, reference: str, language: str | None, same: bool) -> None:
    assert exact_match(reply, reference, language) is same


def test_distinct_counts_over_all_texts_and_not_across_them() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"], []]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)
    assert distinct(texts, 5) == 1


@pytest.mark.parametrize("package", ["sacrebleu", "rouge_score.rouge_scorer"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    text_metrics._rouge_scorer.cache_clear()
    with pytest.raises(MissingExtraError, match=r"mm-rec\[eval\]"):
        signatures()
