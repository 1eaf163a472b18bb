"""Muon against torch's own, and what it makes of matrices."""

import pytest
import torch
from comparing import relative
from torch import nn

from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.presets import build, preset
from mm_rec.training.muon import Muon, orthogonalise
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection

SHAPES = [(24, 24), (24, 24), (66, 24), (24, 66), (17, 40)]


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(of: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in of:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_the_steps_are_those_of_torch() -> None:
    """Both in bfloat16, as torch's always is; sums of another order differ by its rounding."""
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    start = [parameter.detach().clone() for parameter in ours]
    mine = Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for params, optimizer in ((ours, mine), (theirs, other)):
            give_gradients(params, step)
            optimizer.step()
    for mine_, theirs_, before in zip(ours, theirs, start, strict=True):
        assert relative(mine_ - before, theirs_ - before) < 0.02
        assert mine.state[mine_].keys() == other.state[theirs_].keys() == {"momentum_buffer"}
        assert torch.equal(mine.state[mine_]["momentum_buffer"], other.state[theirs_]["momentum_buffer"])


def test_heads_that_share_a_parameter_step_as_matrices_of_their_own() -> None:
    together = parameters(torch.float64)[3]  # (24, 66), three heads of 8 rows
    apart = [nn.Parameter(part.clone()) for part in together.detach().split(8)]
    one = Muon([together], lr=0.02, weight_decay=0.1, dtype=torch.float64, head_rows={together: 8})
    three = Muon(apart, lr=0.02, weight_decay=0.1, dtype=torch.float64)
    for step in range(3):
        give_gradients([together], step)
        for part, gradient in zip(apart, together.grad.split(8), strict=True):
            part.grad = gradient.clone()
        one.step()
        three.step()
    assert torch.equal(together, torch.cat(apart))
    whole = parameters(torch.float64)[3]
    give_gradients([whole], 0)
    Muon([whole], lr=0.02, weight_decay=0.1, dtype=torch.float64).step()
    assert relative(whole, together) > 1e-3


def test_the_heads_of_a_model_are_known_to_the_optimizer() -> None:
    for name, heads in (("mini", "qkvg"), ("llama_mini", "qkv")):
        model = build(preset(name).config(300), seed=0)
        muon = OptimizerSet(
            model, ResolvedTrainSection(steps=1, seq_len=8, learning_rate=1e-3, optimizer="muon")
        ).optimizers[1]
        found = {n: muon.head_rows.get(p) for n, p in model.named_parameters()}
        assert {n.rpartition(".")[0][-6:] for n, rows in found.items() if rows == 64} == {
            f"{x}_proj" for x in heads
        }
        assert all(rows in (None, 64) for rows in found.values())


def test_gates_are_no_matrices_however_many_memories_there_are() -> None:
    model = build(MMRecConfig(vocab_size=300, hidden_size=1024, num_hidden_layers=1), seed=0)
    section = ResolvedTrainSection(steps=1, seq_len=8, learning_rate=1e-3, optimizer="muon")
    muon = {
        id(p) for group in OptimizerSet(model, section).optimizers[1].param_groups for p in group["params"]
    }
    names = {n.split(".")[-2] for n, p in model.named_parameters() if id(p) in muon}
    assert names == {*(f"{x}_proj" for x in "qkvgo"), "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_a_narrower_dtype_is_near_that_in_float64(dtype: torch.dtype) -> None:
    exact, fast = parameters(torch.float64), parameters(torch.float32)
    for params, inner in ((exact, torch.float64), (fast, dtype)):
        give_gradients(params, 0)
        Muon(params, lr=1.0, weight_decay=0.0, dtype=inner).step()
    for true, near, start in zip(exact, fast, parameters(torch.float64), strict=True):
        assert relative(near.double() - start, true - start) < (1e-5 if dtype == torch.float32 else 0.03)


def test_matrices_become_nearly_orthogonal_with_the_same_directions() -> None:
    matrices = torch.randn(3, 20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    new_values = torch.einsum("sni,snm,sim->si", u, result, v)
    assert relative(u @ torch.diag_embed(new_values) @ v, result) < 1e-9
    assert new_values.min() > 0.6 and new_values.max() < 1.3


def test_a_gradient_of_zeros_or_none_changes_nothing_else() -> None:
    kept, zero, without = parameters(torch.float32)[:3]
    before = [parameter.detach().clone() for parameter in (kept, zero, without)]
    give_gradients([kept], 0)
    zero.grad = torch.zeros_like(zero)
    Muon([kept, zero, without], lr=0.1, weight_decay=0.0, dtype=torch.float32).step()
    assert not torch.equal(kept, before[0])
    assert torch.equal(zero, before[1]) and torch.equal(without, before[2])
