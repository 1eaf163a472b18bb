"""Loss scaling for float16, whose smallest gradients would be zero (Micikevicius et al. 2018)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

_SMALLEST = 2.0**-14  # where gradients overflow even so, it is not for want of scaling


@dataclass(slots=True)
class LossScaler:
    """The factor of the loss before its gradients are taken; they are divided by it before they are used.

    It doubles after `growth_interval` steps and halves at a step whose gradients overflow, which is skipped. The rule
    and its figures are those of torch.amp.GradScaler; its factor of 2¹⁶ is of a mean, and ours of a sum over tokens.
    """

    scale: float = 16.0
    growth_interval: int = 2000
    good_steps: int = 0  # since the factor last changed
    skipped_steps: int = 0

    @classmethod
    def for_dtype(cls, dtype: torch.dtype) -> Self | None:
        """The scaler of a training with matrix products in a dtype; None where it needs none."""
        return cls() if dtype == torch.float16 else None

    def update(self, overflowed: bool) -> bool:
        """Take note of a step; returns whether it can be explained by the factor and is to be skipped."""
        if overflowed:
            skip = self.scale > _SMALLEST
            self.scale, self.good_steps = self.scale / 2, 0
            self.skipped_steps += skip
            return skip
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0
        return False

    def state_dict(self) -> dict[str, Any]:
        """Plain values of all of it."""
        return asdict(self)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take over what was saved."""
        for name, value in values.items():
            setattr(self, name, value)
