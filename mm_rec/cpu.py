"""The processor: its vector instructions, a limit on them (`MMREC_ISA`), and the settings of libraries and compilers.

`MMREC_ISA=x86-64-v2|x86-64-v3|native` holds a newer machine to the form of an older one (v2: SSE4.2; v3: AVX2 and FMA):
the choice of dtype, the decoder's flags, the code that torch generates, ATen, oneDNN and, where it obeys, MKL.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mm_rec.errors import ConfigError

ISA_VARIABLE = "MMREC_ISA"
NATIVE = "native"
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]  # of matrix products
VectorIsa = Literal["amx_bf16", "avx512_bf16", "avx512", "avx2", "sse4_2", "neon", "unknown"]

# What ATen, oneDNN, MKL and torch's compiler read from the environment; the names of the psABI's levels of x86-64.
_ISA_LIMITS = {
    "x86-64-v2": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v2",
    },
    "x86-64-v3": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    },
}
# OpenMP's threads wait actively at every barrier, and libgomp's without end: beside one other busy process a team of
# two on two processors is then a third as fast, or worse. A short while costs nothing alone (bench/beside.py): some
# 30 microseconds for libgomp (Linux), a millisecond for LLVM's and Intel's (macOS, Windows; not tried).
_OPENMP_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
# Best first: the vector instructions that decide what is fast, by torch's names of a processor's features.
_VECTORS: dict[str, tuple[VectorIsa, ...]] = {
    "x86_64": ("amx_bf16", "avx512_bf16", "avx512", "avx2", "sse4_2"),
    "aarch64": ("neon",),
}
_FEATURES: dict[VectorIsa, tuple[str, ...]] = {
    "amx_bf16": ("amx_bf16", "amx_tile"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"),
    "avx2": ("avx2", "fma3"),
    "sse4_2": ("sse4_2",),
    "neon": (),  # every 64-bit ARM has it
}
_SHOWN: dict[VectorIsa, str] = {
    "amx_bf16": "AMX BF16",
    "avx512_bf16": "AVX-512 BF16",
    "avx512": "AVX-512",
    "avx2": "AVX2",
    "sse4_2": "SSE4.2",
    "neon": "NEON",
    "unknown": "no vector instructions that are known here",
}


def isa_limit() -> str | None:
    """Return the level that this process is limited to; None for the machine's own. Raises ConfigError for no level."""
    name = os.environ.get(ISA_VARIABLE) or NATIVE
    if name == NATIVE:
        return None
    if name not in _ISA_LIMITS:
        raise ConfigError(
            f"{ISA_VARIABLE}={name} is no level of a processor; use {', '.join(_ISA_LIMITS)} or {NATIVE}"
        )
    if _architecture() != "x86_64":
        raise ConfigError(
            f"{ISA_VARIABLE}={name} is a level of x86-64, and this processor is {platform.machine()}"
        )
    return name


def configure_libraries() -> None:
    """Set the libraries' environment variables; call it before torch is imported. Child processes inherit them."""
    name = isa_limit()
    if name is not None:
        os.environ.update(_ISA_LIMITS[name])
    if "OMP_WAIT_POLICY" not in os.environ:
        for variable, value in _OPENMP_SPIN.items():
            os.environ.setdefault(variable, value)
    configure_inductor_cache()


def configure_inductor_cache() -> None:
    """Give torch's compiler a cache for this processor alone: its own knows nothing of what the code was made for.

    Raises ConfigError where the folder cannot be made: torch would not even be imported.
    """
    ours = str(Path(tempfile.gettempdir()) / f"torchinductor_{_user()}_mmrec_")
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ours))
    if str(folder).startswith(ours):
        folder = Path(ours + fingerprint())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}, where compiled code is kept, cannot be made ({error.strerror}). "
            "Name another folder in the environment variable TORCHINDUCTOR_CACHE_DIR"
        ) from error
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def vector_isa() -> VectorIsa:
    """Return the best vector instructions that this process may use."""
    return best_vector_isa(_architecture(), _features(), isa_limit())


def best_vector_isa(architecture: str, features: Iterable[str], held: str | None) -> VectorIsa:
    """Return the best vector instructions among torch's names of features, limited to a level or not."""
    allowed = {None: None, "x86-64-v2": ("sse4_2",), "x86-64-v3": ("avx2", "sse4_2")}[held]
    there = set(features)
    for isa in _VECTORS.get(architecture, ()):
        if (allowed is None or isa in allowed) and there.issuperset(_FEATURES[isa]):
            return isa
    return "unknown"


def has_native_bfloat16() -> bool:
    """Return whether bfloat16 matrix products are native, and so faster than those of float32."""
    return vector_isa() in ("amx_bf16", "avx512_bf16")


def march_flags() -> list[str]:
    """Return the flags by which g++ and clang++ compile for what this process may use."""
    held = isa_limit()
    if held is not None:
        return [f"-march={held}"]
    return ["-mcpu=native"] if _architecture() == "aarch64" else ["-march=native"]


def find_compiler() -> str | None:
    """Return the C++ compiler, for torch's generated code and for the kernels; None where there is none."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)


def describe() -> str:
    """Describe the processor in a few words."""
    isa = _SHOWN[vector_isa()]
    held = isa_limit()
    return f"{model_name()}, {isa}" if held is None else f"{model_name()}, held to {held} ({isa})"


@functools.cache
def model_name() -> str:
    """Return the system's name of the processor."""
    if name := _cpuinfo("model name"):
        return name
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def fingerprint() -> str:
    """Return 16 letters for the processor's instructions and its limit: the key of caches of compiled code."""
    return hashlib.sha256(
        "\0".join([platform.machine(), _flags(), isa_limit() or NATIVE]).encode()
    ).hexdigest()[:16]


def _architecture() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def _features() -> frozenset[str]:
    import torch

    return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)


@functools.cache
def _flags() -> str:
    """Return the instructions of the processor as the system lists them, without importing torch."""
    return _cpuinfo("flags") or _cpuinfo("Features") or model_name()


def _cpuinfo(name: str) -> str | None:
    """Return a field of the first processor in /proc/cpuinfo; None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _sysctl(name: str) -> str | None:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name, and Windows has no pwd
        return "user"
