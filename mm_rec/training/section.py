"""Settings of a training: what may be given, and what the trainer reads once all of it is known."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mm_rec.config import Section, setting
from mm_rec.cpu import PrecisionName
from mm_rec.models.sections import ADAPTER_PANEL, LoraConfig
from mm_rec.training.schedule import SHAPES

Optimizer = Literal["adamw", "muon"]

LENGTH_PANEL, LEARNING_PANEL = "Length", "Learning"
SAVING_PANEL, MACHINE_PANEL = "Measuring, saving and stopping", "Machine and records"
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


def _count(value: Any) -> Any:
    """A number of tokens from text like 50M; anything else is left to the field."""
    match = re.fullmatch(r"([0-9_.]+) ?([kKmMbB])", value) if isinstance(value, str) else None
    number = math.nan if match is None else float(match[1]) * _UNITS[match[2].lower()]
    return round(number) if math.isfinite(number) else value


Tokens = Annotated[int | None, BeforeValidator(_count)]


class AdapterSection(LoraConfig):
    """An adapter that is trained instead of the model's own weights."""

    lora_plus: float = setting(
        1.0, "Rate of the second matrices, times the rate (AdamW).", panel=ADAPTER_PANEL, gt=0
    )
    start_from: str | None = setting(
        None, "Go on with this adapter's weights.", panel=ADAPTER_PANEL, option="--start-adapter"
    )


class TrainSection(Section):
    """Settings of every training; what is None follows from size, data and machine, is printed and stored.

    Steps are optimizer steps, batch sizes rows, lengths tokens.
    """

    steps: int | None = setting(None, "Optimizer steps.", panel=LENGTH_PANEL, ge=1)
    epochs: float | None = setting(None, "Passes over the data.", panel=LENGTH_PANEL, gt=0)
    tokens: Tokens = setting(None, "Tokens to read: 300k, 50M, 1.5B.", panel=LENGTH_PANEL, ge=1)
    minutes: float | None = setting(
        None, "As many steps as this machine does in so long.", panel=LENGTH_PANEL, gt=0
    )
    least_tokens: Tokens = setting(
        None, "Tokens to read however few minutes are given.", panel=LENGTH_PANEL, ge=1
    )
    seq_len: int | None = setting(None, "Tokens of a row.", panel=LENGTH_PANEL, ge=2)
    seq_len_start: int | None = setting(
        None,
        "Tokens of a row at the start, doubled in equal phases up to --seq-len.",
        panel=LENGTH_PANEL,
        ge=2,
    )
    batch_size: int | None = setting(None, "Rows at a time.", panel=LENGTH_PANEL, ge=1)
    accumulation: int | None = setting(None, "Batches of one step.", panel=LENGTH_PANEL, ge=1)

    learning_rate: float | None = setting(None, "Peak rate.", panel=LEARNING_PANEL, gt=0)
    optimizer: Optimizer | None = setting(None, "muon or adamw.", panel=LEARNING_PANEL)
    schedule: str = setting("cosine", f"One of {', '.join(SHAPES)}.", panel=LEARNING_PANEL)
    warmup_steps: int | None = setting(None, "Steps of warm-up.", panel=LEARNING_PANEL, ge=0)
    decay_fraction: float = setting(
        0.3, "Share of the steps in which wsd falls.", panel=LEARNING_PANEL, ge=0, le=1
    )
    min_lr_ratio: float = setting(
        0.1, "Rate of the last step, as a share of the peak.", panel=LEARNING_PANEL, ge=0, le=1
    )
    weight_decay: float = setting(0.1, "Weight decay.", panel=LEARNING_PANEL, ge=0)
    beta1: float = setting(0.9, "AdamW's decay of the first moment.", panel=LEARNING_PANEL, ge=0, lt=1)
    beta2: float = setting(0.95, "AdamW's decay of the second moment.", panel=LEARNING_PANEL, ge=0, lt=1)
    clip: float = setting(1.0, "Largest norm of the gradient.", panel=LEARNING_PANEL, gt=0)
    state_passing: float = setting(
        0.0, "Share of the steps, the last ones, in which rows begin on others' states (MM-Rec, not hybrids).",
        panel=LEARNING_PANEL, ge=0, le=1,
    )  # fmt: skip
    neftune_alpha: float = setting(0.0, "Noise on embeddings (NEFTune), 5 to 15.", panel=LEARNING_PANEL, ge=0)
    adapter: AdapterSection | None = setting(
        None, "Train an adapter (LoRA) instead of the model's weights.", panel=ADAPTER_PANEL
    )

    validate_every: int | None = setting(None, "Steps between two validations.", panel=SAVING_PANEL, ge=1)
    validation_rows: int | None = setting(None, "Rows that one reads.", panel=SAVING_PANEL, ge=1)
    patience: int | None = setting(
        None, "Stop after so many validations without a better one.", panel=SAVING_PANEL, ge=1
    )
    stop_at_loss: float | None = setting(
        None, "Stop when the mean training loss of three steps is this low.", panel=SAVING_PANEL, gt=0
    )
    stop_at_epoch: int | None = setting(None, "Stop after so many epochs.", panel=SAVING_PANEL, ge=1)
    checkpoint_every: int | None = setting(None, "Steps between two checkpoints.", panel=SAVING_PANEL, ge=1)
    checkpoint_minutes: float = setting(15, "… and minutes, at most.", panel=SAVING_PANEL, gt=0)
    keep_last: int = setting(2, "Checkpoints that are kept.", panel=SAVING_PANEL, ge=1)
    save_every: int | None = setting(
        None, "Steps between two snapshots, which are kept for good.", panel=SAVING_PANEL, ge=1
    )
    save_below_loss: float | None = setting(
        None, "Also when the loss falls below this, and by --save-loss-step again.", panel=SAVING_PANEL, gt=0
    )
    save_loss_step: float = setting(0.1, "… by this much.", panel=SAVING_PANEL, gt=0)
    save_loss_ratio: float | None = setting(None, "… or by this share of it.", panel=SAVING_PANEL, gt=0, lt=1)
    log_every: int = setting(10, "Steps between two records of the log.", panel=SAVING_PANEL, ge=1)

    device: str = setting("auto", "auto, cpu, cuda, cuda:1 or mps.", panel=MACHINE_PANEL)
    precision: PrecisionName = setting("auto", "auto, bfloat16, float16 or float32.", panel=MACHINE_PANEL)
    compile: bool | None = setting(None, "Compile the layers (default: where it pays).", panel=MACHINE_PANEL)
    gradient_checkpointing: bool = setting(False, "Less memory, slower.", panel=MACHINE_PANEL)
    segment_len: int | None = setting(
        None, "Read rows in segments of so many tokens, for rows longer than RAM holds (MM-Rec, not hybrids).",
        panel=MACHINE_PANEL, ge=1,
    )  # fmt: skip
    threads: int | None = setting(None, "Threads to compute with.", panel=MACHINE_PANEL, ge=1, le=1024)
    tensorboard: bool = setting(False, "Also write TensorBoard files.", panel=MACHINE_PANEL)
    seed: int | None = setting(None, "Seed of everything (default: the recipe's).", panel=MACHINE_PANEL, ge=0)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        if value not in SHAPES:
            raise ValueError(f"there is no such schedule; there are {', '.join(SHAPES)}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.adapter is not None and self.adapter.lora_plus != 1 and self.optimizer == "muon":
            raise ValueError(
                "lora_plus is a matter of AdamW: muon gives all matrices one rate. Choose one of the two"
            )
        return self


class ResolvedTrainSection(TrainSection):
    """A section in which nothing is open, as the trainer reads it.

    The section of a stage that was resolved keeps its own class, and is one of these by its values
    (`require_resolved`); the defaults here are for a trainer that is used alone.
    """

    steps: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0)
    optimizer: Optimizer = "muon"
    warmup_steps: int = Field(default=0, ge=0)
    validate_every: int = Field(default=100, ge=1)
    validation_rows: int = Field(default=256, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    compile: bool = False
    seed: int = Field(default=42, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is larger than steps ({self.steps})")
        return self


RESOLVED = (
    "steps", "seq_len", "batch_size", "accumulation", "learning_rate", "optimizer", "warmup_steps", "validate_every",
    "validation_rows", "checkpoint_every", "compile", "seed",
)  # fmt: skip


def require_resolved(section: TrainSection) -> ResolvedTrainSection:
    """The section itself, of which every value that the trainer needs is known."""
    missing = [name for name in RESOLVED if getattr(section, name) is None]
    assert not missing, f"not resolved: {missing}"
    return cast(ResolvedTrainSection, section)


def tokens_per_step(section: ResolvedTrainSection) -> int:
    """Tokens that one optimizer step reads."""
    return section.batch_size * section.accumulation * section.seq_len
