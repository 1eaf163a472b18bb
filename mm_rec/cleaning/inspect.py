"""Inspect text files before use: format, fields, lengths, languages, problems, samples."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm_rec.errors import MissingExtraError
from mm_rec.sources.decompression import byte_pieces
from mm_rec.sources.documents import MAX_DOCUMENT_BYTES, default_documents_rule, read_documents
from mm_rec.sources.formats import field_text, read_rows
from mm_rec.sources.locations import SourceFile, compression, file_kind, file_size
from mm_rec.sources.problems import Problem, ProblemError
from mm_rec.sources.sections import DocumentsRule
from mm_rec.text.words import guess_language

DEFAULT_LIMIT = 200 * 10**6
LANGUAGE_SAMPLE = 200  # documents

_PROBE_BYTES = 2**20
_DECIDING_ROWS = 100  # they show which field is the text
_SHORTEST = 20  # characters of a text that has a language
_MOST_FIELDS = 100
_SAMPLE = 500  # characters of a sample that are kept
_TYPES = {
    type(None): "null",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "list",
    dict: "object",
}
# UTF-8 read as cp1252 or cp1254 (Ã¼ for ü, Ä± for ı, ÅŸ for ş, â€™ for ’), and the mark of a lost character.
_MOJIBAKE = re.compile("[ÃÂÄÅ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|\ufffd")

LanguageDetector = Callable[[str], str | None]


@dataclass(slots=True)
class FieldReport:
    """One field: the rows that have it, how often with which type, and the characters of its strings."""

    rows: int = 0
    types: dict[str, int] = field(default_factory=dict)
    characters: int = 0


@dataclass(slots=True)
class ProblemReport:
    """One kind of problem: how often it was met, and where first."""

    count: int
    first: str


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Characters a document; `histogram` counts documents from each power of two up to the next."""

    minimum: int
    median: int
    p90: int
    maximum: int
    histogram: dict[int, int]


@dataclass(slots=True)
class FileReport:
    """The contents of one file.

    `complete` is false where reading stopped early: then all counts are of the part that was read. `line_ends`
    and `byte_order_mark` are of the first MiB; `languages` are of a sample of documents.
    """

    path: str
    kind: str
    compression: str | None
    bytes: int | None
    complete: bool = True
    documents_rule: DocumentsRule | None = None
    text_field: str | None = None
    fields: dict[str, FieldReport] = field(default_factory=dict)
    rows: int = 0
    documents: int = 0
    blank: int = 0
    duplicates: int = 0
    characters: int = 0
    mojibake: int = 0
    lengths: LengthStats | None = None
    languages: dict[str, int] = field(default_factory=dict)
    line_ends: dict[str, int] = field(default_factory=dict)
    byte_order_mark: bool = False
    problems: dict[str, ProblemReport] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)

    def add_problem(self, problem: Problem) -> None:
        """Count a problem; the first of its kind is kept in words."""
        known = self.problems.setdefault(problem.reason, ProblemReport(0, str(problem)))
        known.count += 1


def inspect_file(
    file: SourceFile,
    detect: LanguageDetector = guess_language,
    *,
    text_field: str | None = None,
    documents: DocumentsRule | None = None,
    samples: int = 3,
    limit: int = DEFAULT_LIMIT,
) -> FileReport:
    """Read a file (its first `limit` characters) as a stream and describe its contents.

    Without `text_field` the text is "text", or else the field with the longest strings. Problems are counted,
    never raised. Memory: about 100 bytes a document, beside one document.
    """
    report = FileReport(str(file), file_kind(file) or "", compression(file), _size(file))
    if report.kind != "parquet":
        _probe_lines(file, report)
    if report.kind == "txt":
        report.documents_rule = default_documents_rule([file], documents)
        found = read_documents([file], documents=report.documents_rule, on_problem=report.add_problem)
        texts: Iterator[str] = (item.text for item in found)
    else:
        texts = _field_texts(file, text_field, report)
    _describe_texts(_limit_characters(texts, limit, report), detect, samples, report)
    return report


def default_detector() -> tuple[LanguageDetector, str]:
    """Return the language detector and its name; without its libraries, one that looks at the letters."""
    from mm_rec.cleaning.language import UNCLEAR, identify_language

    def detect(text: str) -> str | None:
        found = identify_language(text)
        return None if found is None or found.code == UNCLEAR else found.code

    try:
        detect("Hangi dildesin?")
    except MissingExtraError:
        return guess_language, "letters, so only tr or en; mm-rec[data] tells more"
    return detect, "CLD2 and fastText, among all languages that they know"


def _size(file: SourceFile) -> int | None:
    with contextlib.suppress(OSError):  # the reading says so too, with its place
        return file_size(file)
    return None


def _probe_lines(file: SourceFile, report: FileReport) -> None:
    """Note line ends and byte-order mark of the first MiB; what is wrong with the file is left to the reading."""
    head = b""
    with contextlib.suppress(EOFError, OSError, zlib.error):
        for piece in byte_pieces(file, 2**16):
            head += piece
            if len(head) >= _PROBE_BYTES:
                break
    pairs = head.count(b"\r\n")
    ends = {"\\n": head.count(b"\n") - pairs, "\\r\\n": pairs, "\\r": head.count(b"\r") - pairs}
    report.line_ends = {end: count for end, count in ends.items() if count}
    report.byte_order_mark = head.startswith(b"\xef\xbb\xbf")


def _field_texts(file: SourceFile, text_field: str | None, report: FileReport) -> Iterator[str]:
    """The text of each row, its fields counted on the way."""
    read = _counted_rows(file, report)
    first = list(itertools.islice(read, _DECIDING_ROWS))
    report.text_field = text_field or _likely_text_field(report.fields)
    if report.text_field is None:
        report.complete = next(read, None) is None
        return
    for number, row in itertools.chain(first, read):
        try:
            yield field_text(row, report.text_field, file, number)
        except ProblemError as error:
            report.add_problem(error.problem)


def _counted_rows(file: SourceFile, report: FileReport) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for number, row in read_rows(file, MAX_DOCUMENT_BYTES, report.add_problem):
            report.rows += 1
            for name, value in row.items():
                _count_field(report.fields, name, value)
            yield number, row
    except ProblemError as error:
        report.add_problem(error.problem)


def _count_field(fields: dict[str, FieldReport], name: str, value: object) -> None:
    if name not in fields and len(fields) >= _MOST_FIELDS:
        name = "…"  # all further ones together: rows may be keyed by anything
    known = fields.setdefault(name, FieldReport())
    kind = _TYPES.get(type(value), type(value).__name__)
    known.rows += 1
    known.types[kind] = known.types.get(kind, 0) + 1
    known.characters += len(value) if isinstance(value, str) else 0


def _likely_text_field(fields: dict[str, FieldReport]) -> str | None:
    """ "text" where it is a string, else the field whose strings are longest on average."""
    means = {
        name: item.characters / item.types["string"]
        for name, item in fields.items()
        if "string" in item.types
    }
    return "text" if "text" in means else max(means, key=means.__getitem__, default=None)


def _limit_characters(texts: Iterable[str], limit: int, report: FileReport) -> Iterator[str]:
    """Yield texts until `limit` characters were read."""
    for text in texts:
        if report.characters >= limit:
            report.complete = False
            return
        report.characters += len(text)
        yield text


def _describe_texts(texts: Iterable[str], detect: LanguageDetector, samples: int, report: FileReport) -> None:
    lengths = array("Q")
    seen: set[int] = set()
    chosen: list[str] = []  # for the languages: a sample that is fair for a stream of unknown length
    generator = random.Random(0)
    for text in texts:
        if not text or text.isspace():
            report.blank += 1
            continue
        if report.documents < samples:
            report.samples.append(text[:_SAMPLE])
        if len(chosen) < LANGUAGE_SAMPLE:
            chosen.append(_excerpt(text))
        elif (place := generator.randrange(report.documents + 1)) < LANGUAGE_SAMPLE:
            chosen[place] = _excerpt(text)
        report.documents += 1
        lengths.append(len(text))
        seen.add(hash(text))
        report.mojibake += not text.isascii() and _MOJIBAKE.search(text) is not None
    report.duplicates = report.documents - len(seen)
    report.lengths = _lengths(lengths) if lengths else None
    found = Counter(detect(text) if len(text) >= _SHORTEST else None for text in chosen)
    report.languages = {code or "unclear": count for code, count in found.most_common()}


def _excerpt(text: str) -> str:
    """Return an excerpt that is long enough to identify the language."""
    return text if len(text) <= 4 * _SAMPLE else f"{text[: 2 * _SAMPLE]} {text[-2 * _SAMPLE :]}"


def _lengths(values: array[int]) -> LengthStats:
    ordered = np.sort(np.frombuffer(values, dtype=np.uint64))
    powers, counts = np.unique(np.frexp(ordered.astype(np.float64))[1] - 1, return_counts=True)
    return LengthStats(
        minimum=int(ordered[0]),
        median=int(ordered[len(ordered) // 2]),
        p90=int(ordered[len(ordered) * 9 // 10]),
        maximum=int(ordered[-1]),
        histogram={2 ** int(power): int(count) for power, count in zip(powers, counts, strict=True)},
    )
