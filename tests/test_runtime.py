"""What the C library does with freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mm_rec.runtime import trim_malloc

of_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory so: needs Linux with it"
)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


@of_glibc
def test_freed_memory_goes_back_though_something_lies_behind_it() -> None:
    blocks = [b"x" * (2**16 + number) for number in range(2_000)]
    held = blocks[::50]  # of every 3 MB the last 64 KB
    blocks.clear()
    before = resident_bytes()
    trim_malloc()
    assert before - resident_bytes() > 64 * 2**20
    assert len(held) == 40


_STEPS = """
import torch
from test_runtime import resident_bytes
from mm_rec.runtime import disable_malloc_trim, trim_malloc
disable_malloc_trim()
before = resident_bytes()
for step in range(10):
    activations = [torch.ones(2_000_000) for _ in range(30)]
    del activations
    print(resident_bytes() - before)
trim_malloc()
print(resident_bytes() - before)
"""


@of_glibc
def test_training_keeps_what_a_step_frees_until_it_is_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True, timeout=120,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    *steps, returned = (int(number) / 1e6 for number in done.stdout.split())
    assert 230 < min(steps[1:]) <= max(steps) < 400  # each takes 240
    assert returned < 40
