"""Pre-training from a recipe: text → tokenizer → corpus → model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.forward import require_packing_support
from mm_rec.models.loading import find_model, load_model
from mm_rec.models.presets import build, preset
from mm_rec.pipeline.recipe import Recipe
from mm_rec.pipeline.stage import Outcome, Stage, run_stage
from mm_rec.pipeline.text import RunText, read_text
from mm_rec.runtime import Precision
from mm_rec.tokenizers.loading import require_vocab_fits, vocabulary_size
from mm_rec.training.checkpoint import Checkpoint
from mm_rec.training.config import TrainingConfig
from mm_rec.training.objectives import next_token
from mm_rec.training.trainer import Reporter, Validation

_FIGURES = ("loss", "bits_per_byte", "token_accuracy")


def pretrain(
    recipe: Recipe, run: Path, reporter: Reporter, on_event: Callable[[str, int], None] | None = None
) -> Outcome:
    """Pre-train in a run folder, or go on where an earlier call of it was stopped or killed."""
    return run_stage(recipe, "pretrain", run, reporter, partial(prepare_pretraining, recipe), on_event)


def prepare_pretraining(
    recipe: Recipe, run: Path, reporter: Reporter, device: torch.device, checkpoint: Checkpoint | None
) -> Stage:
    """Text, tokenizer and model."""
    if recipe.model.start_from is None:
        preset(recipe.model.size)  # a wrong name is said before the text is read
    text = read_text(recipe, run, reporter)
    inputs: dict[str, Any] = dict(text.record())
    if recipe.model.start_from is not None:
        inputs["model"] = str(find_model(recipe.model.start_from))

    def validation(settings: TrainingConfig, precision: Precision) -> Validation:
        held_out = text.held_out(settings, run / "data")
        if text.streams:
            inputs["validation_corpora"] = {name: corpus.fingerprint for name, corpus in held_out.items()}
        return _validation(held_out, text, settings, precision)

    return Stage(
        model=_model(recipe, text.tokenizer, checkpoint, device),
        tokenizer=text.tokenizer,
        data=text,
        section=recipe.pretrain,
        objective=next_token,
        validation=validation,
        base=recipe.model.start_from or recipe.model.size,
        continued=recipe.model.start_from is not None,
        inputs=inputs,
    )


def _model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint | None, device: torch.device
) -> PreTrainedModel:
    """The model to train: from a checkpoint, from the model to continue, or new."""
    if checkpoint is not None:
        model = load_model(checkpoint.model_folder)
    elif recipe.model.start_from is not None:
        model = load_model(recipe.model.start_from)
        require_packing_support(model)
    else:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = preset(recipe.model.size).config(
            vocabulary_size(tokenizer), **{**ids, **recipe.model.changes}
        )
        model = build(config, recipe.seed)
    require_vocab_fits(tokenizer, model.config.vocab_size)
    return model.to(device)  # type: ignore[arg-type, no-any-return]


def _validation(
    held_out: dict[str, Corpus],
    text: RunText,
    settings: TrainingConfig,
    precision: Precision,
) -> Validation:
    """Validation for the loop, on the same rows each time.

    Several sources are measured each (`loss/NAME`), and together weighted by their shares of the whole run's rows.
    """
    most_rows = max(1, settings.validation_rows // len(held_out))
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
                max_rows=most_rows,
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
