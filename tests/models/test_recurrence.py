"""The chunked form against the step form, the step form against an example worked by hand."""

import pytest
import torch
from comparing import relative

from mm_rec.models.mmrec.recurrence import chunked_recurrence, step_recurrence

BATCH, MEMORIES, KEY, VALUE = 2, 3, 5, 7


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unit = torch.nn.functional.normalize
    q, k = (unit(random(BATCH, length, MEMORIES, KEY), dim=-1) for _ in range(2))
    v = random(BATCH, length, MEMORIES, VALUE)
    beta = torch.sigmoid(random(BATCH, length, MEMORIES))
    log_decay = -torch.nn.functional.softplus(random(BATCH, length, MEMORIES)) * torch.tensor(
        [1.0, 0.1, 0.001]
    )
    state = random(BATCH, MEMORIES, KEY, VALUE)
    return [x.to(dtype) for x in (q, k, v, beta, log_decay, state)]


def documents(length: int) -> torch.Tensor:
    """Positions of rows in which a new document starts at odd places, the first one carried on from before."""
    starts = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(1)) < 0.1
    column = torch.arange(length).expand(BATCH, length)
    return column - torch.where(starts, column, -3).cummax(1).values


def test_step_form_by_hand() -> None:
    """Two tokens, one memory, K = V = 1: every number follows on paper."""
    q = torch.tensor([[[[1.0]], [[2.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[0.5]], [[4.0]]]], dtype=torch.float64)
    v = torch.tensor([[[[3.0]], [[10.0]]]], dtype=torch.float64)
    beta = torch.tensor([[[0.5], [0.25]]], dtype=torch.float64)
    log_decay = torch.tensor([[[0.5], [0.5]]], dtype=torch.float64).log()
    positions = torch.tensor([[1, 2]])
    state = torch.tensor([[[[8.0]]]], dtype=torch.float64)
    y, end = step_recurrence(q, k, v, beta, log_decay, positions, state)
    # S1 = 4 + 0.25·(3 − 4·0.5) = 4.25; S2 = 2.125 + 1·(10 − 2.125·4) = 3.625
    assert y.flatten().tolist() == [4.25, 7.25]
    assert end.item() == 3.625


def test_a_new_document_forgets_everything() -> None:
    q, k, v, beta, log_decay, state = inputs(1)
    zero = torch.zeros(BATCH, 1, dtype=torch.int64)
    y, end = step_recurrence(q, k, v, beta, log_decay, zero, state)
    fresh, fresh_end = step_recurrence(q, k, v, beta, log_decay, zero, None)
    assert torch.equal(y, fresh) and torch.equal(end, fresh_end)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130, 201])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_chunked_equals_step(length: int, packed: bool, carried: bool) -> None:
    """Outputs, final state and the gradient of every input, in float64."""
    *tensors, state = inputs(length)
    positions = (
        documents(length) if packed else torch.arange(length).expand(BATCH, length) + (3 if carried else 0)
    )
    results = []
    for form in (step_recurrence, chunked_recurrence):
        leaves = [x.clone().requires_grad_() for x in [*tensors, state]]
        y, end = form(*leaves[:5], positions, leaves[5] if carried else None)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        ((y * weights).sum() + end.square().sum()).backward()
        results.append([y, end, *(leaf.grad for leaf in (leaves if carried else leaves[:5]))])
    for step, chunked in zip(*results, strict=True):
        assert chunked is not None and step is not None
        assert relative(chunked, step) < 1e-9
        assert torch.isfinite(chunked).all()


def test_chunked_equals_step_in_float32() -> None:
    *tensors, state = inputs(200, torch.float32)
    positions = documents(200)
    step = step_recurrence(*tensors, positions, state)
    chunked = chunked_recurrence(*tensors, positions, state)
    for a, b in zip(chunked, step, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("cut", [1, 17, 64, 99])
def test_split_equals_whole(cut: int) -> None:
    *tensors, state = inputs(100)
    positions = documents(100)
    y, end = chunked_recurrence(*tensors, positions, state)
    first, between = chunked_recurrence(*(x[:, :cut] for x in tensors), positions[:, :cut], state)
    second, last = chunked_recurrence(*(x[:, cut:] for x in tensors), positions[:, cut:], between)
    assert relative(torch.cat([first, second], dim=1), y) < 1e-9
    assert relative(last, end) < 1e-9


def test_strong_forgetting_gives_no_nan() -> None:
    """Decays that underflow: the masked triangle would overflow if it were exponentiated."""
    *tensors, state = inputs(128, torch.float32)
    tensors[4] = torch.full_like(tensors[4], -50.0).requires_grad_()
    y, end = chunked_recurrence(*tensors, torch.arange(128).expand(BATCH, 128), state)
    (y.sum() + end.sum()).backward()
    assert torch.isfinite(y).all() and torch.isfinite(tensors[4].grad).all()
