"""Pairs of texts of which one is right: does the model find that one likelier?

BLiMP (Warstadt et al. 2020) and TurBLiMP (Başar et al. 2025) pair a grammatical sentence with one that a small change
made ungrammatical; XCOPA (Ponti et al. 2020) asks which of two sentences is the cause, or the effect, of a third. The
score of a text is the sum of the log-probabilities of its tokens, which is what the papers compare; the same per token
and per byte stand beside it, for pairs of different length. Scores that are equal as far as float32 can tell count as
half a right answer: some published pairs are the same sentence twice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import DataError
from mm_rec.evaluation.loglikelihood import BATCH_TOKENS, Loglikelihood, encode_request, loglikelihoods
from mm_rec.sources.documents import find_files
from mm_rec.sources.formats import read_rows
from mm_rec.sources.locations import SourceFile, file_kind
from mm_rec.sources.problems import Problem, ProblemError, ProblemHandler, problem_error, raise_problem
from mm_rec.text.words import guess_language, lower

BLIMP, TURBLIMP, XCOPA = "BLiMP", "TurBLiMP", "XCOPA"

_FIELDS = {
    BLIMP: ("sentence_good", "sentence_bad"),
    TURBLIMP: ("good_sentence", "bad_sentence"),
    XCOPA: ("premise", "choice1", "choice2", "question", "label"),
}
_CONNECTORS = {
    "tr": {"cause": "çünkü", "effect": "bu yüzden"},
    "en": {"cause": "because", "effect": "therefore"},
}
_ROW_BYTES = 2**20
_TIE = 1e-6  # relative; two scores closer than this differ by rounding alone

NumberedRow = tuple[int, Mapping[str, Any]]
ContextAndText = tuple[str, str]  # context, continuation


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two continuations of one context ("" for whole sentences), of which `good` is the right one."""

    suite: str
    paradigm: str
    context: str
    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class ParadigmScores:
    """The share of pairs whose right text was the likelier one; ties count half.

    `accuracy` compares sums, with its `standard_error` (not a number for a single pair) and its `ties`;
    `accuracy_per_token` and `accuracy_per_byte` compare means over the tokens and the UTF-8 bytes of the continuation.
    """

    suite: str
    paradigm: str
    pairs: int
    accuracy: float
    standard_error: float
    ties: int
    accuracy_per_token: float
    accuracy_per_byte: float


@dataclass(frozen=True, slots=True)
class PairScores:
    """All paradigms in the order in which they were read, and for each suite the mean of `accuracy` over its own."""

    paradigms: tuple[ParadigmScores, ...]
    means: dict[str, float]


def read_pairs(
    paths: Sequence[SourceFile | str], report: ProblemHandler = raise_problem
) -> list[MinimalPair]:
    """Read pairs from files and folders; the fields of a file's first row tell its kind.

    A file of a folder that holds something else is passed over. Each row that cannot be used is told to `report` with
    file and line (in CSV and Parquet the row), and raises DataError where none is given. Raises DataError too where
    there are no pairs at all, or a file that was named holds none.
    """
    named = {str(path) for path in paths}
    pairs: list[MinimalPair] = []
    for file in find_files(paths):
        found = _file_pairs(file, report)
        if found is None and str(file) in named:
            raise DataError(f"there are no minimal pairs here. {_known_fields()}", str(file))
        pairs += found or []
    if not pairs:
        places = ", ".join(sorted(named))
        raise DataError(f"there are no minimal pairs in {places}. {_known_fields()}")
    return pairs


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[MinimalPair],
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> PairScores:
    """Compare the two texts of each pair; each different text is scored once, with bos before it."""
    texts = dict.fromkeys((pair.context, text) for pair in pairs for text in (pair.good, pair.bad))
    requests = (encode_request(tokenizer, *text) for text in texts)
    likelihoods = dict(zip(texts, loglikelihoods(model, requests, batch_tokens=batch_tokens), strict=True))
    groups: dict[tuple[str, str], list[MinimalPair]] = {}
    for pair in pairs:
        groups.setdefault((pair.suite, pair.paradigm), []).append(pair)
    paradigms = tuple(_paradigm(*names, group, likelihoods) for names, group in groups.items())
    suites = dict.fromkeys(scores.suite for scores in paradigms)
    means = {
        suite: statistics.fmean(scores.accuracy for scores in paradigms if scores.suite == suite)
        for suite in suites
    }
    return PairScores(paradigms, means)


def _paradigm(
    suite: str,
    paradigm: str,
    pairs: Sequence[MinimalPair],
    likelihoods: Mapping[ContextAndText, Loglikelihood],
) -> ParadigmScores:
    sums, per_token, per_byte = [], [], []
    for pair in pairs:
        good, bad = (likelihoods[pair.context, text] for text in (pair.good, pair.bad))
        sums.append(_pair_score(good.logprob, bad.logprob))
        per_token.append(_pair_score(good.logprob / good.tokens, bad.logprob / bad.tokens))
        good_bytes, bad_bytes = len(pair.good.encode()), len(pair.bad.encode())
        per_byte.append(_pair_score(good.logprob / good_bytes, bad.logprob / bad_bytes))
    spread = statistics.stdev(sums) / math.sqrt(len(sums)) if len(sums) > 1 else math.nan
    return ParadigmScores(
        suite=suite,
        paradigm=paradigm,
        pairs=len(pairs),
        accuracy=statistics.fmean(sums),
        standard_error=spread,
        ties=sums.count(0.5),
        accuracy_per_token=statistics.fmean(per_token),
        accuracy_per_byte=statistics.fmean(per_byte),
    )


def _pair_score(good: float, bad: float) -> float:
    """Return 1 where the right text has the higher score, ½ for a tie."""
    return 0.5 if math.isclose(good, bad, rel_tol=_TIE) else float(good > bad)


def _file_pairs(file: SourceFile, report: ProblemHandler) -> list[MinimalPair] | None:
    """Read the pairs of one file; None where it holds something else."""
    if file_kind(file) == "txt":
        return None
    problems: list[Problem] = []
    stream = read_rows(file, _ROW_BYTES, problems.append)
    try:
        first = next(stream, None)
        suite = None if first is None else _suite_of(first[1])
        if first is None or suite is None:
            return None
        found = [first, *stream]
    except ProblemError as error:
        raise DataError(error.problem.message, str(file), error.problem.line) from error
    for problem in problems:
        report(problem)
    return list(_pairs(suite, found, file, report))


def _suite_of(row: Mapping[str, Any]) -> str | None:
    return next((name for name, fields in _FIELDS.items() if all(field in row for field in fields)), None)


def _known_fields() -> str:
    kinds = "; ".join(f"{', '.join(fields)} ({name})" for name, fields in _FIELDS.items())
    return f"The first row of a file must have one of these sets of fields: {kinds}"


def _pairs(
    suite: str, found: Sequence[NumberedRow], file: SourceFile, report: ProblemHandler
) -> Iterator[MinimalPair]:
    stem = file.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[0].removeprefix("augmented_")
    language = _language(found) if suite == XCOPA else ""
    for number, row in found:
        try:
            if suite == XCOPA:
                yield MinimalPair(suite, stem, *_causal_texts(row, file, number, language))
            else:
                good, bad = (_text(row, field, file, number) for field in _FIELDS[suite])
                yield MinimalPair(suite, str(row.get("UID") or stem), "", good, bad)
        except ProblemError as error:
            report(error.problem)


def _language(found: Sequence[NumberedRow]) -> str:
    """Return the language of a file of XCOPA: Turkish where most premises and choices have a letter of its own."""
    texts = [" ".join(str(row.get(field)) for field in _FIELDS[XCOPA][:3]) for _, row in found]
    turkish = sum(guess_language(text) == "tr" for text in texts)
    return "tr" if 2 * turkish > len(texts) else "en"


def _causal_texts(
    row: Mapping[str, Any], file: SourceFile, number: int, language: str
) -> tuple[str, str, str]:
    """Context, right and wrong continuation: "Adam musluğu açtı bu yüzden", " musluktan su aktı.", …"""
    premise = _text(row, "premise", file, number)
    choices = [_text(row, field, file, number) for field in ("choice1", "choice2")]
    connectors = _CONNECTORS[language]
    question, label = row.get("question"), str(row.get("label"))
    if question not in connectors:
        raise problem_error(
            "bad-row", f"'question' is {question!r}; it must be 'cause' or 'effect'", file, number
        )
    if label not in ("0", "1"):
        raise problem_error(
            "bad-row", f"'label' is {label!r}; it must be 0 (choice1) or 1 (choice2)", file, number
        )
    good, bad = (f" {lower(text[0], language)}{text[1:]}" for text in choices)
    if label == "1":
        good, bad = bad, good
    return f"{premise.rstrip('.')} {connectors[question]}", good, bad


def _text(row: Mapping[str, Any], field: str, file: SourceFile, number: int) -> str:
    """Return the text in a field, stripped; raises ProblemError where there is none."""
    text = row.get(field)
    if not isinstance(text, str) or not text.strip():
        raise problem_error(
            "not-a-string", f"{field!r} is {text!r} and must be a text. Mend or delete the row", file, number
        )
    return text.strip()
