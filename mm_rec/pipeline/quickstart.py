"""The main job on an embedded default: from nothing to a small bilingual model that chats.

It trains on as many tokens as are known to be enough (`recipes/quickstart.yaml`), however long this machine takes for
them, and on more where it is fast.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.data.conversations.dataset_writer import to_rows, write_rows
from mm_rec.evaluation.exact_match import score_exact_match
from mm_rec.evaluation.samples import GeneratedSample, generate_samples
from mm_rec.inference.manager import open_model
from mm_rec.inference.sampler import SamplingParams
from mm_rec.pipeline.kinds import OnPlan
from mm_rec.pipeline.recipe import Recipe, read_recipe, read_run
from mm_rec.pipeline.run import run_recipe
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.files import atomic_path, read_json, write_json
from mm_rec.stories.generator import conversations, held_out_questions, stories
from mm_rec.training.interfaces import Reporter
from mm_rec.training.section import ResolvedTrainSection, tokens_per_step

DOCUMENTS = 60_000
CONVERSATIONS = 12_000
TUNING_SHARE = 0.15  # of the training time that is asked for
SUMMING_UP = 30  # seconds for questions and samples, about
QUESTIONS = 200
PROMPTS = {
    "en": ["Once upon a time", "One day", "Question: What is the opposite of hot?\nAnswer:"],
    "tr": ["Bir zamanlar", "Bir gün", "Soru: Sıcak kelimesinin zıddı nedir?\nCevap:"],
}


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """The results that the table at the end shows: the logs of both stages, and `score_exact_match` after each."""

    run: Path
    log: dict[str, Any]
    tuning: dict[str, Any]
    before: dict[str, Any]
    questions: dict[str, Any]
    samples: dict[str, list[GeneratedSample]]


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
    recipe = _recipe(folder, text, chats, minutes)
    outcome = run_recipe(
        recipe, folder, reporter, _announcement(recipe, reporter) if minutes is None else None
    )
    if outcome.stopped:
        return None
    run = outcome.run
    reporter.say(f"asking {QUESTIONS} questions that the training text never asked …")
    questions = held_out_questions(seed=1, count=QUESTIONS)
    base = open_model(folder / "pretrain", device="cpu")
    before = score_exact_match(base.engine, base.tokenizer, questions)
    tuned = open_model(run, device="cpu")
    report = score_exact_match(tuned.engine, tuned.tokenizer, questions)
    sampling = SamplingParams(temperature=0.6, top_p=0.95, max_new_tokens=90, seed=7)
    samples = {
        language: list(generate_samples(tuned.engine, tuned.tokenizer, prompts, sampling))
        for language, prompts in PROMPTS.items()
    }
    write_json(folder / "questions.json", report)
    log, tuning = (read_json(stage / "training_log.json") for stage in (folder / "pretrain", run))
    return QuickstartResult(run, log, tuning, before, report, samples)


def _announcement(recipe: Recipe, reporter: Reporter) -> OnPlan:
    """Says how long all of it takes here, once this machine's speed is known."""
    tuning = recipe.stage("sft").section.tokens or 0

    def on_plan(settings: ResolvedTrainSection, tokens_per_second: float) -> None:
        tokens = settings.steps * tokens_per_step(settings) + tuning
        minutes = math.ceil((tokens / tokens_per_second + SUMMING_UP) / 60)
        reporter.say(
            f"{tokens:,} tokens are to be read, and this machine reads {tokens_per_second:,.0f} a second: about "
            f"{minutes} minutes from here to the end (--minutes N gives a rougher model sooner)"
        )

    return on_plan


def _recipe(folder: Path, text: Path, chats: Path, minutes: float | None) -> Recipe:
    """The recipe of the package, or that of a call that was begun."""
    if (folder / RECIPE_FILE).is_file():
        return read_run(folder)
    overrides = [f"pretrain.data.sources={json.dumps([str(text)])}", f"sft.data={json.dumps([str(chats)])}"]
    if minutes is not None:
        overrides += [
            f"pretrain.minutes={minutes * (1 - TUNING_SHARE)}",
            f"sft.minutes={minutes * TUNING_SHARE}",
            *("pretrain.least_tokens=null", "pretrain.tokens=null", "sft.tokens=null"),
        ]
    return read_recipe(Path(__file__).parent / "recipes" / "quickstart.yaml", overrides)


def _write_stories(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in itertools.islice(stories(seed=0, count=DOCUMENTS), DOCUMENTS):
            row = {"text": story.text, "language": story.language, "kind": story.kind}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
