"""The lines that nearly all training examples share, to warn of prompts in another format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mm_rec.runs.files import read_json, write_json

FILE = "training_prompt.json"
_SHARE = 0.9  # of the examples that have a line


def common_lines(texts: Sequence[str]) -> list[str]:
    """The lines that at least nine tenths of the texts have, in the order of a text that has them all."""
    counts = Counter(line for text in texts for line in dict.fromkeys(text.splitlines()) if line.strip())
    common = {line for line, count in counts.items() if count >= _SHARE * len(texts)}
    fullest = max(texts, key=lambda text: len(common & set(text.splitlines())), default="")
    return [line for line in dict.fromkeys(fullest.splitlines()) if line in common]


def write_prompt_lines(folder: Path, texts: Sequence[str], prompt: str) -> None:
    """Write the common lines of the training examples, and the prompt of one of them."""
    write_json(folder / FILE, {"lines": common_lines(texts), "example": prompt})


def read_prompt_lines(adapter: Path) -> tuple[list[str], str]:
    """The common lines and the example beside an adapter or in the run that it belongs to; ([], "") where none are."""
    for folder in (adapter, *list(adapter.parents)[:3]):
        if (folder / FILE).is_file():
            values = read_json(folder / FILE)
            return list(values["lines"]), str(values["example"])
    return [], ""


def copy_prompt_lines(adapter: Path, folder: Path) -> None:
    """Copy an adapter's prompt lines beside a model that it was merged into."""
    lines, example = read_prompt_lines(adapter)
    if lines:
        write_json(folder / FILE, {"lines": lines, "example": example})


def prompt_mismatch_warning(adapter: Path, prompt: str) -> str | None:
    """Warn where a prompt lacks a line that the adapter was trained with, showing both; None where it has all."""
    lines, example = read_prompt_lines(adapter)
    missing = [line for line in lines if line not in prompt]
    if not missing:
        return None
    return (
        f"this prompt is written otherwise than those that {adapter} was trained on: it lacks {missing[0]!r}. "
        f"Answers will be poor.\n--- trained on:\n{example}\n--- given:\n{prompt}\n---"
    )
