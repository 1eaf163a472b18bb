"""How tests compare floats that should agree."""

import torch


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a.detach() - b.detach()).norm() / b.detach().norm().clamp(min=1e-300))
