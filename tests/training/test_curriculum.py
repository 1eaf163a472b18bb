"""What rows are as training goes on: shorter at the start, begun on others' states at the end."""

from __future__ import annotations

import pytest
import torch
from comparing import relative
from torch import Tensor

from mm_rec.models.presets import build, preset
from mm_rec.training.curriculum import apply_curriculum, passes_states, row_length
from mm_rec.training.objectives import next_token, segmented_next_token
from mm_rec.training.section import ResolvedTrainSection

LENGTH = 48


def section(**settings: float) -> ResolvedTrainSection:
    return ResolvedTrainSection(steps=20, seq_len=LENGTH, learning_rate=1e-3, **settings)  # type: ignore[arg-type]


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, 300, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}


def test_rows_double_in_equal_phases() -> None:
    own = section(seq_len_start=12)
    lengths = [row_length(own, step) for step in range(own.steps)]
    assert lengths == [12] * 7 + [24] * 7 + [48] * 6
    assert {row_length(section(), step) for step in range(20)} == {LENGTH}
    short = apply_curriculum(batch(), own, 0)
    assert short["input_ids"].shape == (8, 12)
    assert torch.equal(short["input_ids"].flatten(), batch()["input_ids"].flatten())
    assert apply_curriculum(batch(), own, 19)["input_ids"].shape == (2, LENGTH)


def test_states_are_passed_in_the_last_steps() -> None:
    assert [passes_states(section(state_passing=0.2), step) for step in range(20)] == [False] * 16 + [
        True
    ] * 4
    assert not any(passes_states(section(), step) for step in range(20))
    assert all(passes_states(section(state_passing=1), step) for step in range(20))


@pytest.mark.parametrize("segment", [None, 20])
@pytest.mark.parametrize("documents", [False, True])
def test_a_row_begins_on_the_state_of_the_one_before(segment: int | None, documents: bool) -> None:
    """The loss is that of each row behind the other one, as one text; what was read before learns nothing."""
    model = build(preset("tiny").config(300, num_hidden_layers=2), seed=1).double().train()
    plain = {name: x for name, x in batch().items() if documents or name != "document_ids"}
    passed = apply_curriculum(plain, section(state_passing=1.0), 0)
    objective = (
        next_token(torch.float64) if segment is None else segmented_next_token(model, torch.float64, segment)
    )
    found = objective(model, passed)["loss"]
    found.total.backward()
    gradient = model.get_input_embeddings().weight.grad
    expected = torch.zeros((), dtype=torch.float64)
    ids = plain["input_ids"]
    for row, other in ((0, 1), (1, 0)):
        both = torch.cat([ids[other], ids[row]])[None]
        labels = torch.cat([torch.full((LENGTH + 1,), -100), ids[row, 1:]])[None]
        one = next_token(torch.float64)(model, {"input_ids": both, "labels": labels})["loss"]
        expected = expected + one.total
    assert found.count == 2 * (LENGTH - 1) and relative(found.total, expected) < 1e-12
    model.zero_grad()
    expected.backward()
    # Gradients of the row itself are the same; those through what was read before are cut off.
    whole = model.get_input_embeddings().weight.grad
    assert gradient is not None and whole is not None and relative(gradient, whole) > 1e-6
