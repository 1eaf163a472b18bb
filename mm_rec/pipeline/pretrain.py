"""Pre-training: text → tokenizer → corpus → model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.errors import ConfigError
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.adapters import Adapters
from mm_rec.models.forward import require_packing_support
from mm_rec.models.loading import find_model, load_model
from mm_rec.models.presets import build, preset
from mm_rec.pipeline.adapter import attach_adapter
from mm_rec.pipeline.pretrain_data import PretrainData, read_text
from mm_rec.pipeline.sections import PretrainSection
from mm_rec.pipeline.training_job import TrainingContext, TrainingJob
from mm_rec.runtime import Precision
from mm_rec.tokenizers.loading import require_vocab_fits, vocabulary_size
from mm_rec.training.interfaces import Validation
from mm_rec.training.objectives import next_token
from mm_rec.training.section import ResolvedTrainSection

_FIGURES = ("loss", "bits_per_byte", "token_accuracy")


def prepare_pretraining(section: PretrainSection, context: TrainingContext) -> TrainingJob:
    """Text, tokenizer and model."""
    if section.model.start_from is None:
        preset(section.model.size)  # a wrong name is said before the text is read
    run = context.run
    text = read_text(section, run, context.reporter)
    inputs: dict[str, Any] = dict(text.record())
    if section.model.start_from is not None:
        inputs["model"] = str(find_model(section.model.start_from))

    def validation(settings: ResolvedTrainSection, precision: Precision) -> Validation:
        held_out = text.held_out(settings, run / "data")
        if text.streams:
            inputs["validation_corpora"] = {name: corpus.fingerprint for name, corpus in held_out.items()}
        return _validation(held_out, text, settings, precision)

    return TrainingJob(
        model=_model(section, text.tokenizer, context),
        tokenizer=text.tokenizer,
        data=text,
        section=section,
        objective=next_token,
        validation=validation,
        base=section.model.start_from or section.model.size,
        continued=section.model.start_from is not None,
        inputs=inputs,
    )


def _model(
    section: PretrainSection, tokenizer: PreTrainedTokenizerBase, context: TrainingContext
) -> PreTrainedModel:
    """The model to train: from a checkpoint, from the model to continue, or new; perhaps with an adapter on it."""
    start_from, checkpoint = section.model.start_from, context.checkpoint
    if section.adapter is not None:
        if start_from is None:
            raise ConfigError("an adapter needs a model that it stands on: name one with --from")
        model = load_model(start_from)
        require_packing_support(model)
        attach_adapter(Adapters(model, start_from), section, context)
    elif checkpoint is not None:
        model = load_model(checkpoint.model_folder)
    elif start_from is not None:
        model = load_model(start_from)
        require_packing_support(model)
    else:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        changes = {**ids, **section.model.changes}
        config = preset(section.model.size).config(vocabulary_size(tokenizer), **changes)
        model = build(config, context.seed)
    require_vocab_fits(tokenizer, model.config.vocab_size)
    return model.to(context.device)  # type: ignore[arg-type, no-any-return]


def _validation(
    held_out: dict[str, Corpus],
    text: PretrainData,
    settings: ResolvedTrainSection,
    precision: Precision,
) -> Validation:
    """Validation for the loop, on the same rows each time.

    Several sources are measured each (`loss/NAME`), and together weighted by their shares of the whole run's rows.
    """
    most_rows = max(1, settings.validation_rows // len(held_out))
    rows = settings.steps * settings.batch_size * settings.accumulation
    shares = text.mixture(settings).shares(rows) if len(held_out) > 1 else {}

    def validate(model: PreTrainedModel) -> dict[str, float]:
        figures = {}
        for name, corpus in held_out.items():
            scores = evaluate_corpus(
                model,
                corpus,
                text.tokenizer,
                seq_len=max(2, min(settings.seq_len, corpus.tokens)),
                batch=settings.batch_size,
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
