"""One stage of a recipe in a run folder: prepared, checked, trained, summed up; the same for every objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec import cpu
from mm_rec.config import dump_yaml
from mm_rec.errors import ConfigError, UserError
from mm_rec.models.adapters import adapters_of
from mm_rec.models.loading import save_model
from mm_rec.models.presets import ModelSize, measure
from mm_rec.pipeline import derive
from mm_rec.pipeline.recipe import Recipe, TrainingSection
from mm_rec.pipeline.summary import write_summary
from mm_rec.runs.directory import RECIPE_FILE, write_lineage
from mm_rec.runs.files import atomic_path, remove, remove_leftovers, require_free_space, write_text
from mm_rec.runtime import (
    Precision,
    choose_device,
    choose_precision,
    device_name,
    disable_malloc_trim,
    machine,
    measure_peak_flops,
    memory_bytes,
    peak_memory_bytes,
    seed_everything,
)
from mm_rec.tokenizers.loading import fingerprint
from mm_rec.training.checkpoint import Checkpoint, Checkpoints
from mm_rec.training.compilation import compile_for_training
from mm_rec.training.config import TrainingConfig
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.objectives import Objective
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.time_limit import TimeLimit
from mm_rec.training.trainer import Batches, Reporter, Training, Validation

_WORTH_COMPILING = 120  # seconds of training below which compilation (10 to 40 s) does not pay
_LONGEST_MEASUREMENT = 0.1  # of the time asked for


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, in the words of `Training.fit`, and where it lies."""

    run: Path
    ended: str
    step: int


class StageData(Protocol):
    """What a stage trains on; `RunText` and `RunConversations` are two."""

    @property
    def tokens(self) -> Mapping[str, int] | None:
        """Training tokens of each source; None where nobody knows."""

    def batches(self, config: TrainingConfig) -> Batches:
        """The run's batches from its first step on."""

    def longest(self, config: TrainingConfig) -> int:
        """Tokens of the longest document that the model reads."""

    def describe(self, config: TrainingConfig, size: ModelSize) -> list[str]:
        """What is read, and what is unusual about it, a line each."""

    def card_lines(self, config: TrainingConfig) -> list[str]:
        """The data in a few lines, for the model card."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage brings to the common way: model, tokenizer, data, what is learnt and how it is measured.

    `base` names what the model was before, `continued` says whether it had learnt something, `inputs` goes into the
    lineage. `forgetting` gives bits a byte of the base's held-out text before and after, where they are known.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: StageData
    section: TrainingSection
    objective: Callable[[torch.dtype], Objective]
    validation: Callable[[TrainingConfig, Precision], Validation]
    base: str
    continued: bool
    inputs: Mapping[str, Any]
    forgetting: Callable[[], dict[str, float] | None] = lambda: None


Prepare = Callable[[Path, Reporter, torch.device, Checkpoint | None], Stage]
OnPlan = Callable[
    [TrainingConfig, float], None
]  # is told the settings and the tokens a second that were measured


def run_stage(
    recipe: Recipe,
    name: str,
    run: Path,
    reporter: Reporter,
    prepare: Prepare,
    on_event: Callable[[str, int], None] | None = None,
    on_plan: OnPlan | None = None,
) -> Outcome:
    """Run the section `name` of a recipe, or go on where an earlier call of it was stopped or killed.

    Everything that can be checked is checked before the first step; what was finished before is used again.
    """
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    known, there = (run / RECIPE_FILE).is_file(), set(run.iterdir())
    if not known:
        write_text(run / RECIPE_FILE, dump_yaml(recipe))
    try:
        stage, training, size = _begin(recipe, name, run, reporter, prepare, on_event, on_plan)
    except UserError:
        # The same name can be given again, and nothing made for the mistake is taken for its answer.
        for made in set() if known else set(run.iterdir()) - there:
            remove(made)
        if not any(run.iterdir()):
            run.rmdir()
        raise
    with StopRequest(reporter.say) as stop:
        ended = training.fit(stop)
    if ended != "stopped":
        _save_final(training, run)
    card = stage.data.card_lines(training.config)
    config, state = training.config, training.state
    tokens = stage.data.tokens
    epochs = None if tokens is None else state.step * config.tokens_per_step / sum(tokens.values())
    rows = config.micro_batch * config.accumulation
    write_summary(run, stage.base, training.model, size, card, state, ended, rows, epochs, stage.forgetting())
    return Outcome(run, ended, training.state.step)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a look at a stage showed: its settings, seconds of a step, and the most memory in bytes, where known."""

    stage: Stage
    settings: TrainingConfig
    seconds_per_step: float
    peak_bytes: int | None


def measure_stage(recipe: Recipe, name: str, run: Path, reporter: Reporter, prepare: Prepare) -> Measured:
    """Prepare and check a stage as `run_stage` does, and measure three steps that change nothing."""
    stage, training, _ = _begin(recipe, name, run, reporter, prepare)
    settings = training.config
    dtype = choose_precision(settings.precision, stage.model.device)
    speed = _measure_speed(settings, stage, dtype, math.inf, steps=3)
    return Measured(stage, settings, settings.tokens_per_step / speed, peak_memory_bytes(stage.model.device))


def _save_final(training: Training, run: Path) -> None:
    """Write the model to `final/`; an adapter lies in the run's own folder, with all that tells of it."""
    if adapters_of(training.model) is not None:
        save_model(training.model, training.tokenizer, run)
    else:
        with atomic_path(run / "final") as temporary:
            save_model(training.model, training.tokenizer, temporary)


def _begin(
    recipe: Recipe,
    name: str,
    run: Path,
    reporter: Reporter,
    prepare: Prepare,
    on_event: Callable[[str, int], None] | None = None,
    on_plan: OnPlan | None = None,
) -> tuple[Stage, Training, ModelSize]:
    """Data, model and settings, checked; the training stands at its last checkpoint."""
    section: TrainingSection = getattr(recipe, name)
    if section.threads:
        torch.set_num_threads(section.threads)
    device = choose_device(section.device)
    checkpoint = Checkpoints(run / "checkpoints", 1).load_newest(reporter.say)
    seed_everything(recipe.seed)
    stage = prepare(run, reporter, device, checkpoint)
    start = time.perf_counter()
    model = stage.model
    size = measure(model.config)
    precision = choose_precision(section.precision, device)
    peak = measure_peak_flops(precision.dtype, device)
    trained = _trained(model)
    reporter.say(
        f"{model.config.model_type} with {size.parameters:,} parameters; {derive.state_text(model.config, size)}"
    )
    if adapters_of(model) is not None:
        reporter.say(f"{trained:,} parameters are trained, in an adapter; the model stays as it is")
    derived = _settings(recipe, stage, size, precision, peak, reporter, start, on_plan)
    settings = derived.config
    reporter.say(_chosen_forms(settings, precision, device))
    _check(settings, size, stage, run, reporter)
    training = Training(
        model,
        stage.tokenizer,
        stage.data.batches(settings),
        stage.objective(precision.dtype),
        settings,
        run,
        reporter,
        validate=stage.validation(settings, precision),
        flops_per_token=size.flops_per_token,
        peak_flops=peak,
        on_event=on_event,
        time_limit=_time_limit(stage.section, derived, start),
    )
    write_text(run / RECIPE_FILE, dump_yaml(_resolved(recipe, name, settings)))
    write_lineage(run, {**stage.inputs, "tokenizer": fingerprint(stage.tokenizer)}, machine(device))
    if checkpoint is not None:
        training.resume(checkpoint)
        reporter.say(f"continuing {run} at step {training.state.step} of {settings.steps}")
    return stage, training, size


def _settings(
    recipe: Recipe,
    stage: Stage,
    size: ModelSize,
    precision: Precision,
    peak: float,
    reporter: Reporter,
    start: float,
    on_plan: OnPlan | None,
) -> derive.Derived:
    """The complete configuration, each derived number said once; `start` is when the data had been read."""
    section = stage.section.changed(precision=precision.name)
    timed = section.minutes is not None and section.steps is None
    seconds = 60 * section.minutes if section.minutes is not None else 0.0
    unmeasured = derive.Pace(1e12, seconds) if timed else None
    known = (stage.model.config, size, stage.data.tokens, recipe.seed, stage.continued)
    if section.compile is None:
        config = derive.derive(section, *known, unmeasured).config
        section = section.changed(compile=_compile_pays(config, size, peak, unmeasured, reporter))
    config = derive.derive(section, *known, unmeasured).config
    _require_memory(config, size, stage.model)  # before anything of that size is tried
    if config.compile and not compile_for_training(stage.model, config, reporter.say):
        section, config = section.changed(compile=False), config.changed(compile=False)
    pace = None
    if timed:
        speed = _measure_speed(config, stage, precision, _LONGEST_MEASUREMENT * seconds)
        pace = derive.Pace(speed, start + seconds - time.perf_counter())
    derived = derive.derive(section, *known, pace)
    for line in derived.reasons:
        reporter.say("  " + line)
    if pace is not None and on_plan is not None:
        on_plan(derived.config, pace.tokens_per_second)
    return derived


def _chosen_forms(settings: TrainingConfig, precision: Precision, device: torch.device) -> str:
    """The machine in a line, and what follows from it."""
    compiled = "layers compiled" if settings.compile else "layers not compiled"
    muon = f", Muon in {precision.name}" * (settings.optimizer == "muon")
    return (
        f"{device_name(device)}, {torch.get_num_threads()} threads: matrix products in {precision.name} "
        f"({precision.reason}), weights in float32{muon}, {compiled}"
    )


def _time_limit(section: TrainingSection, derived: derive.Derived, start: float) -> TimeLimit | None:
    """What is left of the minutes that were asked for, none where the number of steps was."""
    if section.minutes is None or section.steps is not None:
        return None
    left = start + 60 * section.minutes - time.perf_counter()
    return TimeLimit(left, derived.least_steps, derived.most_steps)


def _compile_pays(
    config: TrainingConfig, size: ModelSize, peak: float, pace: derive.Pace | None, reporter: Reporter
) -> bool:
    """Whether the run is long enough to gain from compilation, and this machine can compile."""
    seconds = 3 * size.flops_per_token * config.tokens_per_step * config.steps / (0.25 * peak)
    if min(seconds, pace.seconds if pace else seconds) < _WORTH_COMPILING:
        return False
    if cpu.find_compiler() is None:
        reporter.say("no C++ compiler here, so layers are not compiled; with one (g++) training is faster")
        return False
    return True


def _measure_speed(
    config: TrainingConfig, stage: Stage, precision: Precision, most: float, steps: int = 6
) -> float:
    """Tokens a second of whole steps at learning rate 0, which change nothing; two before them are not counted.

    Where two steps took more than `most` seconds there are no more, and the second of them is the measurement.
    """
    disable_malloc_trim()  # as it is in training
    model = stage.model
    batches = stage.data.batches(config)
    optimizer, objective = OptimizerSet(model, config), stage.objective(precision.dtype)
    optimizer.set_learning_rate(0.0)
    model.train()
    times: list[float] = []
    while len(times) < 2 or (len(times) < 2 + steps and sum(times[1:]) < most):
        start = time.perf_counter()
        batch = {name: tensor.to(model.device) for name, tensor in batches.batch_at(len(times)).items()}
        loss, count, _ = objective(model, batch)
        (loss / max(1, count)).backward()
        forward = time.perf_counter() - start
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(forward * config.accumulation + time.perf_counter() - start - forward)
    counted = sorted(times[2:] or times[1:])
    return config.tokens_per_step / counted[len(counted) // 2]


def _check(settings: TrainingConfig, size: ModelSize, stage: Stage, run: Path, reporter: Reporter) -> None:
    """Everything that could go wrong later and can be known now."""
    config = stage.model.config
    limit, longest = getattr(config, "max_position_embeddings", None), stage.data.longest(settings)
    if limit is not None and longest > limit:
        raise ConfigError(f"{longest:,} tokens at a time are over this model's context of {limit:,} tokens")
    needed = _require_memory(settings, size, stage.model)
    on_disk = _trained(stage.model) * 4 * (1 + 3 * (settings.keep_last + 1) + 2)
    require_free_space(run, on_disk, "the run's checkpoints")
    tokens = settings.steps * settings.tokens_per_step
    often = "" if stage.data.tokens is None else f", {tokens / sum(stage.data.tokens.values()):.1f} epochs"
    reporter.say(
        f"{settings.steps:,} steps of {settings.tokens_per_step:,} tokens: {tokens:,} tokens{often}; "
        f"about {needed / 1e9:.1f} GB of memory, {on_disk / 1e9:.2f} GB of disk"
    )
    for line in stage.data.describe(settings, size):
        reporter.say(line)


def _require_memory(settings: TrainingConfig, size: ModelSize, model: PreTrainedModel) -> int:
    """Bytes that training needs, about; raises ConfigError where the device has less."""
    return derive.require_memory(size, settings, model.config, memory_bytes(model.device), _trained(model))


def _trained(model: PreTrainedModel) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _resolved(recipe: Recipe, name: str, settings: TrainingConfig) -> Recipe:
    """The recipe with every number of this run filled in, so that resuming derives nothing again."""
    section: TrainingSection = getattr(recipe, name)
    values: dict[str, Any] = {
        key: value for key, value in settings.model_dump().items() if key in type(section).model_fields
    }
    values["batch_size"] = settings.micro_batch
    values["threads"] = settings.threads or torch.get_num_threads()
    return recipe.changed(**{name: section.changed(**values)})
