"""Muon: momentum whose matrices are made orthogonal before they are added (Jordan et al. 2024; Liu et al. 2025).

`torch.optim.Muon` orthogonalises one matrix after the other, in bfloat16 whatever the processor: one without bfloat16
products emulates them, which halves the speed of a small model's training. Here matrices of one size are multiplied
together, in a dtype that the machine multiplies natively; state and arithmetic are otherwise torch's.

Shapes: S matrices of one size, N rows, M columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose slope at zero is steep: Jordan et al. 2024
_STEPS = 5
_EPS = 1e-7
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised in `dtype`; updates have the root mean square of AdamW's (Liu et al. 2025).

    Takes parameters (N, M). Those of several heads, of `head_rows` rows each, are as many matrices: heads do not share
    directions. The state of each parameter is `momentum_buffer`, as in torch.optim.Muon.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        head_rows: Mapping[nn.Parameter, int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype, self.head_rows = dtype, head_rows or {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients."""
        assert closure is None
        for group in self.param_groups:
            of_size: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    whole = (parameter, parameter.grad, self._momentum(parameter))
                    rows = self.head_rows.get(parameter, len(parameter))
                    for matrix in zip(*(x.split(rows) for x in whole), strict=True):
                        of_size[tuple(sorted(matrix[0].shape))].append(matrix)
            for matrices in of_size.values():
                self._step_together(matrices, group["lr"], group["weight_decay"])

    def _step_together(self, matrices: list[tuple[Tensor, ...]], lr: float, weight_decay: float) -> None:
        """A step of matrices of one size, however they lie: each with its gradient and its momentum."""
        parameters, gradients, buffers = ([*each] for each in zip(*matrices, strict=True))
        torch._foreach_lerp_(buffers, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, buffers, MOMENTUM)  # Nesterov's look ahead
        wide = torch.stack([x if x.shape[0] <= x.shape[1] else x.mT for x in ahead])
        updates = orthogonalise(wide, self.dtype).to(wide.dtype)
        rate = -lr * 0.2 * math.sqrt(wide.shape[2])
        as_they_lie = [
            update if parameter.shape == update.shape else update.mT
            for parameter, update in zip(parameters, updates.unbind(), strict=True)
        ]
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, as_they_lie, alpha=rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalise(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values near 1, between 0.7 and 1.2. (S, N, M), N ≤ M.

    Newton-Schulz iteration with a quintic polynomial, 5 steps (Jordan et al. 2024), in `dtype` or that of `matrices`.
    """
    a, b, c = _COEFFICIENTS
    # Divided by the Frobenius norm, so that the spectral norm is 1 at most; before they are narrowed, since gradients
    # are small, and in float16 would be nothing.
    x: Tensor = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)).to(
        dtype or matrices.dtype
    )
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
