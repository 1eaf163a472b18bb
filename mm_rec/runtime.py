"""The machine: device, precision, threads, seeds, measured speed, memory."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from mm_rec import cpu
from mm_rec.cpu import PrecisionName
from mm_rec.errors import ConfigError

# Of glibc's malloc.h, and what training sets: nothing is returned, the heap grows by 64 MiB at a time, and blocks of
# up to 32 MiB, the most that glibc allows, come from it.
_MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 << 20), "M_MMAP_THRESHOLD": (-3, 32 << 20)}


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtype of matrix products (weights stay float32), and why it was chosen."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """The dtype's name, as recipes write it."""
        return str(self.dtype).removeprefix("torch.")


def choose_device(name: str = "auto") -> torch.device:
    """Choose the device: "auto" takes a GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, and torch sees no GPU here. Use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use auto, cpu or cuda") from error


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Choose bfloat16 where the hardware multiplies it natively, else float32, unless one is asked for."""
    if name != "auto":
        return Precision(getattr(torch, name), "asked for")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(torch.bfloat16 if native else torch.float32, f"{torch.cuda.get_device_name(device)}")
    if cpu.has_native_bfloat16():
        return Precision(torch.bfloat16, "this processor multiplies bfloat16 natively")
    return Precision(torch.float32, "this processor has no bfloat16 matrix product")


def measure_peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Measure the floating-point operations a second of a large matrix product (the best of several)."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    for _ in range(3):
        left @ right
    while best == 0 or time.perf_counter() < end:  # once at least, however busy the machine is
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """Return the state of every random generator: tensors for torch, plain values for python and numpy."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [one.tolist() for one in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore every random generator to a state of `get_rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]])


def memory_bytes(device: torch.device) -> int:
    """Return the device's total memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory so far in bytes: of the GPU, or of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def disable_malloc_trim() -> None:
    """Let the C library keep what a training step frees, for the next one.

    glibc hands large tensors back to the system when they are freed, and gets them again a moment later, page by page
    and zeroed: a sixth of a step of `tiny`. The peak is the same (bench/RESULTS.md).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # as below
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.values():
            mallopt(parameter, value)


def trim_malloc() -> None:
    """Give freed tensors back to the system: the C library would keep gigabytes of the states of ended sessions."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # of glibc alone; Windows has no CDLL(None)
        ctypes.CDLL(None).malloc_trim(0)


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with its instructions."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu.describe()


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine for a run's lineage."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(device),
    }
