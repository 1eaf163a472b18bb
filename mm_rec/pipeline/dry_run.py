"""A look before training: what is learnt, how long it takes, what would suit better."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mm_rec.pipeline.kinds import StageContext
from mm_rec.pipeline.recipe import Recipe
from mm_rec.pipeline.train import measure_training
from mm_rec.training.interfaces import Reporter


def dry_run(recipe: Recipe, reporter: Reporter) -> None:
    """Prepare and check the recipe's one stage, and say what there is to know of it.

    Nothing is kept: three steps are measured at learning rate 0.
    """
    (stage,) = recipe.stages
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(Path(folder), recipe.seed, reporter, keep=lambda section, reasons: None)
        seen = measure_training(stage.kind, stage.section, context)
    settings, data = seen.settings, seen.job.data
    epoch = data.steps_per_epoch(settings)
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
    for name, shown in data.preview().items():
        reporter.say(f"{name}, the first example (learnt is what stands in ⟦ ⟧):\n{shown}")
