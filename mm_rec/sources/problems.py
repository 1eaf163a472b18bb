"""Problems of sources: one record for a row that is skipped and for an error that stops the reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mm_rec.errors import DataError
from mm_rec.sources.locations import SourceFile

ProblemKind = Literal[
    "missing",  # no such file, folder or URL
    "unsupported",  # a kind of file that is not read
    "unreadable",  # rights, network, a disk's fault
    "empty",
    "binary",
    "encoding",  # text, but not UTF-8
    "truncated",  # a compressed file that ends too early
    "damaged",  # a compressed or Parquet file that is not sound
    "too-large",
    "not-json",
    "bad-row",  # of CSV: quotation marks or number of fields
    "no-field",
    "not-a-string",
    "surrogate",
    "duplicate-key",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be used: why, where (line or row from 1), and what to do about it."""

    reason: ProblemKind
    path: SourceFile
    line: int | None
    message: str

    @property
    def location(self) -> str:
        """The file, with the line where there is one."""
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"

    def __str__(self) -> str:
        return f"{self.location}: {self.message}"


class ProblemError(DataError):
    """A DataError with its `problem`, for those who go on after it."""

    def __init__(self, problem: Problem) -> None:
        path = problem.path if isinstance(problem.path, Path) else str(problem.path)
        super().__init__(problem.message, path, problem.line)
        self.problem = problem

    def __reduce__(self) -> tuple[type[ProblemError], tuple[Problem]]:
        return type(self), (self.problem,)


ProblemHandler = Callable[[Problem], None]


def raise_problem(problem: Problem) -> None:
    """Raise a problem as a DataError: the strict handler."""
    raise ProblemError(problem)


def problem_error(
    reason: ProblemKind, message: str, path: SourceFile, line: int | None = None
) -> ProblemError:
    """Return a problem as the error to raise."""
    return ProblemError(Problem(reason, path, line, message))


def too_large(path: SourceFile, line: int, limit: int, what: str) -> ProblemError:
    """The error for a line, row or document above the limit."""
    return problem_error(
        "too-large",
        f"this {what} is larger than {limit / 2**20:,.4g} MiB, the most that is read as one document. "
        "Split it, or leave it out",
        path,
        line,
    )


def shorten(text: str, length: int = 60) -> str:
    """The beginning of a text, for a message."""
    text = text.strip()
    return text if len(text) <= length else text[: length - 1] + "…"
