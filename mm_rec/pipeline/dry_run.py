"""A look before training: what is learnt, how long it takes, what would suit better."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.pipeline.finetune_data import FinetuneData
from mm_rec.pipeline.kinds import StageContext
from mm_rec.pipeline.recipe import Recipe
from mm_rec.pipeline.train import Measured, measure_training
from mm_rec.training.interfaces import Reporter
from mm_rec.training.section import tokens_per_step


def dry_run(recipe: Recipe, reporter: Reporter) -> None:
    """Prepare and check the recipe's one stage, and say what there is to know of it.

    Nothing is kept: three steps are measured at learning rate 0.
    """
    (stage,) = recipe.stages
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(Path(folder), recipe.seed, reporter, keep=lambda section, reasons: None)
        seen = measure_training(stage.kind, stage.section, context)
    settings, data = seen.settings, seen.job.data
    epoch = _steps_per_epoch(seen)
    often = "" if epoch is None else f"{epoch:.1f} steps an epoch, "
    reporter.say(
        f"{often}{settings.steps:,} in all; {seen.seconds_per_step:.2f} seconds a step, measured: "
        f"about {settings.steps * seen.seconds_per_step / 60:.0f} minutes"
        + (f", {seen.peak_bytes / 1e9:.1f} GB of memory" if seen.peak_bytes else "")
    )
    warmup = max(1, round(min(100, settings.steps / 10, epoch or settings.steps)))
    reporter.say(
        f"suggested: --warmup-steps {warmup}, "
        f"--save-every {max(1, settings.steps // 10)} to {max(1, settings.steps // 5)}"
    )
    if isinstance(data, FinetuneData):
        for name, rendered in data.examples.train.items():
            shown = masked_text(seen.job.tokenizer, rendered[0])
            reporter.say(f"{name}, the first example (learnt is what stands in ⟦ ⟧):\n{shown}")


def _steps_per_epoch(seen: Measured) -> float | None:
    data = seen.job.data
    if isinstance(data, FinetuneData):
        return data.steps_per_epoch(seen.settings)
    return None if data.tokens is None else sum(data.tokens.values()) / tokens_per_step(seen.settings)


def masked_text(tokenizer: PreTrainedTokenizerBase, rendered: TokenizedExample) -> str:
    """An example's text with what is learnt of it in ⟦ ⟧."""
    changes = np.flatnonzero(np.diff(rendered.loss_mask)) + 1
    pieces = []
    for ids, loss_mask in zip(
        np.split(rendered.ids, changes), np.split(rendered.loss_mask, changes), strict=True
    ):
        text = str(tokenizer.decode(ids))
        pieces.append(f"⟦{text}⟧" if loss_mask[0] else text)
    return "".join(pieces)
