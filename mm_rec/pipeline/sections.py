"""Settings of the training kinds: pre-training, fine-tuning of a whole model, and of an adapter on it."""

from __future__ import annotations

from typing import Any, Literal

from mm_rec.config import Section, setting
from mm_rec.data.sections import Chunking, DataSection, ExampleSource, TooLong, TrainOn
from mm_rec.models.sections import MODEL_PANEL, ModelSection
from mm_rec.training.section import AdapterSection, Optimizer, TrainSection

EXAMPLES_PANEL = "Examples"


class TokenizerSection(Section):
    """An existing tokenizer, or the size of one to train on the training text."""

    path: str | None = setting(
        None, "A tokenizer folder; without it one is trained.", panel=MODEL_PANEL, option="--tokenizer"
    )
    vocab_size: int | None = setting(None, "Pieces of the tokenizer to train.", panel=MODEL_PANEL, ge=1)


class PretrainSection(TrainSection):
    """Settings of pre-training: text, tokenizer and model."""

    data: DataSection = setting(DataSection, "Which text.")
    tokenizer: TokenizerSection = setting(TokenizerSection, "Which tokenizer.")
    model: ModelSection = setting(ModelSection, "Which model.")


class FinetuneSection(TrainSection):
    """Settings of fine-tuning: conversations, rows by a prompt format, raw text, and what must not be forgotten."""

    start_from: str | None = setting(
        None,
        "The model: a run, a Transformers folder, or owner/name of a hub.",
        panel=MODEL_PANEL,
        option="--from",
    )
    data: list[ExampleSource] = setting(list, "Files of examples.", option="")
    prompt_format: str | None = setting(
        None,
        "Of JSON rows: alpaca, instruction, or a file of templates.",
        panel=EXAMPLES_PANEL,
    )
    validation: list[str] = setting(list, "Files held out, instead of a share.", panel=EXAMPLES_PANEL)
    validation_fraction: float = setting(
        0.05, "Share of the examples that is held out.", panel=EXAMPLES_PANEL, gt=0, lt=1
    )
    fix: bool = setting(False, "Mend rows with problems, or leave them out.", panel=EXAMPLES_PANEL)
    template: Literal["auto", "default", "chatml", "llama3"] = setting(
        "auto",
        "Chat layout: auto (the model's own, or else the default), default, chatml or llama3.",
        panel=EXAMPLES_PANEL,
    )
    train_on: TrainOn = setting(
        "all", "Answers of a conversation to learn: all or last.", panel=EXAMPLES_PANEL
    )
    max_length: int | None = setting(None, "Most tokens of a conversation.", panel=EXAMPLES_PANEL, ge=2)
    too_long: TooLong = setting(
        "refuse", "Longer ones: refuse, or turns (cut the oldest).", panel=EXAMPLES_PANEL
    )
    text: list[str] = setting(
        list,
        "Text of the base, for --text-share and for what it forgets (default: that of the base's run).",
        panel=EXAMPLES_PANEL,
    )
    text_share: float = setting(
        0.0, "Share of rows that are text of the base.", panel=EXAMPLES_PANEL, ge=0, lt=1
    )
    samples: int = setting(3, "Answers that are shown at each validation.", panel=EXAMPLES_PANEL, ge=0)
    text_slices: Chunking = setting(Chunking, "How raw text is cut into blocks.")


def _as_before(name: str) -> dict[str, Any]:
    """Description and panel of a setting of every training, for one that has another default."""
    known = TrainSection.model_fields[name]
    extra = known.json_schema_extra
    assert isinstance(extra, dict) and known.description is not None
    return {"description": known.description, "panel": extra["panel"]}


class LoraSection(FinetuneSection):
    """Settings of fine-tuning by an adapter: the same, with the rates and the saving that adapters want."""

    adapter: AdapterSection = setting(AdapterSection, "The adapter.")
    optimizer: Optimizer | None = setting("adamw", **_as_before("optimizer"))
    learning_rate: float | None = setting(2e-4, **_as_before("learning_rate"), gt=0)
    weight_decay: float = setting(0.0, **_as_before("weight_decay"), ge=0)
    min_lr_ratio: float = setting(0.0, **_as_before("min_lr_ratio"), ge=0, le=1)
    save_below_loss: float | None = setting(1.8, **_as_before("save_below_loss"), gt=0)
    log_every: int = setting(1, **_as_before("log_every"), ge=1)
