"""The task pool: seeds from conversation files, and kept rows, appended one by one and read back to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.issues import format_issues
from mm_rec.errors import DataError
from mm_rec.pipeline.self_instruct.filters import MAX_TASK_WORDS
from mm_rec.text.words import words

SOURCE = "self-instruct"
# Metadata come first in a row, so that its beginning tells whose it is, also where a kill cut it short.
_BEGINNING = f'{{"metadata": {{"source": "{SOURCE}", '.encode()


@dataclass(frozen=True, slots=True)
class PoolTask:
    """A task that a prompt can show: a seed's, or one that was kept."""

    id: str
    task: str


def read_seeds(sources: Sequence[str | Path]) -> list[PoolTask]:
    """Read the tasks of conversation files: the first paragraph of each first user message; no repeats, no long ones.

    What follows that paragraph is the task's input, as Alpaca's and Self-Instruct's formats are read. Raises DataError
    where a file has problems or no task.
    """
    found = read_conversations(sources)
    if found.issues:
        raise DataError(
            "the seeds cannot be used as they are (mmrec data convert … --fix mends or leaves out such rows):\n"
            + format_issues(found.issues)
        )
    examples: dict[str, PoolTask] = {}
    for conversation in found.conversations:
        asked = next((message.content for message in conversation.messages if message.role == "user"), "")
        task = _task_of(asked)
        if task and len(words(task)) <= MAX_TASK_WORDS:
            name = str(conversation.metadata.get("id") or conversation.location)
            examples.setdefault(task, PoolTask(name, task))
    if not examples:
        raise DataError(
            f"no conversation begins with a task of at most {MAX_TASK_WORDS} words", str(sources[0])
        )
    return list(examples.values())


def read_pool(path: Path) -> tuple[list[PoolTask], int]:
    """Read the tasks that earlier calls kept, and their last round; a last line that a kill cut short is removed."""
    if not path.exists():
        return [], 0
    *lines, rest = path.read_bytes().split(b"\n")
    rows = [_row(line, path, number) for number, line in enumerate(lines, start=1)]
    if rest:  # a row is written together with its line end
        _require_ours(rest, path, len(lines) + 1)
        os.truncate(path, path.stat().st_size - len(rest))
    kept = [PoolTask(row["metadata"]["id"], _task_of(row["messages"][0]["content"])) for row in rows]
    return kept, max((row["metadata"]["round"] for row in rows), default=0)


def append_row(
    path: Path, task: str, given: str, answer: str, name: str, origin: Mapping[str, Any]
) -> PoolTask:
    """Write a task with its input ("" for none) and its answer as OpenAI's messages, with where it came from."""
    row = {
        "metadata": {"source": SOURCE, "id": name, **origin},
        "messages": [
            {"role": "user", "content": f"{task}\n\n{given}" if given else task},
            {"role": "assistant", "content": answer},
        ],
    }
    append_jsonl(path, row)
    return PoolTask(name, task)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file and flush it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _task_of(content: str) -> str:
    return content.strip().split("\n\n")[0]


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    _require_ours(line, path, number)
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise DataError(f"this row is damaged ({error}). Delete it; the others stay", path, number) from error
    return row


def _require_ours(line: bytes, path: Path, number: int) -> None:
    if not line.startswith(_BEGINNING):
        raise DataError("self-instruct did not write this row. Give --out another name", path, number)
