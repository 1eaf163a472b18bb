"""bench/gpu.py on a GPU that is not there, so that the first minutes on a real one are not lost to a typing error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import NAME, fake_gpu

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.mark.seldom(covers=["bench/*.py", "mm_rec/training/*", "mm_rec/inference/*.py"])
def test_every_row_of_the_gpu_bench_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    monkeypatch.setattr(gpu, "PEER_LENGTHS", (32,))
    monkeypatch.setattr(gpu, "PROMPT", 6)
    sizes = gpu.Sizes(shapes=("llama_tiny",), lengths=(32,), tokens=64, steps=8, streams=(1, 3), new=3)
    with fake_gpu():
        device = torch.device(NAME, 0)
        made = {
            name: gpu.guarded(name, make, device)
            for name, make in gpu.rows(device, sizes)
            if name != "resume"
        }
    assert not {name: row for name, row in made.items() if "error" in row}
    assert len(made) == 3 + 1 + 2 + 4
    for family in gpu.FAMILIES:
        row = made[f"forms-{family}"]
        assert row["float32_loss"] < 1e-5 and row["float32_gradient"] < 1e-4 and row["text"] == "48 of 48"
        assert row["float16_loss"] < 1e-2
    assert all(row["tokens_per_second"] > 0 for name, row in made.items() if not name.startswith("forms"))
    assert made["train-llama_tiny-32"]["mfu"] > 0
    sys.modules.pop("gpu")
