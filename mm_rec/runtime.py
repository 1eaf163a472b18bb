"""The machine: device, precision, threads, seeds, measured speed, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import platform
import random
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

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
    """Choose the device: "auto" takes the GPU with the most free memory, or Apple's where it is faster than the CPU.

    Raises ConfigError for a device that is not there or cannot be used, and says what to do.
    """
    if name == "auto":
        return _best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, and {_why_no_cuda() or 'torch sees no GPU here. Use --device cpu'}"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {name!r} was asked for, and this is no Apple machine with one. Use --device cpu"
        )
    module = torch.get_device_module(device)
    count = module.device_count()
    if device.index is not None and device.index >= count:
        last = f"{device.type}:{count - 1}"
        raise ConfigError(f"there is no device {name!r}: the last one here is {last}")
    if device.index is None and device.type == "cuda":
        device = _freest_gpu()
    _require_usable(device)
    return device


def _best_device() -> torch.device:
    """The GPU with the most free memory, Apple's where a matrix product is faster there, or the CPU."""
    if torch.cuda.is_available():
        device = _freest_gpu()
        _require_usable(device)
        return device
    cpu_device = torch.device("cpu")
    if not torch.backends.mps.is_available():
        return cpu_device
    apple = torch.device("mps", 0)
    rates = [
        measure_peak_flops(choose_precision("auto", device).dtype, device, seconds=0.4)
        for device in (cpu_device, apple)
    ]
    return apple if rates[1] > rates[0] else cpu_device


def _freest_gpu() -> torch.device:
    """Of several GPUs that with the most free memory."""
    count = torch.cuda.device_count()
    free = [_free_or_nothing(index) for index in range(count)] if count > 1 else [0]
    return torch.device("cuda", free.index(max(free)))


def _free_or_nothing(index: int) -> int:
    """Free bytes of a GPU; −1 for one that refuses to say, as one does that another program holds alone."""
    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        return -1


def _require_usable(device: torch.device) -> None:
    """Raise ConfigError where the device is there and refuses work: taken by another program, or too old for torch."""
    try:
        torch.zeros(1, device=device) + 1
    except (RuntimeError, torch.AcceleratorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the device {device} cannot be used: {first}. Is another program using it alone, or is its "
            "driver too old? Another one is chosen by --device cuda:1, the processor by --device cpu"
        ) from error


def _why_no_cuda() -> str:
    """Why torch uses no GPU of NVIDIA though the machine has one, and what mends it; nothing where it has none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # on purpose
    if hidden or not _has_nvidia_gpu():
        return ""
    if torch.version.cuda or torch.version.hip:
        return (
            f"torch is made for CUDA {torch.version.cuda} and cannot use this machine's GPU: its driver is too old or "
            "not loaded. Install NVIDIA's newest driver, and see that nvidia-smi shows the GPU"
        )
    version = torch.__version__.partition("+")[0]
    index = " --index-url https://download.pytorch.org/whl/cu130" if sys.platform == "win32" else ""
    return (
        "this machine has an NVIDIA GPU and a torch without CUDA. This command mends it: "
        f"pip install --force-reinstall torch=={version}{index}"
    )


def _has_nvidia_gpu() -> bool:
    return pathlib.Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def unused_gpu() -> str:
    """A sentence where the machine has a GPU that is not used, and what mends it; else nothing."""
    return "" if torch.cuda.is_available() else _why_no_cuda()


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Choose bfloat16 where the hardware multiplies it natively, float16 on other GPUs, float32 on the rest.

    Raises ConfigError for a dtype that the device has not.
    """
    native = _multiplies_bfloat16(device)
    if name != "auto":
        if name == "bfloat16" and device.type == "cuda" and not native:
            raise ConfigError(
                f"{device_name(device)} has no bfloat16 matrix products; use --precision float16, or float32"
            )
        return Precision(getattr(torch, name), "asked for")
    if device.type == "cpu":
        if native:
            return Precision(torch.bfloat16, "this processor multiplies bfloat16 natively")
        return Precision(torch.float32, "this processor has no bfloat16 matrix product")
    if device.type == "mps":
        return Precision(torch.float32, "what is known to be right on Apple silicon")
    if native:
        return Precision(torch.bfloat16, f"{device_name(device)} multiplies it natively")
    return Precision(torch.float16, f"{device_name(device)} has no bfloat16 matrix product")


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        return cpu.has_native_bfloat16()
    if device.type != "cuda":
        return False
    # torch.cuda.is_bf16_supported asks the current device alone.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def widest_float(device: torch.device) -> torch.dtype:
    """The dtype of sums over many tokens: float64 where it is known to be there, which it is not on Apple's GPUs."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that a device's memory is full: Apple's are no `torch.OutOfMemoryError`."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def empty_cache(device: torch.device) -> None:
    """Give back what torch keeps of a device's freed memory."""
    release = getattr(torch.get_device_module(device), "empty_cache", None)
    if release is not None:
        release()


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch of the CPU on a device; the copies to a GPU are not waited for."""
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=device.type == "cuda") for name, tensor in batch.items()}


def measure_peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Measure the floating-point operations a second of a large matrix product (the best of several)."""
    size = 4096 if device.type in ("cuda", "mps") else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    for _ in range(3):
        left @ right
    while best == 0 or time.perf_counter() < end:  # once at least, however busy the machine is
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator: tensors for torch, plain values for python and numpy."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device).tolist()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore every random generator to a state of `get_rng_state`; the device's where that was of the same kind."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type in state:
        words = state[device.type]
        if words and isinstance(words[0], list):  # of older checkpoints, one for each GPU
            words = words[min(device.index or 0, len(words) - 1)]
        saved = torch.tensor(words, dtype=torch.uint8)
        torch.get_device_module(device).set_rng_state(saved, device)


def memory_bytes(device: torch.device) -> int:
    """Return the device's total memory in bytes."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if device.type == "cpu":
        return int(psutil.virtual_memory().total)
    return int(torch.get_device_module(device).mem_get_info(device)[1])


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory in bytes that this process may have: of a GPU what other programs leave, else all of it."""
    if device.type in ("cpu", "mps"):
        return memory_bytes(device)
    module = torch.get_device_module(device)
    return int(module.mem_get_info(device)[0] + module.memory_reserved(device))


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory so far in bytes: of the GPU, or of this process; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
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
    if device.type == "cpu":
        return cpu.describe()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu.model_name()}'s GPU" if device.type == "mps" else device.type


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
