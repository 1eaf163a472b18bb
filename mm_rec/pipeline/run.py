"""A recipe at work: its stages one after the other, each from what those before it made."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.config import Section
from mm_rec.errors import ConfigError, UserError
from mm_rec.pipeline.kinds import Artifact, Artifacts, OnPlan, StageContext
from mm_rec.pipeline.recipe import Recipe, Stage, changed_stages, read_run, write_recipe
from mm_rec.runs.directory import LINEAGE, RECIPE_FILE
from mm_rec.runs.files import hash_file, read_json, remove, remove_leftovers, write_json
from mm_rec.runs.metrics import Outcome
from mm_rec.runs.metrics_log import METRICS_FILE
from mm_rec.training.interfaces import OnEvent, Reporter

_MODEL_FOLDER = "final"  # of a run that made a model; an adapter's files lie in the run itself
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of a run, its last step, and its folder."""

    run: Path
    outcome: Outcome
    step: int

    @property
    def stopped(self) -> bool:
        """True where the run was stopped and can be continued."""
        return self.outcome == Outcome.STOPPED


def run_recipe(recipe: Recipe, folder: Path, reporter: Reporter, on_plan: OnPlan | None = None) -> RunOutcome:
    """Run the stages of a recipe, each in a folder of its own name; a later call goes on where one stopped.

    Raises ConfigError where the folder holds the run of another recipe.
    """
    before: set[str] = set()
    for stage in recipe.stages:
        _require(stage, before)
        before.update(stage.kind.makes)
    _keep(recipe, folder)
    made = Artifacts()
    for number, stage in enumerate(recipe.stages, start=1):
        run = folder / stage.name
        reporter.say(f"stage {number} of {len(recipe.stages)}: {stage.name}, in {run}")
        if (run / RECIPE_FILE).is_file():
            begun = read_run(run)
        else:
            section = stage.kind.connect(stage.section, made)
            begun = Recipe(recipe.name, recipe.seed, (dataclasses.replace(stage, section=section),))
        ended = run_stage(begun, run, reporter, on_plan=on_plan)
        if ended.stopped:
            return ended
        made.add(stage.name, outputs(run))
    return ended


def run_stage(
    recipe: Recipe,
    run: Path,
    reporter: Reporter,
    on_event: OnEvent | None = None,
    on_plan: OnPlan | None = None,
) -> RunOutcome:
    """Run the one stage of a recipe in a run folder, or go on where an earlier call was stopped or killed."""
    (stage,) = recipe.stages
    # What has no steps is finished when it has made something.
    if stage.kind.prepare is None and outputs(run):
        reporter.say(f"{run} is finished")
        return RunOutcome(run, Outcome.FINISHED, 0)
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    known, there = (run / RECIPE_FILE).is_file(), set(run.iterdir())

    def keep(section: Section, reasons: Mapping[str, str]) -> None:
        if not _begun(run):
            write_recipe(recipe.with_section(stage.name, section), run, reasons)

    if not known:
        write_recipe(recipe, run)
    context = StageContext(run, recipe.seed, reporter, keep, on_event, on_plan)
    try:
        result = stage.kind.run(stage.kind, stage.section, context)
    except UserError:
        if not _begun(run):
            # The same name can be given again, and nothing made for the mistake is taken for its answer.
            for left in set() if known else set(run.iterdir()) - there:
                remove(left)
            if not any(run.iterdir()):
                run.rmdir()
        raise
    _note_outputs(run, result.made)
    return RunOutcome(run, result.outcome, result.step)


def outputs(run: Path) -> dict[str, Artifact]:
    """Return the outputs of a finished run by name, as its lineage has them."""
    file = run / LINEAGE
    made: dict[str, Any] = read_json(file).get("outputs", {}) if file.is_file() else {}
    return {name: Artifact(name, Path(one["path"]), one["sha256"]) for name, one in made.items()}


def _note_outputs(run: Path, made: Mapping[str, Path]) -> None:
    """Add to a run's lineage what it has made, with the SHA-256 of its content."""
    if not made:
        return
    lineage = read_json(run / LINEAGE) if (run / LINEAGE).is_file() else {}
    written = {name: {"path": str(path), "sha256": _digest(path)} for name, path in made.items()}
    write_json(run / LINEAGE, {**lineage, "outputs": written})


def _digest(path: Path) -> str:
    """The SHA-256 of a file, of a run's model or adapter, or of all files of a folder with their names."""
    if path.is_file():
        return hash_file(path)
    root = path / _MODEL_FOLDER if (path / _MODEL_FOLDER).is_dir() else path
    adapter = [path / name for name in _ADAPTER_FILES if (path / name).is_file()]
    digest = hashlib.sha256()
    for file in adapter or sorted(file for file in root.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()} {hash_file(file)}\n".encode())
    return digest.hexdigest()


def _begun(run: Path) -> bool:
    """True once a training has begun."""
    return (run / METRICS_FILE).is_file()


def _require(stage: Stage, made: Collection[str]) -> None:
    """Check what a stage needs; an error names the stage."""
    try:
        stage.kind.require(stage.section, made)
    except ConfigError as error:
        raise ConfigError(f"{stage.name}: {error}") from error


def _keep(recipe: Recipe, folder: Path) -> None:
    """Write the recipe into the folder; what has begun there must be of the same recipe."""
    if (folder / RECIPE_FILE).is_file():
        kept = read_run(folder)
        begun = [stage.name for stage in recipe.stages if (folder / stage.name / RECIPE_FILE).is_file()]
        changed = [name for name in changed_stages(kept.stages, recipe.stages) if name in begun]
        changed += ["seed"] if kept.seed != recipe.seed else []
        if begun and changed:
            raise ConfigError(
                f"{folder} is the run of another recipe: {', '.join(changed)} changed after {', '.join(begun)} began. "
                f"Give this one another --name, or begin with what is there: start_from: {folder / begun[-1]}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, folder)
