"""Every training stage in a run folder: prepared, checked, trained, summed up; the same for every kind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mm_rec.errors import ConfigError, TrainingStopped
from mm_rec.models.adapters import adapters_of
from mm_rec.models.forward import require_constant_state
from mm_rec.models.loading import save_model
from mm_rec.models.memory_kernel import kernel_missing
from mm_rec.models.presets import ModelSize, measure
from mm_rec.models.traits import traits_of
from mm_rec.pipeline.kinds import StageContext, StageKind, StageResult
from mm_rec.pipeline.resolve import (
    Facts,
    Pace,
    Resolved,
    require_memory,
    resolve,
    resolve_batch,
    steps_without_pace,
)
from mm_rec.pipeline.summary import RunResult, write_summary
from mm_rec.pipeline.training_job import TrainingContext, TrainingJob
from mm_rec.runs.directory import write_lineage
from mm_rec.runs.files import atomic_path, require_free_space
from mm_rec.runs.metrics import Outcome
from mm_rec.runtime import (
    Precision,
    choose_device,
    choose_precision,
    device_name,
    disable_malloc_trim,
    empty_cache,
    free_memory_bytes,
    is_out_of_memory,
    machine,
    measure_peak_flops,
    peak_memory_bytes,
    seed_everything,
    synchronize,
    unused_gpu,
)
from mm_rec.tokenizers.loading import fingerprint
from mm_rec.training.checkpoint import Checkpoints
from mm_rec.training.compilation import compile_for_training, compiler_missing, try_pass
from mm_rec.training.curriculum import require_possible
from mm_rec.training.interfaces import Reporter
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.micro_step import micro_step
from mm_rec.training.objectives import Objective, next_token, segmented_next_token, with_embedding_noise
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import (
    ResolvedTrainSection,
    TrainSection,
    require_resolved,
    tokens_per_step,
)
from mm_rec.training.step import NonFiniteError, training_step
from mm_rec.training.time_limit import TimeLimit
from mm_rec.training.trainer import Trainer

_WORTH_COMPILING = 120  # seconds of training below which compilation (10 to 40 s) does not pay
_LONGEST_MEASUREMENT = 0.1  # of the time asked for
_SPARE = 0.15  # of a GPU's memory, when batches are sized


def _objective(job: TrainingJob, dtype: torch.dtype) -> Objective:
    """The job's objective with matrix products in a dtype, and with noise on the embeddings where asked."""
    objective, alpha = job.objective(dtype), job.section.neftune_alpha
    if (segment := job.section.segment_len) is not None:
        if job.objective is not next_token or alpha:
            what = "rows with noise on their embeddings" if alpha else "rows that go on from one another"
            raise ConfigError(f"{what} are not read in segments; leave --segment-len out")
        objective = segmented_next_token(job.model, dtype, segment)
    if job.section.state_passing:
        if job.objective is not next_token:
            raise ConfigError(
                "rows that go on from one another begin on no other state; leave --state-passing out"
            )
        require_constant_state(job.model)
    return with_embedding_noise(objective, alpha) if alpha else objective


def run_training(kind: StageKind, section: TrainSection, context: StageContext) -> StageResult:
    """Train in the run's folder, or go on where an earlier call was stopped or killed.

    Everything that can be checked is checked before the first step; what was finished before is used again.
    """
    job, trainer, size = _begin(kind, section, context)
    with StopRequest(context.reporter.say) as stop:
        outcome = trainer.fit(stop)
    run, adapter = context.run, adapters_of(trainer.model) is not None
    if outcome != Outcome.STOPPED:
        _save_final(trainer, run)
    write_summary(_result(job, trainer, size, outcome, run))
    made = {"adapter" if adapter else "model": run} if outcome != Outcome.STOPPED else {}
    return StageResult(outcome, trainer.state.step, made)


def _result(job: TrainingJob, trainer: Trainer, size: ModelSize, outcome: Outcome, run: Path) -> RunResult:
    section, tokens = trainer.section, job.data.tokens
    read = trainer.state.step * tokens_per_step(section)
    return RunResult(
        run=run,
        base=job.base,
        model=trainer.model,
        size=size,
        card_lines=job.data.card_lines(section),
        state=trainer.state,
        outcome=outcome,
        rows_per_step=section.batch_size * section.accumulation,
        best=trainer.best,
        metrics=list(trainer.metrics.values()),
        epochs=None if tokens is None else read / sum(tokens.values()),
        forgetting=job.forgetting(),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a dry run: its settings, seconds of a step, and the most memory in bytes, where known."""

    job: TrainingJob
    settings: ResolvedTrainSection
    seconds_per_step: float
    peak_bytes: int | None


def measure_training(kind: StageKind, section: TrainSection, context: StageContext) -> Measured:
    """Prepare and check a stage as `run_training` does, and measure three steps that change nothing."""
    job, trainer, _ = _begin(kind, section, context)
    settings = trainer.section
    precision = choose_precision(settings.precision, job.model.device)
    speed = _measure_speed(settings, job, precision, float("inf"), steps=3)
    return Measured(job, settings, tokens_per_step(settings) / speed, peak_memory_bytes(job.model.device))


def _save_final(trainer: Trainer, run: Path) -> None:
    """Write the model to `final/`; an adapter lies in the run's own folder, with all that tells of it."""
    if adapters_of(trainer.model) is not None:
        save_model(trainer.model, trainer.tokenizer, run)
    else:
        with atomic_path(run / "final") as temporary:
            save_model(trainer.model, trainer.tokenizer, temporary)


def _begin(
    kind: StageKind, section: TrainSection, context: StageContext
) -> tuple[TrainingJob, Trainer, ModelSize]:
    """Data, model and settings, checked; the trainer stands at its last checkpoint."""
    assert kind.prepare is not None
    run, reporter = context.run, context.reporter
    given_seed, seed = section.seed, context.seed if section.seed is None else section.seed
    section = section.replace(seed=seed)
    if section.threads:
        torch.set_num_threads(section.threads)
    device = choose_device(section.device)
    if device.type == "cpu" and section.device == "auto" and (why := unused_gpu()):
        reporter.say(f"note: {why}")
    checkpoint = Checkpoints(run / "checkpoints", 1).load_newest(reporter.say)
    seed_everything(seed)
    job = kind.prepare(section, TrainingContext(run, reporter, device, checkpoint, seed))
    start = time.perf_counter()
    model = job.model
    size = measure(model.config)
    precision = choose_precision(section.precision, device)
    peak = measure_peak_flops(precision.dtype, device)
    reporter.say(
        f"{model.config.model_type} with {size.parameters:,} parameters; {traits_of(model.config).state_text(size)}"
    )
    if adapters_of(model) is not None:
        reporter.say(f"{_trained(model):,} parameters are trained, in an adapter; the model stays as it is")
    resolved = _resolve(job, size, precision, peak, context, start)
    settings = require_resolved(resolved.section)
    reporter.say(_chosen_forms(settings, precision, device))
    _check(settings, size, job, run, reporter)
    require_possible(settings)
    trainer = Trainer(
        model,
        job.tokenizer,
        OptimizerSet(model, settings),
        job.data.batches(settings),
        _objective(job, precision.dtype),
        settings,
        run,
        reporter,
        metrics=job.metrics,
        best=job.best,
        validate=job.validation(settings, precision),
        flops_per_token=size.flops_per_token,
        peak_flops=peak,
        on_event=context.on_event,
        time_limit=_time_limit(resolved, start),
        scaler=LossScaler.for_dtype(precision.dtype),
    )
    threads = settings.threads or torch.get_num_threads()
    # A seed that is the recipe's stays there.
    context.keep(resolved.section.replace(threads=threads, seed=given_seed), resolved.reasons)
    write_lineage(run, {**job.inputs, "tokenizer": fingerprint(job.tokenizer)}, machine(device))
    if checkpoint is not None:
        trainer.resume(checkpoint)
        reporter.say(f"continuing {run} at step {trainer.state.step} of {settings.steps}")
    return job, trainer, size


def _resolve(
    job: TrainingJob, size: ModelSize, precision: Precision, peak: float, context: StageContext, start: float
) -> Resolved[TrainSection]:
    """The complete settings, each derived number said once; `start` is when the data had been read."""
    reporter = context.reporter
    section = job.section.replace(precision=precision.name)
    facts = Facts(job.model.config, size, job.data.tokens, job.continued)
    batch = resolve_batch(section, facts)
    if job.model.device.type != "cpu" and section.batch_size is None and section.accumulation is None:
        batch = _largest_batch(batch, job.model)
    _require_memory(batch.section, size, job.model)  # before anything of that size is tried
    if why := kernel_missing(job.model):
        reporter.say(f"memory layers are computed by torch, which is slower: {why}")
    compiled = batch.section.compile
    if compiled is None:
        compiled = _compile_pays(batch, facts, peak, job, precision, reporter)
    resolved = resolve(_with(batch, compile=compiled), facts, None)
    if compiled and not compile_for_training(job.model, require_resolved(resolved.section), reporter.say):
        compiled = False
    pace = None
    if section.minutes is not None and section.steps is None:
        seconds = 60 * section.minutes
        settings = require_resolved(resolved.section.replace(compile=compiled))
        speed = _measure_speed(settings, job, precision, _LONGEST_MEASUREMENT * seconds)
        pace = Pace(speed, start + seconds - time.perf_counter())
    resolved = resolve(_with(batch, compile=compiled), facts, pace)
    for line in resolved.lines():
        reporter.say("  " + line)
    if pace is not None and context.on_plan is not None:
        context.on_plan(require_resolved(resolved.section), pace.tokens_per_second)
    return resolved


def _largest_batch(batch: Resolved[TrainSection], model: PreTrainedModel) -> Resolved[TrainSection]:
    """As many rows of a step at a time as fit into a GPU's memory, found by trying; a step reads as many as before."""
    section, device = batch.section, model.device
    assert section.batch_size and section.accumulation
    if section.gradient_checkpointing:
        model.activation_checkpointing_enable()
    reasons = {**batch.reasons, "batch_size": "rows at a time, as many as fit into the device's memory"}
    rows, accumulation = section.batch_size * section.accumulation, 1
    # What is held meanwhile: the optimizer's two numbers a parameter, and a part for validation and what lies between.
    spare = torch.empty(
        8 * _trained(model) + int(_SPARE * free_memory_bytes(device)), dtype=torch.uint8, device=device
    )
    while True:
        sized = Resolved(section.replace(batch_size=rows, accumulation=accumulation), reasons)
        try:
            try_pass(model, sized.section)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if rows % 2:
                raise ConfigError(
                    f"{device_name(device)} has too little memory for {rows} of this model's rows of "
                    f"{section.seq_len:,} tokens. Choose a smaller --size or --seq-len, or --gradient-checkpointing"
                ) from error
            rows, accumulation = rows // 2, accumulation * 2
        else:
            del spare
            return sized
        finally:
            model.zero_grad(set_to_none=True)
            empty_cache(device)


def _with(resolved: Resolved[TrainSection], **values: Any) -> Resolved[TrainSection]:
    return Resolved(resolved.section.replace(**values), resolved.reasons)


def _chosen_forms(settings: TrainSection, precision: Precision, device: torch.device) -> str:
    """The machine in a line, and what follows from it."""
    compiled = "layers compiled" if settings.compile else "layers not compiled"
    muon = f", Muon in {precision.name}" * (settings.optimizer == "muon")
    return (
        f"{device_name(device)}, {torch.get_num_threads()} threads: matrix products in {precision.name} "
        f"({precision.reason}), weights in float32{muon}, {compiled}"
    )


def _time_limit(resolved: Resolved[TrainSection], start: float) -> TimeLimit | None:
    """Return what is left of the minutes that were asked for; None where a number of steps was."""
    section = resolved.section
    if section.minutes is None or "steps" not in resolved.reasons:
        return None
    left = start + 60 * section.minutes - time.perf_counter()
    return TimeLimit(left, resolved.least_steps, resolved.most_steps)


def _compile_pays(
    batch: Resolved[TrainSection], facts: Facts, peak: float, job: TrainingJob, precision: Precision,
    reporter: Reporter,
) -> bool:  # fmt: skip
    """True where the run is long enough to gain from compilation, and this machine can compile."""
    section, device = batch.section, job.model.device
    assert section.batch_size and section.accumulation and section.seq_len
    per_step = section.batch_size * section.accumulation * section.seq_len
    steps = steps_without_pace(section, facts, per_step)
    limits = [] if section.minutes is None or section.steps is not None else [60 * section.minutes]
    if steps is not None and device.type == "cpu":
        limits.append(3 * facts.size.flops_per_token * per_step * steps / (0.25 * peak))
    elif steps is not None:
        # How far below its peak a GPU stays depends on the model's size more than on anything.
        settings = require_resolved(resolve(_with(batch, compile=False), facts, None).section)
        limits.append(per_step * steps / _measure_speed(settings, job, precision, _WORTH_COMPILING, steps=3))
    if min(limits) < _WORTH_COMPILING:
        return False
    if missing := compiler_missing(device):
        reporter.say(f"{missing}, so layers are not compiled; with it training is faster")
        return False
    return True


def _measure_speed(
    settings: ResolvedTrainSection, job: TrainingJob, precision: Precision, most: float, steps: int = 6
) -> float:
    """Tokens a second of steps at learning rate 0, which change nothing; two before them are not counted.

    A step reads one batch, and its time is that of a whole one. Where two steps took more than `most` seconds there are
    no more, and the second of them is the measurement.
    """
    disable_malloc_trim()  # as it is in training
    model, batches = job.model, job.data.batches(settings)
    one_batch = require_resolved(settings.replace(accumulation=1))
    scaler = LossScaler.for_dtype(precision.dtype)
    optimizer = OptimizerSet(model, settings)
    run = micro_step(model, _objective(job, precision.dtype), scaler, lambda text: None)
    times: list[float] = []
    read_at = 0.0

    def note_time(moment: str, step: int) -> None:
        nonlocal read_at
        synchronize(model.device)
        read_at = time.perf_counter()

    with torch.random.fork_rng():
        while len(times) < 2 or (len(times) < 2 + steps and sum(times[1:]) < most):
            start = time.perf_counter()
            try:
                training_step(model, batches, run, optimizer, one_batch, len(times), 0.0, note_time, scaler)
            except NonFiniteError as error:
                raise TrainingStopped(
                    f"before the first step: {error}, so nothing can be learnt from here. Try --precision float32, "
                    "or another model to begin with"
                ) from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise TrainingStopped(
                    f"before the first step: the device's memory is full at {settings.batch_size} rows of "
                    f"{settings.seq_len:,} tokens. Choose a smaller --batch-size, or --gradient-checkpointing"
                ) from error
            synchronize(model.device)
            times.append((read_at - start) * settings.accumulation + time.perf_counter() - read_at)
    counted = sorted(times[2:] or times[1:])
    return tokens_per_step(settings) / counted[len(counted) // 2]


def _check(
    settings: ResolvedTrainSection, size: ModelSize, job: TrainingJob, run: Path, reporter: Reporter
) -> None:
    """Everything that could go wrong later and can be known now."""
    config = job.model.config
    limit, longest = traits_of(config).context_limit, job.data.longest(settings)
    if limit is not None and longest > limit:
        raise ConfigError(f"{longest:,} tokens at a time are over this model's context of {limit:,} tokens")
    needed = _require_memory(settings, size, job.model)
    on_disk = _trained(job.model) * 4 * (1 + 3 * (settings.keep_last + 1) + 2)
    require_free_space(run, on_disk, "the run's checkpoints")
    per_step = tokens_per_step(settings)
    tokens = settings.steps * per_step
    often = "" if job.data.tokens is None else f", {tokens / sum(job.data.tokens.values()):.1f} epochs"
    reporter.say(
        f"{settings.steps:,} steps of {per_step:,} tokens: {tokens:,} tokens{often}; "
        f"about {needed / 1e9:.1f} GB of memory, {on_disk / 1e9:.2f} GB of disk"
    )
    for line in job.data.describe(settings, size):
        reporter.say(line)


def _require_memory(section: TrainSection, size: ModelSize, model: PreTrainedModel) -> int:
    """Bytes that training needs, about; raises ConfigError where the device has less."""
    return require_memory(size, section, model.config, free_memory_bytes(model.device), _trained(model))


def _trained(model: PreTrainedModel) -> int:
    """Count the parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
