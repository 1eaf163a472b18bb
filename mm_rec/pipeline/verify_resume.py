"""The proof that a killed run loses nothing: compared, bit for bit, with a run that was never interrupted."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mm_rec.config import dump_yaml
from mm_rec.data.mixture import group_sources
from mm_rec.data.prepare import is_prepared
from mm_rec.errors import ConfigError, MismatchError
from mm_rec.pipeline.recipe import DataSection, Recipe, TrainingSection, read_recipe
from mm_rec.pipeline.run import PRETRAIN, preparation, stages_of
from mm_rec.pipeline.stage import run_stage
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.files import write_text
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.training.checkpoint import Checkpoint, read_checkpoint
from mm_rec.training.config import TrainingConfig
from mm_rec.training.trainer import Reporter

_LONGEST = 600  # seconds that one child may take
if sys.platform == "win32":  # there os.kill ends a process at once, whatever the signal
    _KILL, _KILLED = signal.SIGTERM, int(signal.SIGTERM)
else:
    _KILL, _KILLED = signal.SIGKILL, -signal.SIGKILL
_TIMES = ("seconds",)  # what may differ between two runs: clocks


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the child kills itself: the nth time that `event` happens in it.

    step: between two steps; micro: in the middle of accumulation; checkpoint: while one is being written.
    """

    event: str
    count: int


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
    path = target / RECIPE_FILE if target.is_dir() else target
    recipe = read_recipe(path)
    stage = _stage(recipe)
    if stage == PRETRAIN and target.is_dir() and (target / "data").is_dir():
        tokenizer = recipe.tokenizer.path or str((target / "tokenizer").resolve())
        data = _prepared_data(recipe.data, (target / "data").resolve())
        recipe = recipe.changed(data=data, tokenizer={"path": tokenizer})
    section: TrainingSection = getattr(recipe, stage)
    if section.steps is not None and section.steps < 3:
        raise ConfigError("a proof of resuming needs a recipe of 3 steps or more")
    changed = section.changed(
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
    return recipe.changed(**{stage: changed})


def _stage(recipe: Recipe) -> str:
    """The one stage of a recipe."""
    stages = stages_of(recipe)
    if len(stages) > 1:
        raise ConfigError(
            f"this recipe has {len(stages)} stages. Prove one: give the folder of its run, like runs/mine/{PRETRAIN}"
        )
    return stages[0]


def _prepared_data(data: DataSection, folder: Path) -> DataSection:
    """The same data from the shards that a run made of it; a stream is read from its sources again."""
    if data.streaming:
        return data
    if len(group_sources(data.sources)) < 2:
        return DataSection(prepared=str(folder))
    sources = {
        source.name: source.changed(path=str(folder / source.name))
        for source in data.sources
        if is_prepared(folder / source.name)
    }
    kept = [source for source in data.sources if source.name not in sources]
    return data.changed(sources=[source.model_dump() for source in [*sources.values(), *kept]])


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
    run.mkdir(parents=True, exist_ok=True)
    if not (run / RECIPE_FILE).is_file():
        write_text(run / RECIPE_FILE, dump_yaml(recipe))
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(str(run), moment))
    child.start()
    try:
        child.join(_LONGEST)
    finally:
        if child.is_alive():
            child.kill()
            child.join()
    if child.exitcode == _KILLED and moment is not None:
        return False
    if child.exitcode != 0:
        raise MismatchError(
            f"{run}: the training process ended with status {child.exitcode}; its message stands above"
        )
    return True


def _child(run: str, moment: Moment | None) -> None:
    """Train with the recipe that lies in the run, and die by SIGKILL at the moment, leaving no time to tidy up."""
    seen = 0

    def on_event(event: str, step: int) -> None:
        nonlocal seen
        if moment is not None and event == moment.event:
            seen += 1
            if seen == moment.count:
                os.kill(os.getpid(), _KILL)

    recipe = read_recipe(Path(run) / RECIPE_FILE)
    stage = _stage(recipe)
    run_stage(recipe, stage, Path(run), _Silent(), preparation(recipe, stage), on_event)


class _Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Nothing."""


def compare_runs(one: Path, other: Path) -> dict[str, int]:
    """Compare two runs' last checkpoints, logged losses and next batches; counts what was compared.

    Raises MismatchError naming the first difference.
    """
    first, second = (_last_checkpoint(run) for run in (one, other))
    _require_equal("step of the last checkpoint", first.step, second.step)
    tensors = 0
    pairs = {
        "optimizer.safetensors": (first.optimizer, second.optimizer),
        "data.safetensors": (first.data, second.data),
    }
    weights = "model/model.safetensors"
    pairs[weights] = load_file(first.folder / weights), load_file(second.folder / weights)
    for place, (left, right) in pairs.items():
        _require_equal(f"names of the tensors in {place}", sorted(left), sorted(right))
        for name in left:
            if not torch.equal(left[name], right[name]):
                raise MismatchError(f"{place}: {name} differs between the unbroken and the killed run")
        tensors += len(left)
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
    records = read_metrics(run / "metrics.jsonl")
    return [(r["kind"], r["step"], r["loss"]) for r in records if r["kind"] in ("train", "validation")]


def _next_batches(run: Path, checkpoint: Checkpoint, count: int = 3) -> list[dict[str, torch.Tensor]]:
    recipe = read_recipe(run / RECIPE_FILE)
    stage = _stage(recipe)
    section: TrainingSection = getattr(recipe, stage)
    assert section.steps and section.seq_len and section.batch_size and section.accumulation
    config = TrainingConfig(
        steps=section.steps,
        seq_len=section.seq_len,
        micro_batch=section.batch_size,
        accumulation=section.accumulation,
        learning_rate=1.0,
        seed=recipe.seed,
    )
    prepared = preparation(recipe, stage)(run, _Silent(), torch.device("cpu"), checkpoint)
    batches = prepared.data.batches(config)
    batches.load_state_dict(checkpoint.state["data"], checkpoint.data)
    steps = range(checkpoint.step, checkpoint.step + count)
    return [batches.batch_at(step, micro) for step in steps for micro in range(section.accumulation)]
