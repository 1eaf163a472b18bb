"""The rows of word lists, of whatever shape, and the sentences of files without words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.errors import DataError
from mm_rec.sources.documents import MAX_DOCUMENT_BYTES, find_files
from mm_rec.sources.formats import read_rows
from mm_rec.sources.line_reader import read_lines
from mm_rec.sources.locations import ROW_KINDS, SourceFile, file_kind
from mm_rec.sources.problems import raise_problem
from mm_rec.text.cefr import CEFR_LEVELS
from mm_rec.text.words import lower

WORD_COLUMNS = ("word", "headword", "lemma", "kelime", "sözcük")
SENTENCE_COLUMNS = (
    *("sentence", "sentences", "example", "examples", "example_sentence", "text", "english", "turkish"),
    *("cümle", "cümleler", "örnek", "örnekler", "örnek cümle", "örnek_cümle"),
)
LEVEL_COLUMNS = ("level", "cefr", "cefr_level", "seviye", "düzey")


@dataclass(frozen=True, slots=True)
class WordRow:
    """A row: a word with its other spellings, its level, and its sentences, where the file has any."""

    spellings: tuple[str, ...]
    level: str
    sentences: tuple[str, ...]
    location: str


def list_file(path: Path | str) -> SourceFile:
    """The one file that a path or URL names; raises DataError for none, and for a kind that is not read."""
    files = find_files([path], kinds=(*ROW_KINDS, "txt"))
    if len(files) != 1:
        raise DataError(f"this is {len(files)} files; name one of them", path)
    return files[0]


def read_words(file: SourceFile, sentence_column: str | None = None) -> list[WordRow]:
    """The rows of a file of words, in its order."""
    if file_kind(file) == "txt":
        return [
            WordRow((line.strip(),), "", (), f"{file}:{number}")
            for number, line in read_lines(file, MAX_DOCUMENT_BYTES)
            if line and line.strip()
        ]
    found: list[WordRow] = []
    columns = None
    for number, row in read_rows(file, MAX_DOCUMENT_BYTES, raise_problem):
        if columns is None:
            if _column(row, WORD_COLUMNS) is None and _holds_sentences(row):
                return [_mapped_word(word, texts, file, number) for word, texts in row.items()]
            columns = _columns(row, sentence_column, file)
        found.append(_word(row, columns, file, number))
    return [word for word in found if word.spellings]


def _columns(row: Mapping[str, Any], sentence_column: str | None, file: SourceFile) -> dict[str, str | None]:
    """The names that the word, the sentence and the level have in a file; raises DataError where no word is."""
    word = _column(row, WORD_COLUMNS)
    if word is None:
        raise DataError(
            f"there is no column for the word. It is one of: {', '.join(WORD_COLUMNS)}; {_existing(row)}",
            str(file),
            1,
        )
    if sentence_column is not None and sentence_column not in row:
        raise DataError(
            f"there is no column {sentence_column!r} (--sentence-column); {_existing(row)}", str(file), 1
        )
    return {
        "word": word,
        "sentence": sentence_column or _column(row, SENTENCE_COLUMNS),
        "level": _column(row, LEVEL_COLUMNS),
    }


def _column(row: Iterable[str], names: Sequence[str]) -> str | None:
    """The column of a row that has the first of some names, in capitals or small letters."""
    present = {lower(str(column)).strip(): column for column in row}
    return next((present[name] for name in names if name in present), None)


def _existing(row: Iterable[str]) -> str:
    return f"this file has: {', '.join(map(repr, row)) or 'none'}"


def _word(
    row: Mapping[str, Any], columns: Mapping[str, str | None], file: SourceFile, number: int
) -> WordRow:
    texts = {name: row.get(column) if column else None for name, column in columns.items()}
    word = texts["word"]
    if not isinstance(word, str) or not word.strip():
        raise DataError(
            f"{columns['word']!r} is {word!r} and must be a word. Mend or delete the row", str(file), number
        )
    spellings = tuple(spelling.strip() for spelling in word.split("/") if spelling.strip(" '"))
    if word.startswith("'"):  # 'm, 're: found as forms of am and are
        spellings = ()
    level = _level(texts["level"], file, number)
    return WordRow(spellings, level, _sentences(texts["sentence"], file, number), f"{file}:{number}")


def _level(value: Any, file: SourceFile, number: int) -> str:
    """The level in a row; A1.2 is A1."""
    if value is None or not str(value).strip():
        return ""
    level = str(value).strip().upper()[:2]
    if level not in CEFR_LEVELS:
        raise DataError(
            f"the level is {value!r}; it must be one of {', '.join(CEFR_LEVELS)}", str(file), number
        )
    return level


def _holds_sentences(row: Mapping[str, Any]) -> bool:
    """Return True if a JSON object maps words to their sentences."""
    return len(row) > 0 and all(isinstance(value, list) for value in row.values())


def _mapped_word(word: str, value: Any, file: SourceFile, number: int) -> WordRow:
    return WordRow((word.strip(),), "", _sentences(value, file, number), f"{file}:{number}")


def _sentences(value: Any, file: SourceFile, number: int) -> tuple[str, ...]:
    """One sentence, or a list of them, each on one line."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    strange = [item for item in values if not isinstance(item, str)]
    if strange:
        raise DataError(
            f"the sentence is {strange[0]!r} and must be a text. Mend or delete the row", str(file), number
        )
    return tuple(dict.fromkeys(" ".join(item.split()) for item in values if item.strip()))


def has_words(file: SourceFile) -> bool:
    """Return True if a file of sentences has a column of words."""
    kind = file_kind(file)
    if kind == "txt":
        return False
    if kind == "tsv":
        return _column(_header(file), WORD_COLUMNS) is not None
    row = next((row for _, row in read_rows(file, MAX_DOCUMENT_BYTES, raise_problem)), {})
    return _column(row, WORD_COLUMNS) is not None or _holds_sentences(row)


def _header(file: SourceFile) -> list[str]:
    return next(((line or "").split("\t") for _, line in read_lines(file, MAX_DOCUMENT_BYTES)), [])


def read_plain_sentences(file: SourceFile, column: str | None) -> Iterator[str]:
    """The sentences of a file without words: lines (the first column, or that of a number), or a named column."""
    kind = file_kind(file)
    named = column or (None if kind == "txt" else _column(_header(file), SENTENCE_COLUMNS))
    if kind in ("txt", "tsv") and (named is None or named.isdecimal()):
        place = int(named or 1)
        for number, line in read_lines(file, MAX_DOCUMENT_BYTES):
            cells = (line or "").split("\t")
            if line and len(cells) < place:
                raise DataError(f"this line has {len(cells)} columns and not {place}", str(file), number)
            if line and cells[place - 1].strip():
                yield " ".join(cells[place - 1].split())
        return
    for number, row in read_rows(file, MAX_DOCUMENT_BYTES, raise_problem):
        name = named if named in row else _column(row, SENTENCE_COLUMNS)
        if name is None or (column is not None and column not in row):
            raise DataError(
                f"there is no column for the sentence. It is one of: {', '.join(SENTENCE_COLUMNS)}, or named with "
                f"--sentence-column; {_existing(row)}",
                str(file),
                number,
            )
        yield from _sentences(row[name], file, number)
