"""Cut lines that are not prose: menus, cookie banners, footers, and repeated lines.

The rules for single lines are those of C4 (Raffel et al. 2020, section 2.2), in both languages, and the signs of a
web page's frame (phrases.yaml). C4's demand that each line end in punctuation is off unless asked for: it takes
headings, verses and dialogue away too, and FineWeb (Penedo et al. 2024, section 3.6) keeps it off for its cost.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pydantic
import yaml

from mm_rec.cleaning.document import CleaningDocument, Cut
from mm_rec.config import Section
from mm_rec.text.words import lower

_PHRASES = Path(__file__).with_name("phrases.yaml")
_TERMINAL = (".", "!", "?", '"', "”", "'", "…", ".)", "!)", "?)")
_ELLIPSES = ("...", "…")
_NOTICE_LENGTH = 300  # characters; a longer line is a paragraph about cookies, not a banner
_MENU_LENGTH = 120  # characters
_REPEATED_LENGTH = 20  # characters; shorter lines may well stand twice: "Evet.", a name in a play
_SEPARATOR = re.compile("[|»›>/•·→]")
_AROUND_ENTRIES = " :.…»›[]()"
_LONE_LINK = re.compile(r"(?:https?://|www\.)\S+")


class LineConfig(Section):
    """Settings of the line filter."""

    terminal_punctuation: bool = False  # C4: only lines that end as a sentence does stay
    min_words: int = pydantic.Field(default=1, ge=0)  # C4: 3
    max_word_length: int = pydantic.Field(default=1000, ge=1)  # characters (C4)
    javascript: bool = False  # C4: lines that mention it; in text about programming they are prose
    notices: bool = True  # cookies, privacy, copyright, "enable JavaScript"
    menus: bool = True  # "Ana sayfa > Haberler", "Share | Print", a link alone
    repeated: bool = True  # lines of 20 characters or more that stood earlier on the page


class Phrases(NamedTuple):
    """What a web page's frame says, in small letters: parts of notices, and entries of menus."""

    notices: tuple[str, ...]
    menu: tuple[str, ...]


def phrases_for(code: str) -> Phrases:
    """The phrases that hold on pages of a language: its own, and the English ones."""
    lists = yaml.safe_load(_PHRASES.read_text(encoding="utf-8"))
    chosen = [lists[name] for name in dict.fromkeys((code, "en")) if name in lists]
    return Phrases(
        notices=tuple(phrase for entry in chosen for phrase in entry["notices"]),
        menu=tuple(phrase for entry in chosen for phrase in entry["menu"]),
    )


def cut_lines(document: CleaningDocument, config: LineConfig, phrases: Phrases) -> CleaningDocument:
    """Cut the lines that the configuration names."""
    code = document.language.code
    notices, menu = phrases.notices, frozenset(phrases.menu)
    all_small = lower(document.text, code)  # at once: line by line would take several times as long
    if not any(phrase in all_small for phrase in notices):
        notices = ()
    strict = config.min_words > 1 or config.terminal_punctuation or config.javascript
    longest = 2 * (_NOTICE_LENGTH if notices else _MENU_LENGTH)  # small letters may be fewer
    kept: list[str] = []
    cuts: list[Cut] = []
    seen: set[str] = set()
    for line, small in zip(document.text.split("\n"), all_small.split("\n"), strict=True):
        stripped = line.strip()
        reason = None
        if stripped and (strict or len(stripped) > config.max_word_length):
            reason = _c4_reason(stripped, small, config)
        if stripped and reason is None and len(stripped) <= longest:
            reason = _frame_reason(small.strip(), config, notices, menu)
        if reason is None and config.repeated and len(stripped) >= _REPEATED_LENGTH:
            reason = "line stood earlier on the page" if stripped in seen else None
            seen.add(stripped)
        if reason is None:
            kept.append(line)
        else:
            cuts.append(Cut(reason, stripped))
    return document.with_text("\n".join(kept), cuts) if cuts else document


def _c4_reason(line: str, small: str, config: LineConfig) -> str | None:
    """The reason to cut a line by C4's rules, or None."""
    if config.min_words > 1 and len(line.split(None, config.min_words)) < config.min_words:
        return "line of few words"
    if len(line) > config.max_word_length and max(map(len, line.split())) > config.max_word_length:
        return "line with an endless word"
    if config.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith(_ELLIPSES)):
        return "line without final punctuation"
    return "line about JavaScript" if config.javascript and "javascript" in small else None


def _frame_reason(
    small: str, config: LineConfig, notices: tuple[str, ...], menu: frozenset[str]
) -> str | None:
    """The reason to cut a line in small letters as part of a page's frame, or None."""
    if config.notices and len(small) <= _NOTICE_LENGTH and any(phrase in small for phrase in notices):
        return "notice"
    return "menu" if config.menus and len(small) <= _MENU_LENGTH and _is_menu(small, menu) else None


def _is_menu(small: str, menu: frozenset[str]) -> bool:
    """Return True for navigation: entries of menus, a path that begins with one, or only a link."""
    if small.startswith(("http", "www.")) and _LONE_LINK.fullmatch(small):
        return True
    if not _SEPARATOR.search(small):  # most lines
        entry = small.strip(_AROUND_ENTRIES)
        return not entry or entry in menu
    stripped = (entry.strip().strip(_AROUND_ENTRIES) for entry in _SEPARATOR.split(small))
    entries = [entry for entry in stripped if entry]
    known = [entry in menu for entry in entries]
    return all(known) or (len(entries) >= 3 and (known[0] or 2 * sum(known) >= len(entries)))
