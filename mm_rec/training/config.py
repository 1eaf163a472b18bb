"""What the one training loop can be told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mm_rec.config import Section
from mm_rec.runtime import PrecisionName

Schedule = Literal["cosine", "linear", "wsd", "constant"]
Optimizer = Literal["adamw", "muon"]


class TrainingConfig(Section):
    """Every setting of the loop. Steps are optimizer steps, batch sizes rows, lengths tokens."""

    steps: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    micro_batch: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    seed: int = Field(default=42, ge=0)

    optimizer: Optimizer = "muon"
    learning_rate: float = Field(gt=0)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    decay_fraction: float = Field(default=0.3, ge=0, le=1)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    lora_plus: float = Field(default=1.0, gt=0)  # times the rate, for an adapter's second matrices

    device: str = "auto"
    precision: PrecisionName = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)

    validate_every: int = Field(default=100, ge=1)
    validation_rows: int = Field(default=256, ge=1)
    patience: int | None = Field(default=None, ge=1)
    stop_at_loss: float | None = Field(default=None, gt=0)  # this and the next: training/live.py
    stop_at_epoch: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    checkpoint_minutes: float = Field(default=15, gt=0)
    keep_last: int = Field(default=2, ge=1)
    save_every: int | None = Field(default=None, ge=1)  # this and the next three: training/snapshots.py
    save_below_loss: float | None = Field(default=None, gt=0)
    save_loss_step: float = Field(default=0.1, gt=0)
    save_loss_ratio: float | None = Field(default=None, gt=0, lt=1)
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is larger than steps ({self.steps})")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads."""
        return self.micro_batch * self.accumulation * self.seq_len
