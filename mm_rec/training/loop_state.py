"""The trainer's own state between steps, as checkpoints keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

RECENT = 20  # steps whose mean stands beside a validation loss: enough to be steady, few enough to be of the same time
_FORMER = {
    "best_loss": "best_value",
    "worse_in_a_row": "evals_without_improvement",
}  # of checkpoints of before


@dataclass(slots=True)
class LoopState:
    """Counters, the best validation, and the losses that stopping and warnings go by."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_value: float = math.inf
    best_step: int = 0
    evals_without_improvement: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of the last steps, as many as RECENT
    history: list[tuple[float, float]] = field(default_factory=list)  # (training, validation) loss
    validated_step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values of all of it."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, values: Mapping[str, Any]) -> LoopState:
        """The state that was saved, also by the names of before."""
        named = {_FORMER.get(name, name): value for name, value in values.items()}
        state = cls(**{one.name: named[one.name] for one in fields(cls) if one.name in named})
        state.history = [(train, validation) for train, validation in state.history]
        return state

    def add_loss(self, loss: float) -> None:
        """Remember a step's loss."""
        self.recent_losses = [*self.recent_losses[1 - RECENT :], loss]

    @property
    def train_loss(self) -> float:
        """The mean loss of the recent steps."""
        return sum(self.recent_losses) / max(1, len(self.recent_losses))

    @property
    def over_fitting(self) -> bool:
        """True where validation loss rose twice in a row while training loss fell."""
        if len(self.history) < 3:
            return False
        (train_a, valid_a), (train_b, valid_b), (train_c, valid_c) = self.history[-3:]
        return valid_a < valid_b < valid_c and train_a > train_b > train_c
