"""The cleaning steps of one document, in order: each returns the document, or the reason to drop it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import Field

from mm_rec.cleaning.contamination import EvaluationIndex
from mm_rec.cleaning.document import CleaningDocument, Cut, Dropped
from mm_rec.cleaning.language import LanguageConfig, filter_language
from mm_rec.cleaning.lines import LineConfig, cut_lines
from mm_rec.cleaning.markup import strip_markup
from mm_rec.cleaning.pii import mask_pii
from mm_rec.cleaning.rules import Rule, first_violation, rules_for
from mm_rec.config import Section
from mm_rec.text.languages import get_language
from mm_rec.text.normalise import normalise, repair_dotted_i
from mm_rec.text.words import DOTTED_LANGUAGES, lower

CleaningStep = Callable[[CleaningDocument], CleaningDocument | Dropped]
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


class Cleaner:
    """The steps that a configuration names, in order."""

    def __init__(self, config: CleaningConfig, evaluation: EvaluationIndex | None = None) -> None:
        self.language = get_language(config.language)
        self.steps: dict[str, CleaningStep] = {"normalise": _normalise}
        if config.markup:
            self.steps["markup"] = strip_markup
        self.steps["lines"] = partial(cut_lines, config=config.lines)
        self.steps["tidy"] = _collapse_blank_lines
        if config.identification.identify:
            self.steps["language"] = partial(filter_language, config=config.identification)
        if config.bad_words:
            bad = frozenset(lower(word.strip(), config.language) for word in config.bad_words) - {""}
            self.steps["bad words"] = partial(_filter_bad_words, bad=bad)
        if config.quality:
            self.steps["quality"] = partial(
                _filter_quality, rules=rules_for(config.language, config.rules, config.published_limits)
            )
        if config.personal:
            self.steps["personal data"] = mask_pii
        if evaluation is not None:
            self.steps["evaluation"] = partial(_drop_contaminated, index=evaluation)

    def clean(self, text: str) -> tuple[CleaningDocument, Dropped | None]:
        """Return the document after the last step that it reached, and why it was dropped there, or None."""
        document = CleaningDocument(text, self.language)
        for step in self.steps.values():
            result = step(document)
            if isinstance(result, Dropped):
                return document, result
            document = result
        return document, None


def _normalise(document: CleaningDocument) -> CleaningDocument:
    text, dots = normalise(document.text), 0
    if document.language.code in DOTTED_LANGUAGES:
        text, dots = repair_dotted_i(text)
    return document.with_text(
        text, [Cut("second dot on an i (İ in small letters without a language)", "\u0307")] * dots
    )


def _collapse_blank_lines(document: CleaningDocument) -> CleaningDocument | Dropped:
    """Join the blank lines that cut lines left; drop an empty document."""
    text = _BLANK_LINES.sub("\n\n", document.text).strip()
    return document.with_text(text) if text else Dropped("empty", "nothing is left")


def _filter_quality(document: CleaningDocument, rules: list[Rule]) -> CleaningDocument | Dropped:
    return first_violation(document, rules) or document


def _drop_contaminated(document: CleaningDocument, index: EvaluationIndex) -> CleaningDocument | Dropped:
    found = index.find(document.text)
    return Dropped("evaluation text", f"{found[0].location}: {found[0].text[:80]}") if found else document


def _filter_bad_words(document: CleaningDocument, bad: frozenset[str]) -> CleaningDocument | Dropped:
    words = lower(" ".join(document.words), document.language.code).replace(
        "'", " "
    )  # a name and its suffix: Ali'nin
    found = bad.intersection(words.split())
    return Dropped("bad words", ", ".join(sorted(found))) if found else document
