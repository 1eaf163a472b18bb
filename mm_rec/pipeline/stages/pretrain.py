"""The kind `pretrain`: text → tokenizer → corpus → model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import Artifacts
from mm_rec.pipeline.sections import PretrainSection, TokenizerSection
from mm_rec.pipeline.training_kind import training_kind

if TYPE_CHECKING:
    from mm_rec.pipeline.training_job import TrainingContext, TrainingJob


def _prepare(section: PretrainSection, context: TrainingContext) -> TrainingJob:
    from mm_rec.pipeline.pretrain import prepare_pretraining  # it brings torch

    return prepare_pretraining(section, context)


def _connect(section: PretrainSection, made: Artifacts) -> PretrainSection:
    """Text of a cleaning stage and the tokenizer of another, where none is named; a model by the stage's name."""
    data, tokenizer, model = section.data, section.tokenizer, section.model
    corpus = made.latest("corpus")
    if corpus is not None and not data.sources and data.prepared is None:
        data = data.replace(sources=[corpus])
    trained = made.latest("tokenizer") if tokenizer.vocab_size is None else None
    tokenizer = tokenizer.replace(path=made.find(tokenizer.path, "tokenizer") or trained)
    model = model.replace(start_from=made.find(model.start_from, "model"))
    adapter = section.adapter
    if adapter is not None:
        adapter = adapter.replace(start_from=made.find(adapter.start_from, "adapter"))
    return section.replace(data=data, tokenizer=tokenizer, model=model, adapter=adapter)


def _require(section: PretrainSection, made: Collection[str]) -> None:
    """Raise UserError where there is no text, or an adapter without a model."""
    data = section.data
    if not data.sources and data.prepared is None and "corpus" not in made:
        raise ConfigError("no text to train on: name files or folders in data.sources")
    if section.adapter is not None and section.model.start_from is None:
        raise ConfigError("an adapter needs a model that it stands on: name one in model.start_from")


def _reuse(section: PretrainSection, run: Path) -> PretrainSection:
    """The same text from the shards that a run made of it, with the run's tokenizer."""
    from mm_rec.pipeline.pretrain_data import prepared_data

    if not (run / "data").is_dir():
        return section
    tokenizer = section.tokenizer.path or str(run / "tokenizer")
    data = prepared_data(section.data, run / "data")
    return section.replace(data=data, tokenizer=TokenizerSection(path=tokenizer))


KIND = training_kind(
    "pretrain",
    PretrainSection,
    _prepare,
    connect=_connect,
    require=_require,
    reuse=_reuse,
)
