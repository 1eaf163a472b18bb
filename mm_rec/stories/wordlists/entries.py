"""Words with example sentences, from files of several shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mm_rec.errors import DataError
from mm_rec.sources.locations import SourceFile
from mm_rec.stories.wordlists.rows import (
    LEVEL_COLUMNS,
    SENTENCE_COLUMNS,
    WordRow,
    has_words,
    list_file,
    read_plain_sentences,
    read_words,
)
from mm_rec.text.cefr import WordLevels, require_cefr_level
from mm_rec.text.inflection import KNOWN_LANGUAGES, WordIndex, contains_word
from mm_rec.text.sentences import count_sentences
from mm_rec.text.words import lower

SENTENCES_PER_WORD = 20  # of those that a search finds; a word such as "a" is in a quarter of all sentences

EntryReporter = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WordEntry:
    """A word and a sentence with it; `level` is its CEFR level, "" where the file says none."""

    word: str
    sentence: str
    level: str = ""


def read_entries(
    path: Path | str,
    sentences: Path | str | None = None,
    level: str | None = None,
    *,
    sentence_column: str | None = None,
    language: str = "en",
    report: EntryReporter | None = None,
) -> list[WordEntry]:
    """Read words with sentences, those of a CEFR level alone where one is given (and those that have none).

    `path` is .json (objects, or {word: sentences}), .jsonl, .csv or .tsv with a column for the word, the sentence and
    perhaps the level; or a list of words without sentences (also .txt, one a line), whose sentences are then in
    `sentences`: by headword, or plain ones (.txt and .tsv, one a line, first column), in which the words are searched
    in all their forms. Of such a list a word has the lowest of its levels; a searched sentence has no word above it.
    `sentence_column` names the column of the sentences, or gives its number where there is no header. A word without a
    sentence is told to `report` and left out. Raises DataError with file and line for what cannot be used.
    """
    wanted = None if level is None else require_cefr_level(level)
    file = list_file(path)
    found = read_words(file, sentence_column if sentences is None else None)
    if sentences is not None:
        found = _with_sentences(_merged(found), list_file(sentences), sentence_column, language)
    elif not any(word.sentences for word in found):
        raise DataError(
            "these words have no sentences. Give a file of sentences with --sentences, or name the column that holds "
            f"them with --sentence-column (known without: {', '.join(SENTENCE_COLUMNS)})",
            str(file),
        )
    entries = []
    for word in found:
        if wanted is not None and word.level not in ("", wanted):
            continue
        if not word.sentences and report is not None:
            report(f"{word.location}: there is no sentence for {word.spellings[0]!r}")
        entries += [WordEntry(word.spellings[0], sentence, word.level) for sentence in word.sentences]
    if not entries:
        of_level = "" if wanted is None else f" of level {wanted}"
        raise DataError(f"there is no word{of_level} with a sentence here", str(file))
    return list(dict.fromkeys(entries))


def read_word_list(path: Path | str, level: str | None = None, language: str = "en") -> list[str]:
    """The words of a file, with or without sentences, each once; those of a level alone where one is given.

    A word that stands there in several rows has the lowest of their levels. Raises DataError where there is none.
    """
    wanted = None if level is None else require_cefr_level(level)
    file = list_file(path)
    found = [word for word in _merged(read_words(file)) if wanted is None or word.level in ("", wanted)]
    if not found:
        raise DataError(
            "there is no word here" + ("" if wanted is None else f" of level {wanted}"), str(file)
        )
    kept: dict[str, str] = {}
    for word in found:
        kept.setdefault(lower(word.spellings[0], language), word.spellings[0])
    return list(kept.values())


def fit_entries(
    entries: Sequence[WordEntry], language: str = "en", report: EntryReporter | None = None
) -> list[WordEntry]:
    """The entries that teach what is asked for: one sentence each, which holds its word; others are told to `report`.

    Nothing is known of the forms and the sentences of other languages than English and Turkish: there all are kept.
    """
    if language not in KNOWN_LANGUAGES:
        return list(entries)
    kept = []
    for entry in entries:
        if not contains_word(entry.sentence, entry.word, language):
            fault = "the word is not in the sentence"
        elif count_sentences(entry.sentence, language) != 1:
            fault = "this is not one sentence"
        else:
            kept.append(entry)
            continue
        if report is not None:
            report(f"{entry.word}: {fault}: {entry.sentence}")
    return kept


def read_levels(paths: Iterable[Path | str]) -> dict[str, str]:
    """The CEFR level of each word in every spelling, the lowest where there are more, from lists that have levels."""
    levels: dict[str, str] = {}
    for path in paths:
        file = list_file(path)
        found = [word for word in read_words(file) if word.level]
        if not found:
            columns = ", ".join(LEVEL_COLUMNS)
            raise DataError(f"there are no levels here. The column is one of: {columns}", str(file))
        for word in _merged(found):
            for spelling in word.spellings:
                levels[spelling] = min(word.level, levels.get(spelling, word.level))
    return levels


def _merged(found: Sequence[WordRow]) -> list[WordRow]:
    """One row for each word of a list, with its lowest level, and without spellings that are words of their own."""
    first = {word.spellings[0] for word in found}
    merged: dict[str, WordRow] = {}
    for word in found:
        name = word.spellings[0]
        spellings = (name, *(other for other in word.spellings[1:] if other not in first))
        level = min(word.level, merged[name].level) if name in merged else word.level
        merged[name] = WordRow(
            spellings, level, (), merged[name].location if name in merged else word.location
        )
    return list(merged.values())


def _with_sentences(
    found: Sequence[WordRow], file: SourceFile, sentence_column: str | None, language: str
) -> list[WordRow]:
    """The words of a list, each spelling that has sentences as a word; once, without any, where none has."""
    if has_words(file):
        table: dict[str, dict[str, None]] = {}
        for row in read_words(file, sentence_column):
            table.setdefault(lower(row.spellings[0], language), {}).update(dict.fromkeys(row.sentences))
        by_spelling = {
            spelling: tuple(table.get(lower(spelling, language), ()))
            for word in found
            for spelling in word.spellings
        }
    else:
        by_spelling = _search(found, read_plain_sentences(file, sentence_column), language)
    result = []
    for word in found:
        held = [spelling for spelling in word.spellings if by_spelling.get(spelling)] or [word.spellings[0]]
        result += [WordRow((name,), word.level, by_spelling.get(name, ()), word.location) for name in held]
    return result


def _search(found: Sequence[WordRow], sentences: Iterable[str], language: str) -> dict[str, tuple[str, ...]]:
    """Sentences for every spelling: evenly spaced ones of those that hold it in some form, none above its level."""
    levels = {spelling: word.level for word in found for spelling in word.spellings}
    graded = {spelling: level for spelling, level in levels.items() if level}
    index, words = WordIndex(levels, language), WordLevels(graded, language)
    held: dict[str, dict[str, None]] = {}
    for sentence in sentences:
        fits = {"": True}
        for spelling in index.find(sentence):
            level = levels[spelling]
            if level not in fits:
                check = words.check(sentence, level)
                fits[level] = not check.above and not check.unknown
            if fits[level]:
                held.setdefault(spelling, {})[sentence] = None
    return {spelling: _spaced(list(these)) for spelling, these in held.items()}


def _spaced(sentences: Sequence[str]) -> tuple[str, ...]:
    """At most SENTENCES_PER_WORD of some sentences, evenly spaced."""
    count = min(len(sentences), SENTENCES_PER_WORD)
    return tuple(sentences[place * len(sentences) // count] for place in range(count))
