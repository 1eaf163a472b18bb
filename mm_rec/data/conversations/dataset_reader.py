"""Read conversations from files of every format: every issue is noted, and repaired on request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.issues import Fix, Issue, IssueError
from mm_rec.data.conversations.repair import repair_conversation
from mm_rec.data.conversations.row_formats import detect_format, parse_row, require_fields, require_format
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.sources.documents import MAX_DOCUMENT_BYTES, find_files
from mm_rec.sources.formats import read_rows
from mm_rec.sources.locations import ROW_KINDS, SourceFile, file_kind
from mm_rec.sources.problems import Problem, ProblemError
from mm_rec.strict_parsing import find_invalid_number

# After these a row is still whole, so that its conversation can be checked too and all problems be told at once.
_HARMLESS = {"unknown-field", "bad-weight", "reasoning"}


@dataclass(slots=True)
class FileSummary:
    """Counts of one file: rows by their format, and valid conversations."""

    path: str
    formats: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    conversations: int = 0


@dataclass(slots=True)
class ConversationSet:
    """Valid conversations in the order of their files, every issue of the others, and what was repaired."""

    conversations: list[Conversation] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
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
    reader = _DatasetReader(ConversationSet(), format_name, fields or {}, fix, special_tokens)
    for file in find_files(sources, kinds=ROW_KINDS):
        reader.read(file)
    return reader.found


@dataclass(slots=True)
class _DatasetReader:
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
            for line, row in read_rows(
                file, MAX_DOCUMENT_BYTES, lambda problem: self._refuse([_issue(problem)])
            ):
                summary.rows += 1
                # Parquet knows dates and other things that JSON does not.
                location = f"{summary.path}:{line}"
                if wrong := find_invalid_number(row):
                    self._refuse([Issue("not-json", location, f"{wrong}: JSON has no such number")])
                else:
                    self._add(_plain(row) if file_kind(file) == "parquet" else row, location, summary)
        except ProblemError as error:
            self.found.issues.append(_issue(error.problem))

    def _add(self, row: Mapping[str, Any], location: str, summary: FileSummary) -> None:
        try:
            format_name = self.format_name or self._detect(row, location, summary)
        except IssueError as error:
            self._refuse(error.issues)
            return
        summary.formats[format_name] += 1
        parsed = parse_row(row, format_name, self.fields, location=location, fix=self.fix)
        sound = []
        issues = list(parsed.issues)
        if all(issue.kind in _HARMLESS for issue in issues):
            for conversation in parsed.conversations:
                mended, more = self._check(conversation)
                sound += [mended] if mended else []
                issues += more
        self.found.fixes += [Fix(location, message) for message in parsed.fixes]
        if issues:
            self._refuse(issues)
        else:
            self.found.conversations += sound
            summary.conversations += len(sound)

    def _detect(self, row: Mapping[str, Any], location: str, summary: FileSummary) -> str:
        """The row's own format; where its fields tell none, that of most rows before it, which says what is missing."""
        try:
            return detect_format(row, self.fields, location=location)
        except IssueError as error:
            if summary.formats and error.issues[0].kind == "unknown-format":
                return summary.formats.most_common(1)[0][0]
            raise

    def _check(self, conversation: Conversation) -> tuple[Conversation | None, list[Issue]]:
        """Return the conversation, repaired where that is wanted, or its issues."""
        if not self.fix:
            issues = check_conversation(conversation, self.special_tokens)
            return (None if issues else conversation), issues
        mended, done = repair_conversation(conversation, self.special_tokens)
        self.found.fixes += [Fix(conversation.location, message) for message in done]
        return mended, []

    def _refuse(self, issues: Iterable[Issue]) -> None:
        """Note problems, or that their row is left out."""
        if self.fix:
            kinds = dict.fromkeys((issue.location, issue.kind) for issue in issues)
            self.found.fixes += [Fix(location, f"left out: {kind}") for location, kind in kinds]
        else:
            self.found.issues += issues


def _issue(problem: Problem) -> Issue:
    return Issue(problem.reason, problem.location, problem.message)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return plain
