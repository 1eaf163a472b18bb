"""The cleaning of one document: pure steps in order, each a page in, and a page or the reason to drop it out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import Field

from mm_rec.cleaning.contamination import EvaluationIndex
from mm_rec.cleaning.document import Cut, Drop, Page
from mm_rec.cleaning.language import LanguageConfig, keep_language
from mm_rec.cleaning.lines import LineConfig, cut_lines
from mm_rec.cleaning.markup import strip_markup
from mm_rec.cleaning.pii import mask_personal
from mm_rec.cleaning.rules import Rule, judge, rules_for
from mm_rec.config import Section
from mm_rec.text.languages import language
from mm_rec.text.normalise import mend_dotted_i, normalise
from mm_rec.text.words import DOTTED_LANGUAGES, lower

Step = Callable[[Page], Page | Drop]
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")


class CleaningConfig(Section):
    """Everything that the cleaning of a document depends on."""

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
        self.language = language(config.language)
        self.steps: dict[str, Step] = {"normalise": _normalise}
        if config.markup:
            self.steps["markup"] = strip_markup
        self.steps["lines"] = partial(cut_lines, config=config.lines)
        self.steps["tidy"] = _tidy
        if config.identification.identify:
            self.steps["language"] = partial(keep_language, config=config.identification)
        if config.bad_words:
            bad = frozenset(lower(word.strip(), config.language) for word in config.bad_words) - {""}
            self.steps["bad words"] = partial(_without_bad_words, bad=bad)
        if config.quality:
            self.steps["quality"] = partial(
                _judged, rules=rules_for(config.language, config.rules, config.published_limits)
            )
        if config.personal:
            self.steps["personal data"] = mask_personal
        if evaluation is not None:
            self.steps["evaluation"] = partial(_without_items, index=evaluation)

    def clean(self, text: str) -> tuple[Page, Drop | None]:
        """The page after the last step that it reached, and why it was dropped there, or None."""
        page = Page(text, self.language)
        for step in self.steps.values():
            result = step(page)
            if isinstance(result, Drop):
                return page, result
            page = result
        return page, None


def _normalise(page: Page) -> Page:
    text, dots = normalise(page.text), 0
    if page.language.code in DOTTED_LANGUAGES:
        text, dots = mend_dotted_i(text)
    return page.with_text(
        text, [Cut("second dot on an i (İ in small letters without a language)", "\u0307")] * dots
    )


def _tidy(page: Page) -> Page | Drop:
    """The blank lines that cut lines left are joined; an empty page is dropped."""
    text = _BLANK_LINES.sub("\n\n", page.text).strip()
    return page.with_text(text) if text else Drop("empty", "nothing is left")


def _judged(page: Page, rules: list[Rule]) -> Page | Drop:
    return judge(page, rules) or page


def _without_items(page: Page, index: EvaluationIndex) -> Page | Drop:
    found = index.find(page.text)
    return Drop("evaluation text", f"{found[0].place}: {found[0].text[:80]}") if found else page


def _without_bad_words(page: Page, bad: frozenset[str]) -> Page | Drop:
    words = lower(" ".join(page.words), page.language.code).replace(
        "'", " "
    )  # a name and its suffix: Ali'nin
    found = bad.intersection(words.split())
    return Drop("bad words", ", ".join(sorted(found))) if found else page
