"""Pre-training from a recipe: text → tokenizer → corpus → model, every stage checked before the next begins."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.config import dump_yaml
from mm_rec.data.corpus import Corpus
from mm_rec.data.mixing import MOST_EPOCHS
from mm_rec.errors import ConfigError, UserError
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.forward import compile_layers
from mm_rec.models.loading import find_model, load_model, save_model
from mm_rec.models.presets import Size, build, measure, preset
from mm_rec.pipeline import derive
from mm_rec.pipeline.recipe import Recipe
from mm_rec.pipeline.summary import write_summary
from mm_rec.pipeline.text import RunText, read_text
from mm_rec.runs.directory import RECIPE, write_lineage
from mm_rec.runs.files import atomic_path, remove, remove_leftovers, require_free_space, write_text
from mm_rec.runtime import (
    Precision,
    choose_device,
    choose_precision,
    machine,
    measure_peak,
    memory_bytes,
    seed_everything,
)
from mm_rec.tokenizers.loading import fingerprint, require_fit, vocabulary_size
from mm_rec.training.checkpoint import Checkpoint, Checkpoints
from mm_rec.training.config import TrainingConfig
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.loop import Reporter, Training
from mm_rec.training.objectives import next_token
from mm_rec.training.optim import OptimizerSet

_WORTH_COMPILING = 120  # seconds of training below which compilation (10 to 40 s) does not pay


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "finished", "early" or "stopped", and where it lies."""

    run: Path
    ended: str
    step: int


@dataclass(frozen=True, slots=True)
class _Begun:
    """A run that is checked and ready to train."""

    training: Training
    text: RunText
    size: Size


def pretrain(
    recipe: Recipe, run: Path, reporter: Reporter, on_event: Callable[[str, int], None] | None = None
) -> Outcome:
    """Run a recipe in a run folder, or go on where an earlier call of it was stopped or killed.

    Everything that can be checked is checked before the first step; what was finished before is used again.
    """
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    known = (run / RECIPE).is_file()
    if not known:
        write_text(run / RECIPE, dump_yaml(recipe))
    try:
        begun = _begin(recipe, run, reporter, on_event)
    except UserError:
        if (
            not known
        ):  # the same name can be given again, and nothing made for the mistake is taken for its answer
            for part in (RECIPE, "tokenizer", "data"):
                remove(run / part)
            if not any(run.iterdir()):
                run.rmdir()
        raise
    training = begun.training
    with StopRequest(reporter.say) as stop:
        ended = training.fit(stop)
    if ended != "stopped":
        with atomic_path(run / "final") as temporary:
            save_model(training.model, training.tokenizer, temporary)
    write_summary(run, recipe, training.model, begun.size, begun.text, training.config, training.state, ended)
    return Outcome(run, ended, training.state.step)


def _begin(
    recipe: Recipe, run: Path, reporter: Reporter, on_event: Callable[[str, int], None] | None
) -> _Begun:
    """Text, tokenizer, model and settings, checked; the training stands at its last checkpoint."""
    if recipe.pretrain.threads:
        torch.set_num_threads(recipe.pretrain.threads)
    device = choose_device(recipe.pretrain.device)
    if recipe.model.start_from is None:
        preset(recipe.model.size)  # a wrong name is said before the text is read
    text = read_text(recipe, run, reporter)
    checkpoint = Checkpoints(run / "checkpoints", 1).load_newest(reporter.say)
    seed_everything(recipe.seed)
    model, config = _model(recipe, text.tokenizer, checkpoint, device)
    size = measure(config)
    precision = choose_precision(recipe.pretrain.precision, device)
    peak = measure_peak(precision.dtype, device)
    reporter.say(
        f"{model.config.model_type} with {size.parameters:,} parameters; {derive.state_text(config, size)}"
    )
    reporter.say(f"matrix products in {precision.name}: {precision.reason}; weights in float32")
    settings = _settings(recipe, model, size, text, precision, peak, reporter)
    _check(settings, size, config, text, device, run, reporter)
    held_out = text.held_out(settings, run / "data")
    training = Training(
        model,
        text.tokenizer,
        text.batches(settings),
        next_token(precision.dtype),
        settings,
        run,
        reporter,
        validate=_validation(held_out, text, settings, precision),
        flops_per_token=size.flops_per_token,
        peak_flops=peak,
        on_event=on_event,
    )
    write_text(run / RECIPE, dump_yaml(_resolved(recipe, settings)))
    _note_lineage(recipe, run, text, held_out, device)
    if checkpoint is not None:
        training.resume(checkpoint)
        reporter.say(f"continuing {run} at step {training.state.step} of {settings.steps}")
    return _Begun(training, text, size)


def _model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint | None, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedConfig]:
    """The model to train: from a checkpoint, from the model to continue, or new."""
    if checkpoint is not None:
        model = load_model(checkpoint.model_folder)
    elif recipe.model.start_from is not None:
        model = load_model(recipe.model.start_from)
    else:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = preset(recipe.model.size).config(
            vocabulary_size(tokenizer), **{**ids, **recipe.model.changes}
        )
        model = build(config, recipe.seed)
    require_fit(tokenizer, model.config.vocab_size)
    return model.to(device), model.config  # type: ignore[arg-type]


def _settings(
    recipe: Recipe,
    model: PreTrainedModel,
    size: Size,
    text: RunText,
    precision: Precision,
    peak: float,
    reporter: Reporter,
) -> TrainingConfig:
    """The complete configuration, each derived number said once."""
    section = recipe.pretrain.changed(precision=precision.name)
    continued = recipe.model.start_from is not None
    known = (section, model.config, size, text.tokens, recipe.seed, continued)
    if section.compile is None:
        section = section.changed(
            compile=_compile_pays(derive.derive(*known, 1e12).config, size, peak, reporter)
        )
        known = (section, *known[1:])
    speed = None
    if section.minutes is not None and section.steps is None:
        speed = _measure_speed(derive.derive(*known, 1e12).config, model, text, precision)
    derived = derive.derive(*known, speed)
    for line in derived.reasons:
        reporter.say("  " + line)
    return derived.config


def _compile_pays(config: TrainingConfig, size: Size, peak: float, reporter: Reporter) -> bool:
    """Whether the run is long enough to gain from compilation, and this machine can compile."""
    seconds = 3 * size.flops_per_token * config.tokens_per_step * config.steps / (0.25 * peak)
    if seconds < _WORTH_COMPILING:
        return False
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        reporter.say("no C++ compiler here, so layers are not compiled; with one (g++) training is faster")
        return False
    return True


def _measure_speed(
    config: TrainingConfig, model: PreTrainedModel, text: RunText, precision: Precision
) -> float:
    """Tokens a second of whole steps at learning rate 0, which change nothing."""
    if config.compile:
        compile_layers(model)
    batches = text.batches(config.changed(accumulation=1))
    optimizer, objective = OptimizerSet(model, config), next_token(precision.dtype)
    optimizer.set_learning_rate(0.0)
    model.train()
    times = []
    for step in range(8):
        start = time.perf_counter()
        batch = {name: tensor.to(model.device) for name, tensor in batches.batch_at(step).items()}
        loss, count, _ = objective(model, batch)
        (loss / max(1, count)).backward()
        forward = time.perf_counter() - start
        optimizer.step()
        optimizer.zero_grad()
        times.append(forward * config.accumulation + time.perf_counter() - start - forward)
    return config.tokens_per_step / sorted(times[2:])[len(times[2:]) // 2]


def _check(
    settings: TrainingConfig,
    size: Size,
    config: PreTrainedConfig,
    text: RunText,
    device: torch.device,
    run: Path,
    reporter: Reporter,
) -> None:
    """Everything that could go wrong later and can be known now."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and settings.seq_len > longest:
        raise ConfigError(
            f"the sequence length {settings.seq_len} is over this model's context of {longest} tokens"
        )
    needed = derive.require_memory(size, settings, config, memory_bytes(device))
    on_disk = size.parameters * 4 * (1 + 3 * (settings.keep_last + 1) + 2)
    require_free_space(run, on_disk, "the run's checkpoints")
    tokens = settings.steps * settings.tokens_per_step
    epochs = 0.0 if text.tokens is None else tokens / sum(text.tokens.values())
    often = f", {epochs:.1f} epochs" if epochs else ""
    reporter.say(
        f"{settings.steps:,} steps of {settings.tokens_per_step:,} tokens: {tokens:,} tokens{often}; "
        f"about {needed / 1e9:.1f} GB of memory, {on_disk / 1e9:.2f} GB of disk"
    )
    for line in text.describe(settings):
        reporter.say(line)
    if epochs > MOST_EPOCHS:
        reporter.say(
            f"warning: the text is read {epochs:,.0f} times. Beyond about {MOST_EPOCHS} times, repeated text "
            "teaches much less than new text (Muennighoff et al. 2023). Fewer steps do as well, or more text better"
        )
    warning = derive.budget_warning(size, tokens)
    if warning is not None:
        reporter.say(warning)


def _resolved(recipe: Recipe, settings: TrainingConfig) -> Recipe:
    """The recipe with every number of this run filled in, so that resuming derives nothing again."""
    values: dict[str, Any] = {
        name: value
        for name, value in settings.model_dump().items()
        if name in type(recipe.pretrain).model_fields
    }
    values["batch_size"] = settings.micro_batch
    values["threads"] = settings.threads or torch.get_num_threads()
    return recipe.changed(pretrain=recipe.pretrain.changed(**values))


def _note_lineage(
    recipe: Recipe,
    run: Path,
    text: RunText,
    held_out: dict[str, Corpus],
    device: torch.device,
) -> None:
    inputs: dict[str, Any] = {**text.record(), "tokenizer": fingerprint(text.tokenizer)}
    if text.streams:
        inputs["validation_corpora"] = {name: corpus.fingerprint for name, corpus in held_out.items()}
    if recipe.model.start_from is not None:
        inputs["model"] = str(find_model(recipe.model.start_from))
    write_lineage(run, inputs, machine(device))


_FIGURES = ("loss", "bits_per_byte", "token_accuracy")


def _validation(
    held_out: dict[str, Corpus],
    text: RunText,
    settings: TrainingConfig,
    precision: Precision,
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Validation for the loop, on the same rows each time.

    Several sources are measured each (`loss/NAME`), and together weighted by their shares of the whole run's rows.
    """
    batches = max(1, math.ceil(settings.validation_rows / len(held_out) / settings.micro_batch))
    rows = settings.steps * settings.micro_batch * settings.accumulation
    shares = text.mixture(settings).shares(rows) if len(held_out) > 1 else {}

    def validate(model: PreTrainedModel) -> dict[str, float]:
        figures = {}
        for name, corpus in held_out.items():
            scores = evaluate_corpus(
                model,
                corpus,
                text.tokenizer,
                seq_len=max(2, min(settings.seq_len, corpus.tokens)),
                batch=settings.micro_batch,
                max_batches=batches,
                dtype=precision.dtype,
            )
            figures[name] = {figure: float(getattr(scores, figure)) for figure in _FIGURES}
        if len(figures) == 1:
            return next(iter(figures.values()))
        total = {
            figure: sum(shares[name] * one[figure] for name, one in figures.items()) for figure in _FIGURES
        }
        each = {f"{figure}/{name}": one[figure] for name, one in figures.items() for figure in _FIGURES}
        return total | each

    return validate
