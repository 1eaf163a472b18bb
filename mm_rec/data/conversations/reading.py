"""Conversations from files of every format: all of them read, every problem noted, mended on request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_rec.data.conversations.checks import check
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.formats import detect, read_row, require_fields, require_format
from mm_rec.data.conversations.issues import Fault, FaultError, Fix
from mm_rec.data.conversations.repair import mend
from mm_rec.plain import wrong_number
from mm_rec.sources.documents import MAX_DOCUMENT_BYTES, find_files
from mm_rec.sources.formats import rows
from mm_rec.sources.locations import ROW_KINDS, SourceFile, file_kind
from mm_rec.sources.problems import Problem, ProblemError

# After these a row is still whole, so that its conversation can be checked too and all problems be told at once.
_HARMLESS = {"unknown-field", "bad-weight", "reasoning"}


@dataclass(slots=True)
class FileSummary:
    """What one file gave: rows by their format, and conversations that can be learnt from."""

    path: str
    formats: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    conversations: int = 0


@dataclass(slots=True)
class ConversationSet:
    """Sound conversations in the order of their files, every problem of the others, and what was mended."""

    conversations: list[Conversation] = field(default_factory=list)
    problems: list[Fault] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    files: list[FileSummary] = field(default_factory=list)


def read_conversations(
    sources: Iterable[SourceFile | str],
    *,
    format_name: str | None = None,
    fields: Mapping[str, str] | None = None,
    fix: bool = False,
    special_tokens: Collection[str] = (),
) -> ConversationSet:
    """Read files, folders, globs and URLs of .jsonl, .json, .csv, .tsv (also .gz, .zst) and .parquet.

    The format of each row is told by its fields unless it is named; `fields` maps our names of fields to the
    files'. A row with a problem gives no conversation, and the reading goes on. With `fix` such rows are mended or
    left out, which is noted as a fix; a file that breaks off remains a problem. `special_tokens` must not
    stand in messages. Raises DataError where a source leads to nothing, ConfigError for a wrong format or field.
    """
    if format_name is not None:
        require_format(format_name)
    require_fields(fields or {})
    reader = _Reader(ConversationSet(), format_name, fields or {}, fix, special_tokens)
    for file in find_files(sources, kinds=ROW_KINDS):
        reader.read(file)
    return reader.found


@dataclass(slots=True)
class _Reader:
    found: ConversationSet
    format_name: str | None
    fields: Mapping[str, str]
    fix: bool
    special_tokens: Collection[str]

    def read(self, file: SourceFile) -> None:
        """Add a file's conversations and problems."""
        summary = FileSummary(str(file))
        self.found.files.append(summary)
        try:
            for line, row in rows(file, MAX_DOCUMENT_BYTES, lambda problem: self._refuse([_fault(problem)])):
                summary.rows += 1
                # Parquet knows dates and other things that JSON does not.
                place = f"{summary.path}:{line}"
                if wrong := wrong_number(row):
                    self._refuse([Fault("not-json", place, f"{wrong}: JSON has no such number")])
                else:
                    self._add(_plain(row) if file_kind(file) == "parquet" else row, place, summary)
        except ProblemError as error:
            self.found.problems.append(_fault(error.problem))

    def _add(self, row: Mapping[str, Any], place: str, summary: FileSummary) -> None:
        try:
            format_name = self.format_name or self._detect(row, place, summary)
        except FaultError as error:
            self._refuse(error.faults)
            return
        summary.formats[format_name] += 1
        reading = read_row(row, format_name, self.fields, place=place, fix=self.fix)
        sound = []
        faults = list(reading.faults)
        if all(fault.kind in _HARMLESS for fault in faults):
            for conversation in reading.conversations:
                mended, more = self._check(conversation)
                sound += [mended] if mended else []
                faults += more
        self.found.fixes += [Fix(place, message) for message in reading.fixes]
        if faults:
            self._refuse(faults)
        else:
            self.found.conversations += sound
            summary.conversations += len(sound)

    def _detect(self, row: Mapping[str, Any], place: str, summary: FileSummary) -> str:
        """The row's own format; where its fields tell none, that of most rows before it, which says what is missing."""
        try:
            return detect(row, self.fields, place=place)
        except FaultError as error:
            if summary.formats and error.faults[0].kind == "unknown-format":
                return summary.formats.most_common(1)[0][0]
            raise

    def _check(self, conversation: Conversation) -> tuple[Conversation | None, list[Fault]]:
        """The conversation, mended where that is wanted, or what is wrong with it."""
        if not self.fix:
            faults = check(conversation, self.special_tokens)
            return (None if faults else conversation), faults
        mended, done = mend(conversation, self.special_tokens)
        self.found.fixes += [Fix(conversation.place, message) for message in done]
        return mended, []

    def _refuse(self, faults: Iterable[Fault]) -> None:
        """Note problems, or that their row is left out."""
        if self.fix:
            kinds = dict.fromkeys((fault.place, fault.kind) for fault in faults)
            self.found.fixes += [Fix(place, f"left out: {kind}") for place, kind in kinds]
        else:
            self.found.problems += faults


def _fault(problem: Problem) -> Fault:
    return Fault(problem.reason, problem.place, problem.message)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return plain
