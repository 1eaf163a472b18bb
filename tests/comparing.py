"""How tests compare floats that should agree."""

import torch


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a.detach() - b.detach()).norm() / b.detach().norm().clamp(min=1e-300))


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number of the second."""
    return ((a - b).abs().max() / b.abs().max()).item()
