"""The proof that a killed run loses nothing: compared, bit for bit, with a run that was never interrupted."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mm_rec.errors import ConfigError, MismatchError
from mm_rec.pipeline.kinds import Artifacts
from mm_rec.pipeline.recipe import Recipe, Stage, read_recipe, read_run
from mm_rec.pipeline.training_job import TrainingContext
from mm_rec.pipeline.worker import KILLED, Moment, Silent, Worker
from mm_rec.runs.files import read_json
from mm_rec.runs.metrics_log import METRICS_FILE, read_metrics
from mm_rec.training.checkpoint import FILES, Checkpoint, read_checkpoint
from mm_rec.training.interfaces import Reporter
from mm_rec.training.section import TrainSection, require_resolved

_LONGEST = 600  # seconds that one child may take
_TIMES = ("seconds",)  # what may differ between two runs: clocks


def verify_resume(
    target: Path, reporter: Reporter, steps: int = 12, kills: int = 4, seed: int = 0, keep: Path | None = None
) -> None:
    """Run the proof for a run folder or a recipe of one stage; raises MismatchError that names the first difference."""
    recipe = _trial(target, steps)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        whole, broken = folder / "unbroken", folder / "killed"
        reporter.say(f"an unbroken run of {steps} steps …")
        _train(recipe, whole, None)
        done = 0
        for moment in _moments(random.Random(seed), kills):
            if _train(recipe, broken, moment):
                break
            done += 1
            reporter.say(f"killed: {moment.event} {moment.count}; restarting")
        else:
            _train(recipe, broken, None)
        if not done:
            raise MismatchError("the run ended before it could be killed once; give more --steps")
        compared = compare_runs(whole, broken)
        reporter.say(
            f"identical after {done} kills: {compared['tensors']} tensors of model and optimizer, "
            f"the loop's and all random states, {compared['losses']} logged losses, {compared['batches']} next batches"
        )


def _trial(target: Path, steps: int) -> Recipe:
    """The recipe to prove, shortened: a few steps, accumulation, frequent checkpoints, no compilation."""
    recipe = read_run(target) if target.is_dir() else read_recipe(target)
    stage = _stage(recipe)
    section = stage.kind.connect(stage.section, Artifacts())
    if target.is_dir():
        section = stage.kind.reuse(section, target.resolve())
    if section.steps is not None and section.steps < 3:
        raise ConfigError("a proof of resuming needs a recipe of 3 steps or more")
    changed = section.replace(
        steps=steps,
        minutes=None,
        epochs=None,
        tokens=None,
        warmup_steps=min(2, steps),
        accumulation=max(2, min(3, section.accumulation or 2)),
        batch_size=min(2, section.batch_size or 2),
        validate_every=max(2, steps // 3),
        validation_rows=4,
        checkpoint_every=2,
        keep_last=100,
        log_every=1,
        compile=False,
        patience=None,
        tensorboard=False,
        threads=section.threads or torch.get_num_threads(),
    )
    return recipe.with_section(stage.name, changed)


def _stage(recipe: Recipe) -> Stage:
    """The one stage of a recipe, which trains."""
    if len(recipe.stages) > 1:
        raise ConfigError(
            f"this recipe has {len(recipe.stages)} stages. Prove one: give the folder of its run, like "
            f"runs/mine/{recipe.stages[0].name}"
        )
    if recipe.stages[0].kind.prepare is None:
        raise ConfigError(f"a stage of the kind {recipe.stages[0].kind.name} has no steps to resume")
    return recipe.stages[0]


def _moments(chance: random.Random, kills: int) -> Iterator[Moment]:
    """Random moments, each kind in turn."""
    for number in range(kills):
        event = ("micro", "checkpoint", "step")[number % 3]
        yield Moment(
            event,
            {"micro": chance.randint(3, 8), "checkpoint": chance.randint(1, 2), "step": chance.randint(2, 4)}[
                event
            ],
        )


def _train(recipe: Recipe, run: Path, moment: Moment | None) -> bool:
    """Train in a child process; returns whether it came to the end. Raises MismatchError where it failed otherwise."""
    worker = Worker(run, recipe)
    worker.start(moment)
    try:
        status = worker.wait(_LONGEST)
    finally:
        worker.kill()
    if status == KILLED and moment is not None:
        return False
    if status != 0:
        raise MismatchError(
            f"{run}: the training process ended with status {status}; its message stands above"
        )
    return True


def compare_runs(one: Path, other: Path) -> dict[str, int]:
    """Compare two runs' last checkpoints, logged losses and next batches; counts what was compared.

    Raises MismatchError naming the first difference.
    """
    first, second = (_last_checkpoint(run) for run in (one, other))
    _require_equal("step of the last checkpoint", first.step, second.step)
    files = [read_json(checkpoint.folder / FILES) for checkpoint in (first, second)]
    _require_equal("list of files in the last checkpoint", *(sorted(names) for names in files))
    tensors = sum(
        _compare_tensors(name, first.folder / name, second.folder / name)
        for name in files[0]
        if name.endswith(".safetensors")
    )
    for part in ("loop", "data", "random"):
        values = (_without_clocks(checkpoint.state[part]) for checkpoint in (first, second))
        _require_equal(f"{part} state", *values)
    losses = [_logged_losses(run) for run in (one, other)]
    _require_equal("logged losses", *losses)
    batches = [_next_batches(run, checkpoint) for run, checkpoint in ((one, first), (other, second))]
    for left, right in zip(*batches, strict=True):
        if any(not torch.equal(left[name], right[name]) for name in left):
            raise MismatchError("the next batches differ between the unbroken and the killed run")
    return {"tensors": tensors, "losses": len(losses[0]), "batches": len(batches[0])}


def _compare_tensors(name: str, one: Path, other: Path) -> int:
    """Compare two files of tensors bit for bit; returns how many they hold."""
    left, right = load_file(one), load_file(other)
    _require_equal(f"names of the tensors in {name}", sorted(left), sorted(right))
    for tensor in left:
        if not torch.equal(left[tensor], right[tensor]):
            raise MismatchError(f"{name}: {tensor} differs between the unbroken and the killed run")
    return len(left)


def _last_checkpoint(run: Path) -> Checkpoint:
    name = (run / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    return read_checkpoint(run / "checkpoints" / name)


def _require_equal(what: str, left: Any, right: Any) -> None:
    if left != right:
        shown = json.dumps([left, right], default=str)[:200]
        raise MismatchError(f"the {what} differs between the unbroken and the killed run: {shown}")


def _without_clocks(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _TIMES}


def _logged_losses(run: Path) -> list[tuple[str, int, float]]:
    records = read_metrics(run / METRICS_FILE)
    return [(r["kind"], r["step"], r["loss"]) for r in records if r["kind"] in ("train", "validation")]


def _next_batches(run: Path, checkpoint: Checkpoint, count: int = 3) -> list[dict[str, torch.Tensor]]:
    recipe = read_run(run)
    stage = _stage(recipe)
    section: TrainSection = stage.section
    seed = recipe.seed if section.seed is None else section.seed
    settings = require_resolved(section.replace(seed=seed))
    context = TrainingContext(run, Silent(), torch.device("cpu"), checkpoint, seed)
    assert stage.kind.prepare is not None
    batches = stage.kind.prepare(settings, context).data.batches(settings)
    batches.load_state_dict(checkpoint.state["data"], checkpoint.data)
    steps = range(checkpoint.step, checkpoint.step + count)
    return [batches.batch_at(step, micro) for step in steps for micro in range(settings.accumulation)]
