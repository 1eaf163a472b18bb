"""The main job on an embedded default: from nothing to a small bilingual model that answers, in a few minutes."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.data.stories.generator import held_out_questions, stories
from mm_rec.evaluation.generation import Sample, generate_samples
from mm_rec.evaluation.questions import score_questions
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.pipeline.pretrain import pretrain
from mm_rec.pipeline.recipe import Recipe, read_recipe
from mm_rec.runs.directory import RECIPE
from mm_rec.runs.files import atomic_path, read_json, write_json
from mm_rec.training.loop import Reporter

DOCUMENTS = 60_000
QUESTIONS = 200
PROMPTS = {
    "en": ["Once upon a time", "One day", "Question: What is the opposite of hot?\nAnswer:"],
    "tr": ["Bir zamanlar", "Bir gün", "Soru: Sıcak kelimesinin zıddı nedir?\nCevap:"],
}


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the table at the end shows. `questions` is the report of `score_questions`."""

    run: Path
    log: dict[str, Any]
    questions: dict[str, Any]
    samples: dict[str, list[Sample]]


def quickstart(folder: Path, reporter: Reporter, minutes: float | None = None) -> QuickstartResult | None:
    """Write the text, train on it, measure; a call that was interrupted goes on where it stopped.

    Returns None where the training was asked to stop before its end.
    """
    text = folder / "text" / "stories.jsonl"
    if not text.is_file():
        reporter.say(f"writing {DOCUMENTS:,} stories, questions and conversations to {text}")
        _write_stories(text)
    run = folder / "run"
    outcome = pretrain(_recipe(run, text, minutes), run, reporter)
    if outcome.ended == "stopped":
        return None
    reporter.say(f"asking {QUESTIONS} questions that the training text never asked …")
    model, tokenizer = load_model_and_tokenizer(run)
    engine = Engine(model)
    questions = held_out_questions(seed=1, count=QUESTIONS)
    report = score_questions(engine, tokenizer, questions)
    sampling = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=90, seed=7)
    samples = {
        language: list(generate_samples(engine, tokenizer, prompts, sampling))
        for language, prompts in PROMPTS.items()
    }
    write_json(folder / "questions.json", report)
    return QuickstartResult(run, read_json(run / "training_log.json"), report, samples)


def _recipe(run: Path, text: Path, minutes: float | None) -> Recipe:
    """The recipe of the package, or the resolved one of a run that was begun."""
    if (run / RECIPE).is_file():
        return read_recipe(run / RECIPE)
    overrides = [f"data.sources={json.dumps([str(text)])}"]
    if minutes is not None:
        overrides.append(f"pretrain.minutes={minutes}")
    return read_recipe(Path(__file__).parent / "recipes" / "quickstart.yaml", overrides)


def _write_stories(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in itertools.islice(stories(seed=0, count=DOCUMENTS), DOCUMENTS):
            row = {"text": story.text, "language": story.language, "kind": story.kind}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
