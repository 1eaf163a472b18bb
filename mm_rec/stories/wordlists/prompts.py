"""The list format: a prompt with numbered words, an answer with numbered sentences."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mm_rec.config import load_yaml
from mm_rec.errors import ConfigError

_FIELDS = ("level", "count", "words")


def load_template(language: str = "en", path: Path | None = None) -> str:
    """The prompt's template: of a language that has one here (en, tr), or a text file of the user's.

    A template has the field {words}, the numbered list, and may have {level} and {count}. Raises ConfigError where the
    language has none, the file cannot be read, or its fields are others.
    """
    if path is None:
        templates = _templates()
        if language not in templates:
            raise ConfigError(
                f"there is no prompt in the language {language!r}, only in {', '.join(templates)}. Give --template a "
                "text file with the fields {words}, {level} and {count}"
            )
        return templates[language]
    try:
        template = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: this template cannot be read ({error}). Give a UTF-8 text file"
        ) from error
    _require_fields(template, path)
    return template


def prompt(words: Sequence[str], level: str = "A1", template: str | None = None) -> str:
    """Ask for a sentence of a level for each of some words; the template is the English one unless given."""
    filled = template or load_template()
    return filled.format(level=level, count=len(words), words=numbered(words))


def response(sentences: Sequence[str]) -> str:
    """The answer: numbered sentences, one a line."""
    return numbered(sentences)


def numbered(lines: Sequence[str]) -> str:
    """Lines with their numbers from 1 before them: "1. first"."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def instruction_text(prompt: str, response: str) -> str:
    """A prompt and its response as one text, for training on plain text."""
    return f"### Instruction:\n{prompt}\n\n### Response:\n{response}"


@cache
def _templates() -> dict[str, str]:
    return load_yaml(Path(__file__).with_name("prompts.yaml"))


def _require_fields(template: str, path: Path) -> None:
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{path}: {error}. A brace that is no field is doubled: {{{{ or }}}}") from error
    strange = [name for name in found if name not in _FIELDS]
    if strange or "words" not in found:
        what = f"the field {{{strange[0]}}} is not known" if strange else "the field {words} is missing"
        raise ConfigError(f"{path}: {what}. A template has {{words}}, and may have {{level}} and {{count}}")
