"""Training in float16: the loss is scaled, and a step whose gradients overflow is skipped."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import build_small

from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.micro_step import plain_micro_step
from mm_rec.training.objectives import SumCount, Sums, next_token
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.step import NonFiniteError, training_step

SECTION = ResolvedTrainSection(steps=40, seq_len=32, batch_size=4, learning_rate=3e-3)


class Counting:
    """Rows that count upwards: quickly learnt."""

    def batch_at(self, step: int, micro_step: int = 0) -> dict[str, torch.Tensor]:
        start = torch.randint(0, 300, (4, 1), generator=torch.Generator().manual_seed(step))
        ids = (start + torch.arange(32)) % 400
        return {"input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_float16_learns_what_float32_learns(family: str) -> None:
    losses = {}
    for dtype in (torch.float32, torch.float16):
        model = build_small(family).float()
        optimizer, scaler = OptimizerSet(model, SECTION), LossScaler.for_dtype(dtype)
        run = plain_micro_step(model, next_token(dtype), scaler)
        for step in range(SECTION.steps):
            done = training_step(model, Counting(), run, optimizer, SECTION, step, 3e-3, scaler=scaler)
            assert not done.skipped
        losses[dtype] = done.means["loss"]
    assert losses[torch.float32] < 0.7 * math.log(400)
    assert losses[torch.float16] == pytest.approx(losses[torch.float32], rel=0.01)


def test_the_factor_halves_where_gradients_overflow_and_grows_where_they_do_not() -> None:
    scaler = LossScaler(scale=8, growth_interval=3)
    assert scaler.update(overflowed=True)
    assert (scaler.scale, scaler.skipped_steps) == (4, 1)
    assert not any(scaler.update(overflowed=False) for _ in range(3))
    assert scaler.scale == 8
    other = LossScaler()
    other.load_state_dict(scaler.state_dict())
    assert other == scaler
    while scaler.update(overflowed=True):
        pass
    assert 0 < scaler.scale < 2**-13  # then it is not the factor's fault


def test_a_step_that_overflows_is_skipped_and_counted() -> None:
    model = build_small("llama").float()
    plain = next_token(torch.float32)
    overflowing = True

    def infinite(grad: torch.Tensor) -> torch.Tensor:
        return grad * math.inf if overflowing else grad

    weight = model.get_output_embeddings().weight
    weight.register_hook(infinite)
    scaler = LossScaler()
    optimizer, run = OptimizerSet(model, SECTION), plain_micro_step(model, plain, scaler)
    before = [one.detach().clone() for one in model.parameters()]
    done = training_step(model, Counting(), run, optimizer, SECTION, 0, 3e-3, scaler=scaler)
    assert done.skipped and scaler.skipped_steps == 1 and scaler.scale == 8
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    overflowing = False
    done = training_step(model, Counting(), run, optimizer, SECTION, 1, 3e-3, scaler=scaler)
    assert not done.skipped
    assert not all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    model = build_small("llama").float()

    def objective(model, batch) -> Sums:
        loss = next_token(torch.float32)(model, batch)["loss"]
        return {"loss": SumCount(loss.total * math.nan, loss.count)}

    scaler = LossScaler()
    run = plain_micro_step(model, objective, scaler)
    with pytest.raises(NonFiniteError):
        training_step(model, Counting(), run, OptimizerSet(model, SECTION), SECTION, 0, 3e-3, scaler=scaler)
