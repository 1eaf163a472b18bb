"""Which language a text is in, and which lines of it are in another one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pydantic import Field

from mm_rec.config import Section
from mm_rec.data.cleaning.page import Cut, Drop, Page
from mm_rec.errors import ConfigError, needs_extra
from mm_rec.text.languages import language as language_of
from mm_rec.text.words import lower, words

if TYPE_CHECKING:
    from lingua import LanguageDetector

SAMPLE = 1000  # characters of a document that are looked at: beginning, middle and end
_SLICES = 3
_LINE = 40  # characters; a shorter line says too little
_FEW = 0.05  # share of stop words below which a line is looked at: Turkish prose has 0.1 to 0.3 of ours


class LanguageConfig(Section):
    """How a document's language is judged."""

    identify: bool = True
    min_confidence: float = Field(default=0.65, ge=0, le=1)  # FineWeb's (Penedo et al. 2024, section 3.3)
    lines: bool = True  # also cut lines of another language out of a document
    min_line_confidence: float = Field(default=0.9, ge=0, le=1)
    # Those that a Turkish or English page is likely to be in or to be taken for.
    candidates: list[str] = ["tr", "az", "en", "de", "fr", "es", "it", "nl", "pt", "ru", "ar", "fa"]


def identify(text: str, candidates: tuple[str, ...]) -> tuple[str, float] | None:
    """The likeliest of the candidate languages (ISO 639-1) and its confidence in [0, 1]; None without letters.

    lingua's n-gram models (https://github.com/pemistahl/lingua-py); the confidences of all candidates sum to 1.
    """
    values = _detector(candidates).compute_language_confidence_values(text)
    best = values[0] if values else None
    if best is None or best.value == 0:
        return None
    return best.language.iso_code_639_1.name.lower(), best.value


def sample(text: str) -> str:
    """At most SAMPLE characters of a text: slices from its beginning, middle and end, cut at white space."""
    if len(text) <= SAMPLE:
        return text
    size = SAMPLE // _SLICES
    starts = [index * (len(text) - size) // (_SLICES - 1) for index in range(_SLICES)]
    slices = (text[start : start + size] for start in starts)
    return " ".join(part.partition(" ")[2].rpartition(" ")[0] or part for part in slices)


def keep_language(page: Page, config: LanguageConfig) -> Page | Drop:
    """Drop a page of another language than its own; cut its lines of another language."""
    wanted, candidates = page.language.code, tuple(config.candidates)
    found = identify(sample(page.text), candidates)
    if found is None:
        return Drop("language", "no letters to judge by")
    if found[0] != wanted:
        return Drop("language", f"{found[0]} {found[1]:.2f}")
    if found[1] < config.min_confidence:
        return Drop("language", f"{wanted} {found[1]:.2f} < {config.min_confidence:g}")
    return _cut_foreign_lines(page, config) if config.lines else page


def _cut_foreign_lines(page: Page, config: LanguageConfig) -> Page:
    kept: list[str] = []
    cuts: list[Cut] = []
    for line in page.text.split("\n"):
        found = identify(line, tuple(config.candidates)) if _is_suspicious(line, page) else None
        if found and found[0] != page.language.code and found[1] >= config.min_line_confidence:
            cuts.append(Cut(f"line in another language: {found[0]}", line.strip()))
        else:
            kept.append(line)
    return page.with_text("\n".join(kept), cuts) if cuts else page


def _is_suspicious(line: str, page: Page) -> bool:
    """Whether a line is long enough to judge and has hardly a stop word of the page's language, or more of another."""
    if len(line) < _LINE:
        return False
    line_words = words(lower(line, page.language.code))
    own = sum(word in page.language.stop_words for word in line_words)
    if own < _FEW * len(line_words) or own == 0:
        return True
    other = language_of("en" if page.language.code != "en" else "tr")
    return sum(word in other.stop_words for word in line_words) > own


@functools.cache
def _detector(candidates: tuple[str, ...]) -> LanguageDetector:
    """The detector of some languages, made once a process."""
    with needs_extra("data", "language identification"):
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    if len(candidates) < 2:
        raise ConfigError("language identification needs two candidates or more")
    try:
        codes = [IsoCode639_1.from_str(code) for code in candidates]
        return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
    except ValueError as error:
        raise ConfigError(f"language candidates {', '.join(candidates)}: {error}") from error
