"""flash-linear-attention in the place of ours: by transformers' reference of its function, as it needs a GPU."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from mm_rec.models import fla_recurrence
from mm_rec.models.mmrec.recurrence import step_recurrence

CPU = torch.device("cpu")


def reference(q: Any, k: Any, v: Any, g: Any, beta: Any, scale: float, **others: Any) -> Any:
    """Of the package's arguments; the reference divides queries by √K."""
    return torch_chunk_gated_delta_rule(q * scale * q.shape[-1] ** 0.5, k, v, g, beta, **others)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """The package with a function, on a device where it is used."""

    def install(function: Any) -> None:
        for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
            module = ModuleType(name)
            module.__spec__, module.chunk_gated_delta_rule = ModuleSpec(name, None), function
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(fla_recurrence, "_DEVICES", ("cpu",))
        fla_recurrence._prove.cache_clear()

    yield install
    fla_recurrence._prove.cache_clear()


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(1)
    q, k = (torch.nn.functional.normalize(torch.randn(2, 80, 2, 32), dim=-1).bfloat16() for _ in range(2))
    v, state = torch.randn(2, 80, 2, 32).bfloat16(), torch.randn(2, 2, 32, 32)
    beta, log_decay = torch.rand(2, 80, 2), -torch.rand(2, 80, 2) / 10
    positions = torch.cat([torch.arange(5, 35), torch.arange(20), torch.arange(30)]).expand(2, -1)
    return [q, k, v, beta, log_decay, positions, state]


def test_documents_and_states_are_those_of_the_step_form(installed) -> None:
    installed(reference)
    with torch.inference_mode():  # the proof needs gradients, whatever the caller does
        found = fla_recurrence.recurrence(*inputs())
    assert found is not None
    for ours, expected in zip(found, step_recurrence(*inputs()), strict=True):
        assert ours.dtype == expected.dtype
        assert (ours.float() - expected.float()).norm() < 0.02 * expected.float().norm()


def test_what_gives_other_results_is_not_used(installed) -> None:
    installed(lambda q, k, v, g, beta, **others: reference(q, k, v, 2 * g, beta, **others))
    assert "other results" in fla_recurrence.unavailable_reason(CPU, torch.bfloat16)
    assert fla_recurrence.recurrence(*inputs()) is None


def test_what_fails_is_not_used(installed) -> None:
    def fails(*arguments: Any, **others: Any) -> None:
        raise RuntimeError("no such GPU")

    installed(fails)
    assert "no such GPU" in fla_recurrence.unavailable_reason(CPU, torch.bfloat16)
    assert fla_recurrence.recurrence(*inputs()) is None


def test_without_the_package_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla_recurrence, "_DEVICES", ("cpu",))
    fla_recurrence._prove.cache_clear()
    assert fla_recurrence.recurrence(*inputs()) is None
