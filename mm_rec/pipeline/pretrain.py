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
from mm_rec.data.batches import PackedBatches
from mm_rec.data.prepare import PreparedCorpus, SourcePlan, open_prepared, plan_sources, prepare_corpus
from mm_rec.errors import ConfigError, UserError, VocabularyTooLarge
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.forward import compile_layers
from mm_rec.models.loading import find_model, load_model, save_model
from mm_rec.models.presets import Size, build, measure, preset
from mm_rec.pipeline import derive
from mm_rec.pipeline.recipe import Recipe
from mm_rec.pipeline.summary import write_summary
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
from mm_rec.tokenizers.loading import fingerprint, load_tokenizer, require_fit, vocabulary_size
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer
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
    prepared: PreparedCorpus
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
        raise
    training = begun.training
    with StopRequest(reporter.say) as stop:
        ended = training.fit(stop)
    if ended != "stopped":
        with atomic_path(run / "final") as temporary:
            save_model(training.model, training.tokenizer, temporary)
    write_summary(run, recipe, training.model, begun.size, begun.prepared, training.state, ended)
    return Outcome(run, ended, training.state.step)


def _begin(
    recipe: Recipe, run: Path, reporter: Reporter, on_event: Callable[[str, int], None] | None
) -> _Begun:
    """Text, tokenizer, model and settings, checked; the training stands at its last checkpoint."""
    if recipe.pretrain.threads:
        torch.set_num_threads(recipe.pretrain.threads)
    device = choose_device(recipe.pretrain.device)
    prepared, tokenizer = _text_and_tokenizer(recipe, run, reporter)
    checkpoint = Checkpoints(run / "checkpoints", 1).load_newest(reporter.say)
    seed_everything(recipe.seed)
    model, config = _model(recipe, tokenizer, checkpoint, device)
    size = measure(config)
    precision = choose_precision(recipe.pretrain.precision, device)
    peak = measure_peak(precision.dtype, device)
    reporter.say(
        f"{model.config.model_type} with {size.parameters:,} parameters; {derive.state_text(config, size)}"
    )
    reporter.say(f"matrix products in {precision.name}: {precision.reason}; weights in float32")
    settings = _settings(recipe, model, size, prepared, precision, peak, reporter)
    _check(settings, size, config, prepared, device, run, reporter)
    training = Training(
        model,
        tokenizer,
        PackedBatches(
            prepared.train, settings.seq_len, settings.micro_batch, settings.accumulation, settings.seed
        ),
        next_token(precision.dtype),
        settings,
        run,
        reporter,
        validate=_validation(prepared, tokenizer, settings, precision),
        flops_per_token=size.flops_per_token,
        peak_flops=peak,
        on_event=on_event,
    )
    write_text(run / RECIPE, dump_yaml(_resolved(recipe, settings)))
    _note_lineage(recipe, run, prepared, tokenizer, device)
    if checkpoint is not None:
        training.resume(checkpoint)
        reporter.say(f"continuing {run} at step {training.state.step} of {settings.steps}")
    return _Begun(training, prepared, size)


def _text_and_tokenizer(
    recipe: Recipe, run: Path, reporter: Reporter
) -> tuple[PreparedCorpus, PreTrainedTokenizerBase]:
    """The two corpora and their tokenizer: made, or found finished."""
    folder = run / "data" if recipe.data.prepared is None else Path(recipe.data.prepared)
    source = _tokenizer_source(recipe)
    own = run / "tokenizer"
    if recipe.data.prepared is not None and source is None:
        raise ConfigError("data that is prepared needs its tokenizer too: give --tokenizer DIR")
    done = (folder / "split.json").is_file() and (source is not None or own.is_dir())
    if done or recipe.data.prepared is not None:
        tokenizer = load_tokenizer(source or own)
        prepared = open_prepared(folder)
    else:
        if not recipe.data.sources:
            raise ConfigError(
                "no text to train on: name files or folders, for example `mmrec pretrain books/`"
            )
        plan = plan_sources(
            recipe.data.sources,
            text_field=recipe.data.text_field,
            documents=recipe.data.documents,
            validation_fraction=recipe.data.validation_fraction,
            validation_sources=recipe.data.validation,
        )
        for line in plan.describe():
            reporter.say(line)
        tokenizer = load_tokenizer(source) if source is not None else _trained(recipe, plan, own, reporter)
        prepared = prepare_corpus(plan, tokenizer, folder)
    for corpus in (prepared.train, prepared.validation):
        corpus.require_tokenizer(fingerprint(tokenizer))
    reporter.say(
        f"{prepared.train.tokens:,} tokens to train on, {prepared.validation.tokens:,} to validate, "
        f"{prepared.train.text_bytes / prepared.train.tokens:.2f} bytes a token"
    )
    return prepared, tokenizer


def _tokenizer_source(recipe: Recipe) -> Path | None:
    """Where an existing tokenizer lies: named, or that of the model to continue."""
    if recipe.tokenizer.path is not None:
        return Path(recipe.tokenizer.path)
    return None if recipe.model.start_from is None else find_model(recipe.model.start_from)


def _trained(recipe: Recipe, plan: SourcePlan, out: Path, reporter: Reporter) -> PreTrainedTokenizerBase:
    """Train the run's tokenizer on its training text. A vocabulary that was not asked for shrinks to fit the text."""
    if not out.is_dir():
        config = TokenizerConfig(
            vocab_size=recipe.tokenizer.vocab_size or preset(recipe.model.size).vocab_size,
            threads=recipe.pretrain.threads,
            seed=recipe.seed,
        )
        try:
            report = train_tokenizer(lambda: plan.texts("train"), config, out)
        except VocabularyTooLarge as error:
            if recipe.tokenizer.vocab_size is not None:
                raise
            # The preset's size was nobody's wish: the largest that the text can fill does as well.
            report = train_tokenizer(
                lambda: plan.texts("train"), config.changed(vocab_size=error.largest), out
            )
        reporter.say(
            f"tokenizer: {report.vocab_size:,} pieces; {report.proof.lines:,} lines encoded as SentencePiece does, "
            "0 differ, all decoded exactly"
        )
    return load_tokenizer(out)


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
    prepared: PreparedCorpus,
    precision: Precision,
    peak: float,
    reporter: Reporter,
) -> TrainingConfig:
    """The complete configuration, each derived number said once."""
    section = recipe.pretrain.changed(precision=precision.name)
    continued = recipe.model.start_from is not None
    known = (section, model.config, size, prepared.train, recipe.seed, continued)
    if section.compile is None:
        section = section.changed(
            compile=_compile_pays(derive.derive(*known, 1e12).config, size, peak, reporter)
        )
        known = (section, *known[1:])
    speed = None
    if section.minutes is not None and section.steps is None:
        speed = _measure_speed(derive.derive(*known, 1e12).config, model, prepared, precision)
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
    config: TrainingConfig, model: PreTrainedModel, prepared: PreparedCorpus, precision: Precision
) -> float:
    """Tokens a second of whole steps at learning rate 0, which change nothing."""
    if config.compile:
        compile_layers(model)
    batches = PackedBatches(prepared.train, config.seq_len, config.micro_batch, 1, config.seed)
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
    prepared: PreparedCorpus,
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
    reporter.say(
        f"{settings.steps:,} steps of {settings.tokens_per_step:,} tokens: {tokens:,} tokens, "
        f"{tokens / prepared.train.tokens:.1f} epochs; about {needed / 1e9:.1f} GB of memory, "
        f"{on_disk / 1e9:.2f} GB of disk"
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
    prepared: PreparedCorpus,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> None:
    inputs: dict[str, Any] = {
        "train_corpus": prepared.train.fingerprint,
        "validation_corpus": prepared.validation.fingerprint,
        "tokenizer": fingerprint(tokenizer),
        "split": prepared.record,
    }
    if recipe.model.start_from is not None:
        inputs["model"] = str(find_model(recipe.model.start_from))
    write_lineage(run, inputs, machine(device))


def _validation(
    prepared: PreparedCorpus,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingConfig,
    precision: Precision,
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Validation for the loop: the same rows each time."""
    corpus = prepared.validation
    seq_len = max(2, min(settings.seq_len, corpus.tokens))
    batches = max(1, math.ceil(settings.validation_rows / settings.micro_batch))

    def validate(model: PreTrainedModel) -> dict[str, float]:
        scores = evaluate_corpus(
            model,
            corpus,
            tokenizer,
            seq_len=seq_len,
            batch=settings.micro_batch,
            max_batches=batches,
            dtype=precision.dtype,
        )
        return {
            "loss": scores.loss,
            "bits_per_byte": scores.bits_per_byte,
            "token_accuracy": scores.token_accuracy,
        }

    return validate
