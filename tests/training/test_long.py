"""Sequences of 32K tokens and more: one training step, with memory that does not grow with the square of the length."""

import resource

import torch

from mm_rec.models.presets import build, preset
from mm_rec.training.objectives import next_token

LENGTH = 33_000


def test_a_training_step_on_33_000_tokens() -> None:
    """A T × T mask or score matrix alone would take over 1 GB (bool) or 4 GB (float32)."""
    model = build(preset("tiny").config(64, num_hidden_layers=2, hidden_size=64), seed=0).train()
    ids = torch.randint(0, 64, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summed = next_token(torch.float32)(model, {"input_ids": ids, "labels": ids})["loss"]
    loss, count = summed.total, summed.count
    loss.backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert count == LENGTH - 1 and torch.isfinite(loss)
    assert grown < 1.5e9
