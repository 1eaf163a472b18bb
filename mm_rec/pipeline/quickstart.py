"""The main job on an embedded default: from nothing to a small bilingual model that chats, in a few minutes."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.writing import to_rows, write_rows
from mm_rec.data.stories.generator import conversations, held_out_questions, stories
from mm_rec.evaluation.generation import Sample, generate_samples
from mm_rec.evaluation.questions import score_questions
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.pipeline.recipe import Recipe, read_recipe
from mm_rec.pipeline.run import run_recipe
from mm_rec.runs.directory import RECIPE
from mm_rec.runs.files import atomic_path, read_json, write_json
from mm_rec.training.loop import Reporter

DOCUMENTS = 60_000
CONVERSATIONS = 12_000
TUNING_SHARE = 0.35  # of the training time that is asked for
QUESTIONS = 200
PROMPTS = {
    "en": ["Once upon a time", "One day", "Question: What is the opposite of hot?\nAnswer:"],
    "tr": ["Bir zamanlar", "Bir gün", "Soru: Sıcak kelimesinin zıddı nedir?\nCevap:"],
}


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the table at the end shows: the logs of both stages, and the reports of `score_questions` after each."""

    run: Path
    log: dict[str, Any]
    tuning: dict[str, Any]
    before: dict[str, Any]
    questions: dict[str, Any]
    samples: dict[str, list[Sample]]


def quickstart(folder: Path, reporter: Reporter, minutes: float | None = None) -> QuickstartResult | None:
    """Write the text, train on it, teach it to chat, measure; an interrupted call goes on where it stopped.

    Returns None where the training was asked to stop before its end.
    """
    text, chats = folder / "text" / "stories.jsonl", folder / "text" / "conversations.jsonl"
    if not chats.is_file():
        reporter.say(f"writing {DOCUMENTS:,} documents and {CONVERSATIONS:,} conversations to {text.parent}")
        _write_stories(text)
        rows, _ = to_rows(list(conversations(seed=0, count=CONVERSATIONS)), "openai", chats)
        write_rows(rows, chats)
    outcome = run_recipe(_recipe(folder, text, chats, minutes), folder, reporter)
    if outcome.ended == "stopped":
        return None
    run = outcome.run
    reporter.say(f"asking {QUESTIONS} questions that the training text never asked …")
    questions = held_out_questions(seed=1, count=QUESTIONS)
    before = score_questions(*_engine(folder / "pretrain"), questions)
    engine, tokenizer = _engine(run)
    report = score_questions(engine, tokenizer, questions)
    sampling = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=90, seed=7)
    samples = {
        language: list(generate_samples(engine, tokenizer, prompts, sampling))
        for language, prompts in PROMPTS.items()
    }
    write_json(folder / "questions.json", report)
    log, tuning = (read_json(stage / "training_log.json") for stage in (folder / "pretrain", run))
    return QuickstartResult(run, log, tuning, before, report, samples)


def _engine(run: Path) -> tuple[Engine, PreTrainedTokenizerBase]:
    model, tokenizer = load_model_and_tokenizer(run)
    return Engine(model), tokenizer


def _recipe(folder: Path, text: Path, chats: Path, minutes: float | None) -> Recipe:
    """The recipe of the package, or that of a call that was begun."""
    if (folder / RECIPE).is_file():
        return read_recipe(folder / RECIPE)
    overrides = [f"data.sources={json.dumps([str(text)])}", f"sft.data={json.dumps([str(chats)])}"]
    if minutes is not None:
        overrides += [
            f"pretrain.minutes={minutes * (1 - TUNING_SHARE)}",
            f"sft.minutes={minutes * TUNING_SHARE}",
        ]
    return read_recipe(Path(__file__).parent / "recipes" / "quickstart.yaml", overrides)


def _write_stories(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in itertools.islice(stories(seed=0, count=DOCUMENTS), DOCUMENTS):
            row = {"text": story.text, "language": story.language, "kind": story.kind}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
