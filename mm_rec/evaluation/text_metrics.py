"""Reference metrics (BLEU, chrF, ROUGE, exact match) and diversity (distinct-n) of replies.

BLEU and chrF are sacreBLEU's over a corpus, 0 to 100. ROUGE is rouge-score's with words of ours, since its own drop
every letter that English has not; the mean F1 of the pairs, 0 to 1. `signatures` says what was used, for a paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from mm_rec import __version__
from mm_rec.errors import needs_extra
from mm_rec.text.rouge import lcs_length
from mm_rec.text.words import lower, words

_ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
_SPACES = re.compile(r"\s+")
_FINAL = " .!?…。"


def bleu(replies: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU (Papineni et al. 2002), by sacreBLEU with its defaults."""
    return float(_sacrebleu().BLEU().corpus_score(replies, [references]).score)


def chrf(replies: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 (Popović 2015), by sacreBLEU with its defaults."""
    return float(_sacrebleu().CHRF().corpus_score(replies, [references]).score)


def rouge(reply: str, reference: str, language: str | None = None) -> dict[str, float]:
    """The F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): `rouge_1`, `rouge_2`, `rouge_l`."""
    scores = _rouge_scorer(language).score(reference, reply)
    return {name: float(scores[key].fmeasure) for key, name in _ROUGE.items()}


def signatures() -> dict[str, str]:
    """Return the signatures of BLEU, chrF and ROUGE: options and versions."""
    metrics, _ = _sacrebleu(), _rouge_scorer(None)
    scored = {"bleu": metrics.BLEU(), "chrf": metrics.CHRF()}
    for metric in scored.values():
        metric.corpus_score(["a"], [["a"]])  # how many references there are stands in the signature
    return {name: str(metric.get_signature()) for name, metric in scored.items()} | {
        "rouge": "f:f1|average:mean|stem:no|case:lower by language|tok:mm_rec.text.words"
        f"|mm_rec:{__version__}|rouge-score:{version('rouge-score')}"
    }


def package_rouge(reply: str, reference: str) -> dict[str, dict[str, float]]:
    """ROUGE as the package `rouge` defined it at first, for figures that were published so: `p`, `r` and `f` of each.

    Words are cut at white space. An n-gram counts once, however often it stands there. The F of ROUGE-L has
    β = P / R (Lin 2004, equation 4). The small terms are that package's own, against division by zero.
    """
    hypothesis, given = reply.split(), reference.split()
    scores = {}
    for name, size in (("rouge-1", 1), ("rouge-2", 2)):
        ours, theirs = set(_ngrams(hypothesis, size)), set(_ngrams(given, size))
        p, r = len(ours & theirs) / max(1, len(ours)), len(ours & theirs) / max(1, len(theirs))
        scores[name] = {"p": p, "r": r, "f": 2 * p * r / (p + r + 1e-8)}
    common = lcs_length(hypothesis, given)
    p, r = common / max(1, len(hypothesis)), common / max(1, len(given))
    beta2 = (p / (r + 1e-12)) ** 2
    scores["rouge-l"] = {"p": p, "r": r, "f": (1 + beta2) * p * r / (r + beta2 * p + 1e-12)}
    return scores


def exact_match(reply: str, reference: str, language: str | None = None) -> bool:
    """Compare a reply with the answer but for letter case, white space, final punctuation and composition (NFC)."""
    return _normalised(reply, language) == _normalised(reference, language)


def distinct(texts: Iterable[Sequence[str]], size: int) -> float:
    """Return the share of different n-grams of texts in words (distinct-n, Li et al. 2016); 1 where there is none."""
    ngrams = [ngram for text in texts for ngram in _ngrams(text, size)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def _normalised(text: str, language: str | None) -> str:
    return _SPACES.sub(" ", lower(text, language)).strip().rstrip(_FINAL)


def _ngrams(text: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + size]) for start in range(len(text) - size + 1)]


def _sacrebleu() -> Any:
    with needs_extra("eval", "BLEU and chrF"):
        from sacrebleu import metrics
    return metrics


class _LanguageWords:
    """Cuts a text for rouge-score: words of `mm_rec.text.words` in the small letters of the language."""

    def __init__(self, language: str | None) -> None:
        self.language = language

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words(lower(text, self.language))


@cache
def _rouge_scorer(language: str | None) -> Any:
    with needs_extra("eval", "ROUGE"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(list(_ROUGE), tokenizer=_LanguageWords(language))
