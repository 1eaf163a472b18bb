"""A compiler that fails costs a sentence, not the training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from mm_rec import cpu
cpu.configure_libraries()
import torch
from mm_rec.models.forward import layers_are_compiled
from mm_rec.models.presets import build, preset
from mm_rec.training.compilation import compile_for_training
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.objectives import next_token

model = build(preset("tiny").config(50, num_hidden_layers=1, hidden_size=64), seed=0)
config = ResolvedTrainSection(steps=1, seq_len=16, batch_size=2, learning_rate=0.1, precision="float32")
before = torch.get_rng_state()
print(compile_for_training(model, config, print), layers_are_compiled(model))
assert torch.equal(before, torch.get_rng_state())
assert all(parameter.grad is None for parameter in model.parameters())
ids = torch.arange(32).view(2, 16)
next_token(torch.float32)(model, {"input_ids": ids, "labels": ids})["loss"].total.backward()
"""


def run(folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False,
        env=os.environ | environment, timeout=280, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "rest", ["exit 1", 'for last; do :; done; : > "$last"'], ids=["fails", "writes nothing"]
)
def test_a_compiler_that_fails_is_said_and_training_goes_on(rest: str, tmp_path: Path) -> None:
    """The second leaves an empty file, as a full disk and a process killed at a bad moment do."""
    compiler = tmp_path / "g++"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) exec g++ "$@";; esac\n{rest}\n', encoding="utf-8"
    )
    compiler.chmod(0o755)
    *said, end = run(tmp_path, CXX=str(compiler), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert len(said) == 1
    assert said[0].startswith("layers are not compiled, which is slower: the compiler failed (")
    assert end == "False False"


def test_a_compiler_that_works_compiles(tmp_path: Path) -> None:
    assert run(tmp_path) == ["True True"]
