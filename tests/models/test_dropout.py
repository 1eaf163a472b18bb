"""Dropout: what is dropped, what is left, and what the gradient sees."""

from __future__ import annotations

import pytest
import torch

from mm_rec.models.dropout import FastDropout


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(1)
    count = 400_001  # not a multiple of the four elements that a word decides
    out = FastDropout(p)(torch.ones(count))
    kept = out != 0
    error = (p * (1 - p) / count) ** 0.5
    assert abs(float((~kept).float().mean()) - p) < 4 * error
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=2**-12, atol=0)
    neighbours = (kept[1:] & kept[:-1]).float().mean()  # of one word, and still independent
    assert abs(float(neighbours) - (1 - p) ** 2) < 8 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_goes_where_the_values_went(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    values = torch.randn(3, 7, 5, dtype=dtype, requires_grad=True)
    out = FastDropout(0.25)(values)
    assert out.dtype is dtype and out.shape == values.shape
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, out)
    assert 0 < int((out == 0).sum()) < out.numel()


def test_without_training_or_at_zero_nothing_changes() -> None:
    values = torch.randn(10)
    assert FastDropout(0.5).eval()(values) is values
    assert FastDropout(0.0)(values) is values


def test_the_seed_decides() -> None:
    values, dropout = torch.ones(1000), FastDropout(0.5)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(dropout(values))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.usefixtures("compiler")
def test_compiled_it_drops_as_much() -> None:
    dropout = torch.compile(FastDropout(0.05), dynamic=False)
    torch.manual_seed(5)
    values = torch.ones(64, 1024, requires_grad=True)
    out = dropout(values)
    out.sum().backward()
    assert abs(float((out == 0).float().mean()) - 0.05) < 4 * (0.05 * 0.95 / out.numel()) ** 0.5
    torch.testing.assert_close(values.grad, out)
