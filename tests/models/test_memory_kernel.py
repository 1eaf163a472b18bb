"""The memory layer's kernel against the model's own form of it, in float64: outputs, states and every gradient.

For the processor's instructions and for those of older ones. The step form, which the model's own is tested against, is
the recurrence here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from comparing import relative
from torch import Tensor
from torch.nn.functional import normalize, silu

from mm_rec.models import memory_kernel
from mm_rec.models.mmrec import memory as memory_layer
from mm_rec.models.mmrec.modeling_mmrec import MMRecForCausalLM
from mm_rec.models.mmrec.recurrence import step_recurrence
from mm_rec.models.presets import build, preset
from mm_rec.native import library

pytestmark = pytest.mark.usefixtures("isa")
EPS = 1e-5
NAMES = ("q", "k", "v", "gate", "write", "log_decay", "conv_weight", "norm_weight", "history", "state")


@dataclass(frozen=True)
class Shape:
    """Tokens, and what may differ: documents that begin in a row, a state that is carried, sizes, taps."""

    length: int
    documents: int = 0
    carried: bool = False
    memories: int = 3
    key: int = 16
    value: int = 32
    taps: int = 4


SHAPES = [
    *(Shape(length, documents) for length in (2, 31, 32, 33, 130) for documents in (0, 4)),
    *(Shape(length, documents, carried=True) for length in (2, 31, 32, 33, 130) for documents in (0, 4)),
    Shape(3, 2, True), Shape(1), Shape(1, carried=True), Shape(70, 3, True, memories=1, key=64, value=64),
    Shape(70, 3, True, taps=2), Shape(70, 3, True, taps=8), Shape(5, 1, True, taps=8), Shape(40, taps=1),
]  # fmt: skip


def inputs(shape: Shape) -> tuple[dict[str, Tensor | None], Tensor]:
    """Leaves in float64, two sequences; and positions."""
    generator = torch.Generator().manual_seed(shape.length)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    length, memories, key, value = shape.length, shape.memories, shape.key, shape.value
    features = memories * (2 * key + value)
    carried = shape.carried
    column = torch.arange(length).expand(2, length)
    starts = torch.zeros(2, length, dtype=torch.bool)
    for row in range(2):
        starts[row, torch.randint(0, length, (shape.documents,), generator=generator)] = True
    # One document of before is long, the other has two tokens, fewer than the convolution sees.
    before = -torch.tensor([[40], [2]]) if carried else torch.zeros(2, 1, dtype=torch.int64)
    positions = column - torch.where(starts, column, before).cummax(1).values
    leaves = {
        "q": random(2, length, memories * key), "k": random(2, length, memories * key),
        "v": random(2, length, memories * value), "gate": random(2, length, memories * value),
        "write": torch.sigmoid(random(2, length, memories)),
        "log_decay": -torch.rand(2, length, memories, generator=generator, dtype=torch.float64)
        * torch.tensor([5.0, 0.3, 0.01])[:memories],
        "conv_weight": random(shape.taps, features) / 2, "norm_weight": 1 + random(value) / 5,
        "history": random(2, shape.taps - 1, features) if carried else None,
        "state": random(2, memories, key, value) / 3 if carried else None,
    }  # fmt: skip
    return leaves, positions


def slow(leaves: dict[str, Any], positions: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the step form, every formula as docs/mmrec.md has it."""
    q, k, v, weight = leaves["q"], leaves["k"], leaves["v"], leaves["conv_weight"]
    length, taps, memories = q.shape[1], len(weight), leaves["write"].shape[-1]
    now = torch.cat([q, k, v], dim=-1)
    history = now.new_zeros(2, taps - 1, now.shape[-1]) if leaves["history"] is None else leaves["history"]
    timeline = torch.cat([history, now], dim=1)
    mixed = sum(
        timeline[:, taps - 1 - back :][:, :length] * weight[taps - 1 - back] * (positions >= back)[..., None]
        for back in range(taps)
    )
    q, k, v = silu(mixed).split([q.shape[-1], k.shape[-1], v.shape[-1]], dim=-1)
    heads = (2, length, memories, -1)
    q, k = (normalize(x.view(heads), dim=-1) for x in (q, k))
    y, state = step_recurrence(
        q, k, v.view(heads), leaves["write"], leaves["log_decay"], positions, leaves["state"]
    )
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * leaves["norm_weight"]
    return (y * silu(leaves["gate"]).view(heads)).flatten(2), state


def fast(leaves: dict[str, Any], positions: Tensor) -> tuple[Tensor, Tensor]:
    tensors = [*(leaves[name] for name in NAMES[:6]), positions, *(leaves[name] for name in NAMES[6:])]
    found = memory_kernel.memory(*tensors, EPS)
    assert found is not None
    return found


def results(
    form: Any, leaves: dict[str, Tensor | None], positions: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output, last state and the gradients of one weighted sum of both."""
    own = {name: x if x is None else x.to(dtype).clone().requires_grad_() for name, x in leaves.items()}
    out, state = form(own, positions)
    generator = torch.Generator().manual_seed(7)
    total = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
        for x in (out, state)
    )
    total.backward()
    gradients = {name: x.grad for name, x in own.items() if x is not None and x.grad is not None}
    return {"out": out, "last state": state, **gradients}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_step_form(shape: Shape) -> None:
    leaves, positions = inputs(shape)
    expected = results(slow, leaves, positions, torch.float64)
    found = results(fast, leaves, positions, torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value).norm()
        assert error <= 1e-5 * value.norm() + 1e-6, (name, float(error), float(value.norm()))


def test_bfloat16_is_read_and_written_and_nothing_else() -> None:
    """What is computed from rounded features is as exact as in float32; only results are rounded."""
    leaves, positions = inputs(Shape(70, 2, True))
    narrow = ("q", "k", "v", "gate", "history")
    rounded = {n: x.bfloat16().double() if n in narrow and x is not None else x for n, x in leaves.items()}
    expected = slow(rounded, positions)
    own = {
        n: x if x is None else x.to(torch.bfloat16 if n in narrow else torch.float32)
        for n, x in leaves.items()
    }
    out, state = fast(own, positions)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert relative(out.double(), expected[0]) < 3e-3 and relative(state.double(), expected[1]) < 3e-6
    assert torch.equal(
        out, fast({n: x if x is None else x.float() for n, x in own.items()}, positions)[0].bfloat16()
    )


def test_a_sequence_in_two_is_the_whole_with_its_gradients() -> None:
    leaves, positions = inputs(Shape(75, 2))
    whole = results(fast, leaves, positions, torch.float32)

    def in_two(own: dict[str, Any], positions: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (
            {n: own[n][:, part] if n in NAMES[:6] else own[n] for n in NAMES}
            for part in (slice(41), slice(41, None))
        )
        begun, state = fast(first, positions[:, :41])
        history = torch.cat([own[name][:, 38:41] for name in ("q", "k", "v")], dim=-1)
        rest, state = fast({**second, "history": history, "state": state}, positions[:, 41:])
        return torch.cat([begun, rest], dim=1), state

    for name, value in results(in_two, leaves, positions, torch.float32).items():
        assert (value - whole[name]).norm() <= 3e-6 * whole[name].norm() + 1e-6, name


def test_any_number_of_threads_gives_the_same_bits() -> None:
    leaves, positions = inputs(Shape(100, 2, True))
    expected = results(fast, leaves, positions, torch.float32)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for name, value in results(fast, leaves, positions, torch.float32).items():
            assert torch.equal(value, expected[name]), name


def model() -> MMRecForCausalLM:
    built = build(preset("tiny").config(300, num_hidden_layers=2), seed=1)
    assert isinstance(built, MMRecForCausalLM)
    return built


def learnt(own: MMRecForCausalLM, **batch: Tensor) -> dict[str, Tensor]:
    ids = torch.randint(0, 300, (3, 90), generator=torch.Generator().manual_seed(3))
    own.zero_grad()
    loss = own(input_ids=ids, labels=ids, use_cache=False, **batch).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in own.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["plain", "documents", "padding"])
def test_a_model_learns_the_same(monkeypatch: pytest.MonkeyPatch, kind: str, checkpointed: bool) -> None:
    batch = {
        "plain": {},
        "documents": {"document_ids": (torch.arange(90) // 37).expand(3, -1)},
        "padding": {
            "attention_mask": (torch.rand(3, 90, generator=torch.Generator().manual_seed(2)) < 0.8).long()
        },
    }[kind]
    own = model()
    if checkpointed:
        own.activation_checkpointing_enable()
        own.train()
    found = learnt(own, **batch)
    monkeypatch.setattr(memory_layer, "memory_kernel", None)
    for name, value in learnt(own, **batch).items():
        assert relative(found[name], value) < 2e-4, name


@torch.no_grad()
def test_a_prompt_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model().eval()
    ids = torch.randint(0, 300, (2, 120))
    state, logits = None, []
    for part in ids.split([37, 1, 60, 2, 20], dim=1):
        out = own(input_ids=part, past_key_values=state, use_cache=True)
        state = out.past_key_values
        logits.append(out.logits)
    monkeypatch.setattr(memory_layer, "memory_kernel", None)
    assert (torch.cat(logits, 1) - own(input_ids=ids, use_cache=False).logits).abs().max() < 1e-5


def test_what_the_kernel_does_not_know_is_left_to_torch() -> None:
    leaves, positions = inputs(Shape(5))
    float32 = {n: x if x is None else x.float() for n, x in leaves.items()}
    odd = inputs(Shape(5, value=24))[0]
    for own in (
        leaves,  # float64
        {**float32, "v": leaves["v"]},
        {n: x if x is None else x.float() for n, x in odd.items()},
        {n: x if x is None else x.to("meta") for n, x in float32.items()},
    ):
        tensors = [*(own[n] for n in NAMES[:6]), positions, *(own[n] for n in NAMES[6:])]
        assert memory_kernel.memory(*tensors, EPS) is None  # type: ignore[arg-type]


def test_without_a_compiler_a_model_computes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model()
    expected = learnt(own)
    monkeypatch.setattr(library.cpu, "find_compiler", lambda: None)
    library._find.cache_clear()
    assert "no C++ compiler" in memory_kernel.unavailable_reason() == memory_kernel.kernel_missing(own)
    assert relative(learnt(own)["loss"], expected["loss"]) < 1e-6
    library._find.cache_clear()
