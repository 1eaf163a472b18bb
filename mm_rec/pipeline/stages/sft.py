"""The kind `sft`: a model fine-tuned on conversations, rows or raw text."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import Artifacts
from mm_rec.pipeline.sections import FinetuneSection
from mm_rec.pipeline.training_kind import training_kind
from mm_rec.sources.documents import find_files
from mm_rec.sources.locations import ROW_KINDS

if TYPE_CHECKING:
    from mm_rec.pipeline.training_job import TrainingContext, TrainingJob


def prepare(section: FinetuneSection, context: TrainingContext) -> TrainingJob:
    """The training of a section of fine-tuning."""
    from mm_rec.pipeline.finetune import prepare_finetuning  # it brings torch

    return prepare_finetuning(section, context)


def connect(section: FinetuneSection, made: Artifacts) -> FinetuneSection:
    """Begin with the newest model where none is named; models and adapters by the names of stages."""
    adapter = section.adapter
    if adapter is not None:
        section = section.replace(
            adapter=adapter.replace(start_from=made.find(adapter.start_from, "adapter"))
        )
    return section.replace(start_from=made.find(section.start_from, "model") or made.latest("model"))


def require(section: FinetuneSection, made: Collection[str]) -> None:
    """Raise UserError where the section has no model to begin with, or names files that are not there."""
    if section.start_from is None and "model" not in made:
        raise ConfigError("no model to begin with: add start_from to it, a run or a model folder")
    find_files([*(source.path for source in section.data), *section.validation], kinds=(*ROW_KINDS, "txt"))
    if section.text:
        find_files(section.text)


KIND = training_kind(
    "sft",
    FinetuneSection,
    prepare,
    connect=connect,
    require=require,
)
