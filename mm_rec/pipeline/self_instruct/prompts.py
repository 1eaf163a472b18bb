"""Prompts in Turkish and in English, and the parsers of their replies.

A list of new tasks is asked for as a numbered list, an answer as two labelled parts: forms that small models keep to
more often than JSON, whose quotation marks and line ends they forget to escape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mm_rec.text.languages import get_language

_FOLDER = Path(__file__).parent
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class PromptLabels:
    """The labels of the prompts by which replies are parsed, in one language."""

    task: str
    input: str
    answer: str
    no_input: frozenset[str]


_LABELS = {
    "tr": PromptLabels("Görev", "Girdi", "Yanıt", frozenset({"", "yok", "girdi yok", "gerekmiyor"})),
    "en": PromptLabels("Task", "Input", "Answer", frozenset({"", "none", "no input", "n/a"})),
}


def tasks_prompt(code: str, examples: Sequence[str], count: int) -> str:
    """Ask for `count` tasks that differ from the examples, in the language of `code`."""
    numbered = (f"{number}. {' '.join(example.split())}" for number, example in enumerate(examples, start=1))
    first = len(examples) + 1
    return _template(code, "tasks").format(
        examples="\n".join(numbered), count=count, first=first, last=first + count - 1
    )


def answer_prompt(code: str, task: str) -> str:
    """Ask for what a task works on and for its answer."""
    return _template(code, "answer").format(task=task)


def read_tasks(code: str, reply: str) -> list[str]:
    """Parse the tasks of a numbered list; each ends at a blank line, and none may hold one."""
    mark = re.compile(rf"^[ \t*#]*(?:{_labels(code).task}[ \t]+)?\d{{1,3}}[.):]\**[ \t]+", re.MULTILINE)
    items = (_BLANK_LINE.split(item.strip())[0] for item in mark.split(reply)[1:])
    return [task for item in items if (task := item.replace("**", "").strip())]


def read_answer(code: str, reply: str) -> tuple[str, str] | None:
    """Parse the input ("" for none) and the answer of a reply; None where it has another format."""
    labels = _labels(code)
    form = rf"\W*{labels.input}\**\s*:\**(.*?)^\W*{labels.answer}\**\s*:\**(.*)"
    found = re.fullmatch(form, reply, re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    given, answer = (part.strip() for part in found.groups())
    label = rf"^\W*(?:{labels.task}|{labels.input}|{labels.answer})\**\s*:"
    if re.search(label, f"{given}\n{answer}", re.MULTILINE):  # it went on with tasks of its own
        return None
    return "" if given.strip("<>[](). ").casefold() in labels.no_input else given, answer


def _labels(code: str) -> PromptLabels:
    return _LABELS[get_language(code).code]


def _template(code: str, name: str) -> str:
    return (_FOLDER / f"{name}.{get_language(code).code}.md").read_text(encoding="utf-8")
