"""The kernels of decoding as a library, compiled for this machine when they are first used."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.cpp")
_OPTIONS = (
    "-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_LONGEST_COMPILATION = 300  # seconds


class NoCompilerError(Exception):
    """The kernels cannot be compiled here; the text says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels; seconds at the first call on a machine, then at once. Raises NoCompilerError."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        raise NoCompilerError("there is no C++ compiler (g++ or clang++)")
    key = "\0".join(
        [_SOURCE.read_text(encoding="utf-8"), compiler, *_OPTIONS, *_for_processor(), _processor()]
    )
    path = _cache() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        _compile(compiler, path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompilerError(f"the compiled kernels cannot be loaded ({error})") from error
    loaded.run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int]
    loaded.run.restype = None
    loaded.op_size.restype = ctypes.c_int64
    return loaded


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [compiler, *_OPTIONS, *_for_processor(), str(_SOURCE), "-o", str(fresh)]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=_LONGEST_COMPILATION
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompilerError(f"{compiler} cannot be used ({error})") from error
        if done.returncode:
            raise NoCompilerError(f"{compiler} refused the kernels: {done.stderr.strip()[:400]}")
        fresh.replace(path)


def _for_processor() -> list[str]:
    """GCC splits vectors of 512 bits in two unless it is told not to."""
    return ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoCompilerError(f"{base} cannot be written ({error.strerror})") from error
    return base


def _processor() -> str:
    """What the processor can do: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
