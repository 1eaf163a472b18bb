"""The recipe: one YAML file from raw text to a trained model, a section for each stage."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mm_rec.config import Section, apply_overrides, load_yaml
from mm_rec.data.chunking import ChunkingSection
from mm_rec.data.conversations.preflight import TooLong
from mm_rec.data.conversations.rendering import TrainOn
from mm_rec.data.mixture import DataSource, MixtureStage
from mm_rec.models.lora import LoraConfig
from mm_rec.runtime import PrecisionName
from mm_rec.sources.formats import DocumentsRule
from mm_rec.training.config import Optimizer, Schedule

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


class DataSection(Section):
    """Which text, how it is cut into documents and split, and how several sources are mixed."""

    sources: list[DataSource] = Field(default_factory=list)
    temperature: float = Field(default=1.0, ge=1)
    stages: list[MixtureStage] = Field(default_factory=list)
    streaming: bool = False
    shuffle_rows: int = Field(default=1024, ge=1)
    text_field: str = "text"
    documents: DocumentsRule | None = None
    validation: list[str] = Field(default_factory=list)
    validation_fraction: float = Field(default=0.02, gt=0, lt=1)
    benchmarks: list[str] = Field(default_factory=list)  # evaluation files that training text must not hold
    contamination: Literal["refuse", "warn", "off"] = "refuse"
    parse_specials: bool = (
        False  # special tokens written out in the text are such: it was rendered by a chat layout
    )
    prepared: str | None = None  # a folder of `mmrec data tokenize`, instead of sources


class TokenizerSection(Section):
    """An existing tokenizer, or the size of one to train on the training text."""

    path: str | None = None
    vocab_size: int | None = Field(default=None, ge=1)


class ModelSection(Section):
    """A preset, with changes to its configuration; or a model to continue."""

    size: str = "tiny"
    start_from: str | None = None
    changes: dict[str, Any] = Field(default_factory=dict)


def _count(value: Any) -> Any:
    """A number of tokens from text like 50M; anything else is left to the field."""
    match = re.fullmatch(r"([0-9_.]+) ?([kKmMbB])", value) if isinstance(value, str) else None
    number = math.nan if match is None else float(match[1]) * _UNITS[match[2].lower()]
    return round(number) if math.isfinite(number) else value


class TrainingSection(Section):
    """Settings of a training; what is None follows from size, data and machine, is printed and stored."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    tokens: Annotated[int | None, BeforeValidator(_count)] = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    least_tokens: Annotated[int | None, BeforeValidator(_count)] = Field(default=None, ge=1)  # of minutes
    seq_len: int | None = Field(default=None, ge=2)
    batch_size: int | None = Field(default=None, ge=1)
    accumulation: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    optimizer: Optimizer | None = None
    schedule: Schedule = "cosine"
    warmup_steps: int | None = Field(default=None, ge=0)
    decay_fraction: float = Field(default=0.3, ge=0, le=1)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)
    device: str = "auto"
    precision: PrecisionName = "auto"
    compile: bool | None = None
    gradient_checkpointing: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)
    validate_every: int | None = Field(default=None, ge=1)
    validation_rows: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    stop_at_loss: float | None = Field(default=None, gt=0)  # mean training loss of three steps
    stop_at_epoch: int | None = Field(default=None, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    checkpoint_minutes: float = Field(default=15, gt=0)
    keep_last: int = Field(default=2, ge=1)
    save_every: int | None = Field(default=None, ge=1)  # snapshots every so many steps, kept for good
    save_below_loss: float | None = Field(default=None, gt=0)  # … and when the loss falls below this,
    save_loss_step: float = Field(default=0.1, gt=0)  # and then by this much again, or
    save_loss_ratio: float | None = Field(default=None, gt=0, lt=1)  # by this share of it
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = False


class PretrainSection(TrainingSection):
    """Settings of pre-training."""


class ChatSource(DataSource):
    """Conversations of a path: their format where it is not told by their fields, and how their fields are named."""

    format: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unnamed(cls, value: Any) -> Any:
        return {"path": value, "name": "conversations"} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        return whole(self)


class SftSection(TrainingSection):
    """Settings of fine-tuning on conversations: instructions or chat."""

    start_from: str | None = None  # a model or run; in `mmrec run`, the stage before
    data: list[ChatSource] = Field(default_factory=list)
    validation: list[str] = Field(default_factory=list)
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    fix: bool = False  # mend rows, or leave them out, instead of refusing them
    template: Literal["auto", "default", "chatml", "llama3"] = (
        "auto"  # auto: the model's own, or else the default
    )
    train_on: TrainOn = "all"
    max_length: int | None = Field(default=None, ge=2)  # tokens of a conversation
    too_long: TooLong = "refuse"
    text: list[str] = Field(
        default_factory=list
    )  # against forgetting; where it is empty, the text of the base's run
    text_share: float = Field(default=0.0, ge=0, lt=1)
    samples: int = Field(default=3, ge=0)  # answers that are shown at each validation


class LoraSection(LoraConfig, SftSection):
    """Settings of an adapter: what is trained, on conversations, rows by a prompt format, or raw text."""

    start_adapter: str | None = None  # an adapter to go on with, instead of a new one
    prompt_format: str | None = None  # of JSON rows that are no conversations: a name or file
    text_slices: ChunkingSection = ChunkingSection()
    lora_plus: float = Field(default=1.0, gt=0)  # times the rate, for the second matrices
    neftune_alpha: float = Field(default=0.0, ge=0)
    optimizer: Optimizer | None = "adamw"
    learning_rate: float | None = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    save_below_loss: float | None = Field(default=1.8, gt=0)
    log_every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.lora_plus != 1 and self.optimizer == "muon":
            raise ValueError(
                "lora_plus is a matter of AdamW: muon gives all matrices one rate. Choose one of the two"
            )
        return self


class Recipe(Section):
    """A whole run."""

    name: str = "pretrain"
    seed: int = Field(default=42, ge=0)
    data: DataSection = DataSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    pretrain: PretrainSection = PretrainSection()
    instruct: SftSection | None = None
    sft: SftSection | None = None
    lora: LoraSection | None = None


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, with `section.key=value` overrides; raises ConfigError for what it cannot mean."""
    return Recipe.read(apply_overrides(load_yaml(path), overrides or []), where=str(path))
