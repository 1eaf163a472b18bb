"""A whole recipe: its stages one after the other, each from the model of the one before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mm_rec.config import dump_yaml
from mm_rec.errors import ConfigError
from mm_rec.pipeline.lora import prepare_adapter
from mm_rec.pipeline.pretrain import prepare_pretraining
from mm_rec.pipeline.recipe import Recipe, SftSection, read_recipe
from mm_rec.pipeline.sft import prepare_tuning
from mm_rec.pipeline.stage import OnPlan, Outcome, Prepare, run_stage
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.files import write_text
from mm_rec.sources.documents import find_files
from mm_rec.sources.locations import ROW_KINDS
from mm_rec.training.trainer import Reporter

PRETRAIN = "pretrain"
_TUNING = ("instruct", "sft")
_ADAPTER = "lora"


def run_recipe(recipe: Recipe, folder: Path, reporter: Reporter, on_plan: OnPlan | None = None) -> Outcome:
    """Run the stages that a recipe has, each in a folder of its own name; a later call goes on where one stopped.

    Pre-training is a stage where there is text for it. Raises ConfigError where the folder holds the run of another
    recipe, or where there is no stage.
    """
    stages = stages_of(recipe)
    _require_files(recipe, stages)
    _keep(recipe, folder, stages)
    before: Path | None = None
    for number, stage in enumerate(stages, start=1):
        place = folder / stage
        reporter.say(f"stage {number} of {len(stages)}: {stage}, in {place}")
        begun = (
            read_recipe(place / RECIPE_FILE)
            if (place / RECIPE_FILE).is_file()
            else _for_stage(recipe, stage, before)
        )
        outcome = run_stage(begun, stage, place, reporter, preparation(begun, stage), on_plan=on_plan)
        if outcome.ended == "stopped":
            return outcome
        before = place
    return outcome


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe has, in order; raises ConfigError where it has none."""
    first = [PRETRAIN] if recipe.data.sources or recipe.data.prepared else []
    stages = first + [name for name in (*_TUNING, _ADAPTER) if getattr(recipe, name) is not None]
    if not stages:
        raise ConfigError(
            "this recipe has no stage to run: give it data.sources to pre-train on, or a section instruct, sft or lora"
        )
    return stages


def preparation(recipe: Recipe, stage: str) -> Prepare:
    """How a stage of a recipe is prepared."""
    if stage == PRETRAIN:
        return partial(prepare_pretraining, recipe)
    return prepare_adapter(recipe) if stage == _ADAPTER else prepare_tuning(recipe, stage)


def _for_stage(recipe: Recipe, stage: str, before: Path | None) -> Recipe:
    """The recipe of one stage: what comes after it is left out, and it starts from the stage before."""
    if stage == PRETRAIN:
        return recipe.changed(instruct=None, sft=None, lora=None)
    section: SftSection = getattr(recipe, stage)
    if section.start_from is None and before is not None:
        section = section.changed(start_from=str(before))
    return Recipe.read({"name": recipe.name, "seed": recipe.seed, stage: section})


def _require_files(recipe: Recipe, stages: list[str]) -> None:
    """Raise UserError now where a later stage names files that are not there, or the first begins with no model."""
    for number, stage in enumerate(stages):
        section: SftSection | None = None if stage == PRETRAIN else getattr(recipe, stage)
        if section is None:
            continue
        if section.start_from is None and number == 0:
            raise ConfigError(
                f"{stage} has no model to begin with: add start_from to it, a run or a model folder"
            )
        kinds = (*ROW_KINDS, "txt") if stage == _ADAPTER else ROW_KINDS
        find_files([*(source.path for source in section.data), *section.validation], kinds=kinds)
        if section.text:
            find_files(section.text)


def _keep(recipe: Recipe, folder: Path, stages: list[str]) -> None:
    """Write the recipe into the folder; what has begun there must be of the same recipe."""
    if (folder / RECIPE_FILE).is_file():
        kept = read_recipe(folder / RECIPE_FILE)
        begun = [stage for stage in stages if (folder / stage / RECIPE_FILE).is_file()]
        parts = {"seed", *(("data", "tokenizer", "model") if PRETRAIN in begun else ()), *begun}
        changed = sorted(part for part in parts if getattr(kept, part) != getattr(recipe, part))
        if begun and changed:
            raise ConfigError(
                f"{folder} is the run of another recipe: {', '.join(changed)} changed after {', '.join(begun)} began. "
                f"Give this one another --name, or begin with what is there: start_from: {folder / begun[-1]}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECIPE_FILE, dump_yaml(recipe))
