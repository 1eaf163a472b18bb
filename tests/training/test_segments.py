"""Rows that are read in segments: the loss and the gradients of rows read at once, with less memory."""

from __future__ import annotations

import pytest
import torch
from comparing import relative
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from mm_rec.errors import ConfigError
from mm_rec.models.forward import PASS_STATES, compile_layers
from mm_rec.models.presets import build, preset
from mm_rec.training.objectives import Objective, next_token, segmented_next_token

ROWS, LENGTH, VOCABULARY = 2, 150, 300


def model() -> PreTrainedModel:
    return build(preset("tiny").config(VOCABULARY, num_hidden_layers=2), seed=1).train()


def batch(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, :40] = -100
    labels[1, 60:66] = -100
    made = {"input_ids": ids, "labels": labels}
    if kind == "documents":
        made["document_ids"] = (torch.arange(LENGTH) // 47).expand(ROWS, -1)
    if kind == "padding":
        made["attention_mask"] = (torch.rand(ROWS, LENGTH, generator=generator) < 0.8).long()
        there = made["attention_mask"].bool()
        labels[
            ~(there & there.roll(1, dims=1))
        ] = -100  # nothing is predicted from or at a place without a token
    return made


def learnt(
    own: PreTrainedModel, objective: Objective, data: dict[str, Tensor]
) -> tuple[Tensor, int, dict[str, Tensor]]:
    own.zero_grad()
    found = objective(own, data)["loss"]
    found.total.backward()
    gradients = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    return found.total.detach(), found.count, gradients


@pytest.mark.parametrize("kind", ["plain", "documents", "padding"])
@pytest.mark.parametrize("segment", [32, 37, 149, 1000])
def test_segments_learn_what_rows_learn(kind: str, segment: int) -> None:
    own, data = model().double(), batch(kind)
    loss, count, gradients = learnt(own, next_token(torch.float64), data)
    found, found_count, found_gradients = learnt(own, segmented_next_token(own, torch.float64, segment), data)
    assert (
        relative(found, loss) < 1e-12 and found_count == count and found_gradients.keys() == gradients.keys()
    )
    for name, gradient in gradients.items():
        assert relative(found_gradients[name], gradient) < 1e-8, name


@pytest.mark.parametrize("compiled", [False, True])
def test_segments_by_the_kernel_learn_what_rows_learn(compiled: bool) -> None:
    own, data = model(), batch("documents")
    _, _, gradients = learnt(own, next_token(torch.float32), data)
    if compiled:
        compile_layers(own)
    _, _, found = learnt(own, segmented_next_token(own, torch.float32, 50), data)
    for name, gradient in gradients.items():
        assert relative(found[name], gradient) < 1e-4, name


def test_a_layer_is_compiled_once_for_all_of_them() -> None:
    """Rows alone, then on passed states (read without and with gradients), then in segments: not once a layer."""
    own = build(preset("tiny").config(VOCABULARY, num_hidden_layers=6), seed=1).train()
    for layer in own.base_model.layers:
        layer.compile(dynamic=False, backend="eager")
    before = counters["stats"]["unique_graphs"]
    rows = batch("plain")
    ways = (
        (next_token(torch.float32), rows),
        (next_token(torch.float32), {**rows, PASS_STATES: torch.tensor(True)}),
    )
    for objective, read in (*ways, (segmented_next_token(own, torch.float32, 50), rows)):
        objective(own, read)["loss"].total.backward()
    assert counters["stats"]["unique_graphs"] - before <= 5


@pytest.mark.parametrize(("name", "kind"), [("llama_tiny", "llama"), ("hybrid_tiny", "mmrec_hybrid")])
def test_a_model_without_a_constant_state_is_refused(name: str, kind: str) -> None:
    other = build(preset(name).config(VOCABULARY), seed=0)
    with pytest.raises(ConfigError, match=f"{kind!r} have no state of constant size"):
        segmented_next_token(other, torch.float32, 8)
