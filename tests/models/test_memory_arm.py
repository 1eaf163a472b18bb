"""The memory layer's kernel on an ARM processor, in the emulator: what it computes there is what it computes here."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from arm import build_for_arm, run_on_arm
from comparing import relative
from models.test_memory_kernel import Shape, fast, inputs, results
from torch import Tensor

from mm_rec.models import memory_kernel


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program for ARM that computes what was written down."""
    return build_for_arm(Path(__file__).with_name("replay_memory.cpp"), tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_arm_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, replay: Path, dtype: torch.dtype
) -> None:
    leaves, positions = inputs(Shape(70, 2, True))
    narrow = ("q", "k", "v", "gate", "history")
    leaves = {n: x.to(dtype).double() if n in narrow and x is not None else x for n, x in leaves.items()}

    def form(own: dict[str, Any], positions: Tensor) -> tuple[Tensor, Tensor]:
        return fast({n: own[n].to(dtype) if n in narrow else own[n] for n in own}, positions)

    expected = results(form, leaves, positions, torch.float32)

    def call(name: str, shape: Any, dtype: torch.dtype, tensors: list[Tensor | None]) -> None:
        """What `_call` does, there."""
        count = len(memory_kernel._Arrays._fields_)
        padded = [*tensors, *[None] * (count - len(tensors))]
        parts = [struct.pack("<2q", name == "memory_backward", dtype == torch.bfloat16), bytes(shape)]
        for tensor in padded:
            raw = None if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()
            parts += [struct.pack("<q", -1)] if raw is None else [struct.pack("<q", len(raw)), raw]
        (tmp_path / "in").write_bytes(b"".join(parts))
        run_on_arm(replay, tmp_path / "in", tmp_path / "out")
        found = (tmp_path / "out").read_bytes()
        for tensor in padded:
            if tensor is not None:
                size = tensor.numel() * tensor.element_size()
                tensor.view(-1).view(torch.uint8).copy_(
                    torch.frombuffer(bytearray(found[:size]), dtype=torch.uint8)
                )
                found = found[size:]

    monkeypatch.setattr(memory_kernel, "_call", call)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for name, value in results(form, leaves, positions, torch.float32).items():
        assert relative(value.double(), expected[name].double()) < limit, name
