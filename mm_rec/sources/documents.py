"""Text sources: files, folders, globs and URLs of text in several formats, read as a stream.

Reading is the check: `read_documents` raises DataError at the first thing that cannot be used, and the pass
that plans the train/validation split reads every byte, so bad input is found before anything is written and
no separate scan is needed. Raw corpora, which are never sound throughout, are read with `on_problem`.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from mm_rec.errors import DataError, MissingExtraError
from mm_rec.sources.formats import row_texts, txt_texts
from mm_rec.sources.locations import (
    TEXT_KINDS,
    Kind,
    RemoteFile,
    SourceFile,
    file_kind,
    is_url,
    list_url,
    name_kinds,
)
from mm_rec.sources.problems import ProblemError, ProblemHandler, problem_error, raise_problem
from mm_rec.sources.sections import DocumentsRule

MAX_DOCUMENT_BYTES = 64 * 2**20
_RULES: tuple[DocumentsRule, ...] = get_args(DocumentsRule)  # from coarse to fine

_CONVERSIONS = {
    ".json": "write one object a line: jq -c '.[]' FILE.json > FILE.jsonl",
    ".zst": "name it for what is in it, for example FILE.txt.zst or FILE.jsonl.zst",
    ".gz": "name it for what is in it, for example FILE.txt.gz or FILE.jsonl.gz",
    ".bz2": "unpack it first: bunzip2 FILE.bz2",
    ".xz": "unpack it first: unxz FILE.xz",
    ".zip": "unpack it first: unzip FILE.zip",
    ".md": "if it is plain text, give it the suffix .txt",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its text, its file, and the line (in CSV and Parquet the row) where it starts, from 1."""

    text: str
    path: SourceFile
    line: int


@dataclass(slots=True)
class ReadCounts:
    """Counts of a reading pass: documents given out, and whitespace-only documents skipped."""

    documents: int = 0
    blank: int = 0


def find_files(paths: Iterable[SourceFile | str], *, kinds: Sequence[Kind] = TEXT_KINDS) -> list[SourceFile]:
    """Resolve files, folders (recursively, hidden names left out), globs and URLs to a sorted list without repeats.

    Folders and globs give their files of these kinds; a file named directly must be of one. Raises DataError
    where an argument leads to nothing.
    """
    files = _find(paths, raise_problem, kinds)
    if not files:
        raise DataError(f"no text files were given. Name files, folders or globs of {name_kinds(kinds)}")
    return files


def default_documents_rule(files: Sequence[SourceFile], chosen: DocumentsRule | None = None) -> DocumentsRule:
    """Return the unit of a document in .txt: the choice, or "file", or "blank-line" where there is one .txt file."""
    if chosen is not None:
        return chosen
    return "blank-line" if sum(file_kind(file) == "txt" for file in files) == 1 else "file"


class ChosenDocumentsRule(NamedTuple):
    """A rule that cuts .txt, the coarser one that it stands for, if any, and whether it gives two documents."""

    rule: DocumentsRule
    too_coarse: DocumentsRule | None
    enough: bool


def choose_documents_rule(
    files: Sequence[SourceFile], text_field: str, chosen: DocumentsRule | None, one_will_do: bool
) -> ChosenDocumentsRule:
    """The choice, or the coarsest rule from `default_documents_rule` on that gives two different documents.

    Reads until it finds two. Where no rule gives two, or one document will do, it is that of `default_documents_rule`.
    """
    first = default_documents_rule(files, chosen)
    if one_will_do:
        return ChosenDocumentsRule(first, None, True)
    finer = _RULES[_RULES.index(first) :] if chosen is None else (first,)
    for rule in finer if any(file_kind(file) == "txt" for file in files) else (first,):
        texts = (item.text for item in read_documents(files, text_field, rule))
        beginning = next(texts, None)
        if any(text != beginning for text in texts):
            return ChosenDocumentsRule(rule, None if rule == first else first, True)
    return ChosenDocumentsRule(first, None, False)


def read_documents(
    paths: Iterable[SourceFile | str],
    text_field: str = "text",
    documents: DocumentsRule | None = None,
    counts: ReadCounts | None = None,
    *,
    on_problem: ProblemHandler | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[Document]:
    """Stream the documents of all files in sorted order, holding one document in memory at a time.

    .txt is UTF-8 (a byte-order mark is stripped, line ends become "\\n") cut by the `documents` rule; each
    line of .jsonl is an object whose `text_field` is the text, unchanged; in CSV (UTF-8, with a header) and
    Parquet it is a column. Whitespace-only documents are skipped and counted in `counts`.

    Raises DataError with file, line and remedy for anything that cannot be used, a row above
    `max_document_bytes` included (a .txt may have any size). With `on_problem` it is called instead, once for
    each problem, and the reading goes on: a row that cannot be used is skipped, and so is a document above
    `max_document_bytes` (a text of several lines: as many characters), without being held in memory. What is
    not text, damaged, cut short or unreadable, and a CSV row above the limit, ends its file; the documents
    that are whole before that place are given.
    """
    report = raise_problem if on_problem is None else on_problem
    files = find_files(paths) if on_problem is None else _find(paths, on_problem, TEXT_KINDS)
    rule = default_documents_rule(files, documents)
    counts = ReadCounts() if counts is None else counts
    for path in files:
        try:
            if file_kind(path) == "txt":
                # Whoever reads strictly may have one text of any size on purpose.
                texts = txt_texts(
                    path, rule, sys.maxsize if on_problem is None else max_document_bytes, report
                )
            else:
                texts = row_texts(path, text_field, max_document_bytes, report)
            for line, text in texts:
                if text.isspace() or not text:
                    counts.blank += 1
                    continue
                counts.documents += 1
                yield Document(text, path, line)
        except ProblemError as error:
            if on_problem is None:
                raise
            on_problem(error.problem)


def _find(
    paths: Iterable[SourceFile | str], report: ProblemHandler, kinds: Sequence[Kind]
) -> list[SourceFile]:
    found: dict[SourceFile, SourceFile] = {}
    for path in paths:
        try:
            files = _expand(path, kinds)
        except ProblemError as error:
            report(error.problem)
            continue
        for file in files:
            found.setdefault(file.resolve() if isinstance(file, Path) else file, file)
    return sorted(found.values(), key=str)


def _expand(name: SourceFile | str, kinds: Sequence[Kind]) -> Sequence[SourceFile]:
    """The files that one argument stands for."""
    if isinstance(name, RemoteFile) or is_url(name):
        return _expand_url(str(name), kinds)
    path = Path(str(name).removeprefix("file://")).expanduser()
    if path.is_dir():
        return _walk(path, kinds)
    if path.exists():
        return [_supported(path, kinds)]
    if not glob.has_magic(str(path)):
        raise problem_error("missing", "there is no such file or folder. Check the name", path)
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = [
        file
        for match in matches
        for file in (_walk(match, kinds, required=False) if match.is_dir() else [match])
    ]
    files = [file for file in files if file_kind(file) in kinds]
    if not files:
        met = (
            f"{len(matches)} names match this pattern, none of them" if matches else "nothing that matches is"
        )
        raise problem_error("missing", f"{met} a text file ({name_kinds(kinds)}). Check the pattern", path)
    return files


def _expand_url(url: str, kinds: Sequence[Kind]) -> Sequence[SourceFile]:
    """The files that a URL stands for."""
    file = RemoteFile(url)
    try:
        files = list_url(url)
    except ImportError as error:
        if url.startswith(("http://", "https://")):
            raise MissingExtraError(f"reading {url}", "data") from error
        raise problem_error(
            "unreadable", f"this kind of URL needs a package that is not installed: {error}", file
        ) from error
    except ValueError as error:
        raise problem_error(
            "unreadable", f"this kind of URL is not known ({error}). Check the name", file
        ) from error
    except OSError as error:
        raise problem_error(
            "unreadable",
            f"this cannot be reached ({error}). Check the name, the network and your rights",
            file,
        ) from error
    if files is None:
        raise problem_error(
            "missing", "there is nothing at this URL, or its server does not answer. Check the name", file
        )
    # Hidden names are left out, unless the URL itself leads into such a folder.
    visible = [item for item in files if item.url.count("/.") <= url.count("/.")]
    supported = [item for item in visible if file_kind(item) in kinds]
    if not supported:
        if len(visible) == 1:
            return [_supported(visible[0], kinds)]
        held = f"{len(visible)} files of other kinds" if visible else "no files"
        raise problem_error(
            "unsupported", f"no text found: there are {held} here. Supported: {name_kinds(kinds)}", file
        )
    return supported


def _supported(file: SourceFile, kinds: Sequence[Kind]) -> SourceFile:
    """The file; raises ProblemError where its kind is not supported."""
    if file_kind(file) not in kinds:
        suffix = Path(file.name).suffix.lower()
        remedy = _CONVERSIONS.get(suffix, "convert it to one of them")
        message = f"this kind of file is not supported (supported: {name_kinds(kinds)}); {remedy}"
        raise problem_error("unsupported", message, file)
    return file


def _walk(folder: Path, kinds: Sequence[Kind], required: bool = True) -> list[Path]:
    """The supported, not hidden files under a folder, links to folders followed once."""
    files: list[Path] = []
    others = 0
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(parent, name) for name in names if not name.startswith(".")]
        files += [path for path in visible if file_kind(path) in kinds]
        others += sum(file_kind(path) not in kinds for path in visible)
    if required and not files:
        held = f"{others} files of other kinds" if others else "no files"
        message = f"no text found: the folder holds {held}. Supported: {name_kinds(kinds)}"
        raise problem_error("missing", message, folder)
    return files


def _refuse_folder(error: OSError) -> None:
    """A folder that cannot be listed is not passed over."""
    raise problem_error(
        "unreadable", f"the folder cannot be read ({error.strerror})", Path(error.filename)
    ) from error
