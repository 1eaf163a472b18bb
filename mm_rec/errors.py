"""The exceptions of MM-Rec.

    MMRecError                 everything this project raises on purpose
    ├── UserError              a mistake that the person at the keyboard can mend (exit status 2)
    │   ├── DataError          a file or a row that cannot be used
    │   ├── ConfigError        a recipe, option or value that cannot be used
    │   ├── TokenizerError     a tokenizer that cannot be trained, loaded or does not fit
    │   │   └── VocabularyTooLarge   … for the text that should fill it
    │   ├── CheckpointError    a checkpoint or model folder that is missing, damaged or does not fit
    │   └── MissingExtraError  a feature whose optional packages are not installed
    ├── TrainingStopped        a run that had to stop (non-finite loss; exit status 1)
    └── MismatchError             a proof that failed: something that must be equal was not (exit status 1)

Each message says what was wrong, the value and where, and what to do.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


class MMRecError(Exception):
    """Base of every error that this project raises on purpose."""


class UserError(MMRecError):
    """A mistake that the person at the keyboard can mend."""


class DataError(UserError):
    """A file or a row that cannot be used; names the file and, where there is one, the line."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.line = line
        place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(place + message)


class ConfigError(UserError):
    """A recipe, an option or a value that cannot be used."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained or loaded, or that does not fit the model."""


class VocabularyTooLarge(TokenizerError):
    """A vocabulary larger than the text can fill; `largest` is the most pieces that it can."""

    def __init__(self, wanted: int, largest: int) -> None:
        self.largest = largest
        super().__init__(
            f"a vocabulary of {wanted:,} is larger than this text can fill: {largest:,} is the most. "
            f"Use --vocab-size {largest} or less, or give more text"
        )


class CheckpointError(UserError):
    """A checkpoint or a model folder that is missing, damaged, or belongs to something else."""


class MissingExtraError(UserError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs optional packages. Install them: {_pip()} install 'mm-rec[{extra}]'"
        )


def _pip() -> str:
    """Return the pip of this Python: by its name alone where that finds the same one."""
    found = shutil.which("pip")
    here = Path(sys.executable)
    return "pip" if found is not None and Path(found).parent == here.parent else f"{here} -m pip"


@contextlib.contextmanager
def needs_extra(extra: str, feature: str) -> Iterator[None]:
    """Around an import of optional packages: where one is missing, MissingExtraError names the extra that brings it."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(feature, extra) from error


class TrainingStopped(MMRecError):
    """A run that had to stop; the message says why and what to try."""


class MismatchError(MMRecError):
    """A check that failed: two things that must be equal were not."""


def truncated(text: str, length: int = 300) -> str:
    """Shorten another program's message for ours: one line, of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
