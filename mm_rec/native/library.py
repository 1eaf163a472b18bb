"""Our kernels in C++ as libraries, compiled for this machine when they are first used."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mm_rec import cpu

_FOLDER = Path(__file__).parent
_HEADERS = ("vectors.h",)
_OPTIONS = ("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math")
_LONGEST_COMPILATION = 300  # seconds


SourceName = Literal["decoding", "memory"]  # decoding of any model; the memory layer in training and prefill


class NoCompilerError(Exception):
    """The kernels cannot be compiled here; the text says why."""


def native_library(name: SourceName) -> ctypes.CDLL:
    """Return the compiled kernels of a source: seconds the first time on a machine. Raises NoCompilerError.

    It is looked for once in a process, also where there is none.
    """
    found = _find(name)
    if isinstance(found, str):
        raise NoCompilerError(found)
    return found


@functools.cache
def _find(name: SourceName) -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none."""
    try:
        return _compiled(name)
    except NoCompilerError as error:
        return str(error)


def _compiled(name: SourceName) -> ctypes.CDLL:
    if cpu.vector_isa() == "unknown":
        raise NoCompilerError(f"the kernels do not know this processor ({cpu.model_name()})")
    flags = compiler_flags(platform.system(), platform.machine(), cpu.march_flags())
    if not flags:
        raise NoCompilerError(f"the kernels are not built on {platform.system()}")
    compiler = cpu.find_compiler()
    if compiler is None:
        raise NoCompilerError("there is no C++ compiler (g++ or clang++)")
    try:
        path = _cached(name, compiler, flags)
        return _load(path) if path.is_file() else _build(_source(name), compiler, flags, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        raise NoCompilerError(f"the compiled kernels cannot be kept ({error})") from error


def compiler_flags(system: str, machine: str, target: Sequence[str]) -> list[str]:
    """The flags of g++ and clang++ on a kind of machine; none where the kernels are not built. macOS is untested."""
    if system not in ("Linux", "Darwin"):
        return []
    wide = machine in ("x86_64", "AMD64")  # GCC splits vectors of 512 bits in two unless it is told not to
    return [*_OPTIONS, *target, *["-mprefer-vector-width=512"] * wide]


def _source(name: SourceName) -> Path:
    return _FOLDER / f"{name}.cpp"


def _cached(name: SourceName, compiler: str, flags: Sequence[str]) -> Path:
    """Return the path of the compiled kernels, named by all that they depend on: machines may share a home folder."""
    texts = [path.read_text(encoding="utf-8") for path in (_source(name), *map(_FOLDER.joinpath, _HEADERS))]
    key = [*texts, compiler, _version(compiler), *flags]
    digest = hashlib.sha256("\0".join([*key, cpu.fingerprint()]).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{digest[:16]}.so"


def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).stdout


def _build(source: Path, compiler: str, flags: Sequence[str], path: Path) -> ctypes.CDLL:
    """Compile, and keep what can be loaded: nothing else is ever found under that name."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        done = _run([compiler, *flags, str(source), "-o", str(fresh)])
        if done.returncode:
            raise NoCompilerError(f"{compiler} refused the kernels: {done.stderr.strip()[:400]}")
        _load(fresh)
        fresh.replace(path)
    return _load(path)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompilerError(f"the compiled kernels cannot be loaded ({error})") from error


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_LONGEST_COMPILATION
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(f"{command[0]} cannot be used ({error})") from error
