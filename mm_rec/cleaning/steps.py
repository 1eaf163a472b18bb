"""The cleaning steps of one document, in order: each returns the document, or the reason to drop it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pydantic import Field

from mm_rec import __version__
from mm_rec.cleaning.contamination import EvaluationIndex
from mm_rec.cleaning.dedup import DedupConfig
from mm_rec.cleaning.document import CleaningDocument, CleaningStep, Cut, Dropped, Reason
from mm_rec.cleaning.language import LanguageConfig, filter_language
from mm_rec.cleaning.lines import LineConfig, Phrases, cut_lines, phrases_for
from mm_rec.cleaning.markup import strip_markup
from mm_rec.cleaning.pii import mask_pii
from mm_rec.cleaning.rules import Rule, first_violation, rules_for
from mm_rec.config import Section
from mm_rec.text.languages import get_language
from mm_rec.text.normalise import normalise, repair_dotted_i
from mm_rec.text.words import DOTTED_LANGUAGES, lower

EMPTY = Reason("empty")
BAD_WORDS = Reason("bad words")
EVALUATION_TEXT = Reason("evaluation text")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")


class CleaningConfig(Section):
    """All settings of the cleaning of a document."""

    language: str = "tr"
    markup: bool = True  # from HTML and Markdown to text
    lines: LineConfig = LineConfig()
    identification: LanguageConfig = LanguageConfig()
    quality: bool = True  # the rules of thresholds.yaml …
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)  # … changed by name: {digits: {max: 0.3}}
    published_limits: bool = False  # the papers' limits and not those calibrated for the language
    bad_words: list[str] = Field(default_factory=list)  # a page with one of these words is dropped
    personal: bool = True  # mask personal data


@dataclass(frozen=True)
class ResolvedCleaning:
    """Everything that a cleaned document depends on: the settings, and what they stand for."""

    config: CleaningConfig
    rules: Sequence[Rule]  # in force, with their limits
    phrases: Phrases
    dedup: DedupConfig  # of the fingerprints that are made of a cleaned document
    evaluation: EvaluationIndex | None

    def record(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        index = self.evaluation
        return {
            "version": __version__,
            "steps": [builder.__qualname__ for builder in STEPS],
            "config": self.config.model_dump(mode="json"),
            "rules": [rule.model_dump(mode="json") for rule in self.rules],
            "phrases": self.phrases,
            "dedup": self.dedup.model_dump(mode="json"),
            "evaluation": None if index is None else [index.n, *(item.text for item in index.items)],
        }

    @cached_property
    def digest(self) -> str:
        """A hash of the record."""
        return hashlib.sha256(json.dumps(self.record()).encode()).hexdigest()


def resolve_cleaning(
    config: CleaningConfig, dedup: DedupConfig | None = None, evaluation: EvaluationIndex | None = None
) -> ResolvedCleaning:
    """Read the rules and the phrases that the settings name; raises ConfigError for a rule that there is not."""
    rules = rules_for(config.language, config.rules, config.published_limits) if config.quality else []
    return ResolvedCleaning(config, rules, phrases_for(config.language), dedup or DedupConfig(), evaluation)


def _normalise(cleaning: ResolvedCleaning) -> CleaningStep:
    def step(document: CleaningDocument) -> CleaningDocument:
        text, dots = normalise(document.text), 0
        if document.language.code in DOTTED_LANGUAGES:
            text, dots = repair_dotted_i(text)
        return document.with_text(
            text, [Cut("second dot on an i (İ in small letters without a language)", "\u0307")] * dots
        )

    return step


def _markup(cleaning: ResolvedCleaning) -> CleaningStep | None:
    return strip_markup if cleaning.config.markup else None


def _lines(cleaning: ResolvedCleaning) -> CleaningStep:
    return partial(cut_lines, config=cleaning.config.lines, phrases=cleaning.phrases)


def _blank_lines(cleaning: ResolvedCleaning) -> CleaningStep:
    """Join the blank lines that cut lines left; drop an empty document."""

    def step(document: CleaningDocument) -> CleaningDocument | Dropped:
        text = _BLANK_LINES.sub("\n\n", document.text).strip()
        return document.with_text(text) if text else Dropped(EMPTY, "nothing is left")

    return step


def _language(cleaning: ResolvedCleaning) -> CleaningStep | None:
    config = cleaning.config.identification
    return partial(filter_language, config=config) if config.identify else None


def _bad_words(cleaning: ResolvedCleaning) -> CleaningStep | None:
    code = cleaning.config.language
    bad = frozenset(lower(word.strip(), code) for word in cleaning.config.bad_words) - {""}

    def step(document: CleaningDocument) -> CleaningDocument | Dropped:
        small = lower(" ".join(document.words), code).replace("'", " ")  # a name and its suffix: Ali'nin
        found = bad.intersection(small.split())
        return Dropped(BAD_WORDS, ", ".join(sorted(found))) if found else document

    return step if bad else None


def _quality(cleaning: ResolvedCleaning) -> CleaningStep | None:
    rules = cleaning.rules
    return (lambda document: first_violation(document, rules) or document) if rules else None


def _personal_data(cleaning: ResolvedCleaning) -> CleaningStep | None:
    return mask_pii if cleaning.config.personal else None


def _evaluation(cleaning: ResolvedCleaning) -> CleaningStep | None:
    index = cleaning.evaluation
    if index is None:
        return None

    def step(document: CleaningDocument) -> CleaningDocument | Dropped:
        found = index.find(document.text)
        if not found:
            return document
        return Dropped(EVALUATION_TEXT, f"{found[0].location}: {found[0].text[:80]}")

    return step


# In this order; a builder returns None where the settings leave its step out.
STEPS: tuple[Callable[[ResolvedCleaning], CleaningStep | None], ...] = (
    _normalise,
    _markup,
    _lines,
    _blank_lines,
    _language,
    _bad_words,
    _quality,
    _personal_data,
    _evaluation,
)


class Cleaner:
    """The steps of a cleaning, in order."""

    def __init__(self, cleaning: ResolvedCleaning) -> None:
        self.language = get_language(cleaning.config.language)
        self.steps = [step for builder in STEPS if (step := builder(cleaning)) is not None]

    def clean(self, text: str) -> tuple[CleaningDocument, Dropped | None]:
        """Return the document after the last step that it reached, and why it was dropped there, or None."""
        document = CleaningDocument(text, self.language)
        for step in self.steps:
            result = step(document)
            if isinstance(result, Dropped):
                return document, result
            document = result
        return document, None
