"""Programs for 64-bit ARM: compiled here, run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mm_rec.native import library
from mm_rec.native.library import compiler_flags

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def build_for_arm(source: Path, folder: Path) -> Path:
    """The program of a source with kernels; the test is skipped where ARM's compiler or emulator is absent."""
    if not shutil.which(COMPILER) or not shutil.which(EMULATOR):
        pytest.skip(f"{COMPILER} or {EMULATOR} is absent: apt-get install g++-aarch64-linux-gnu qemu-user")
    binary = folder / source.stem
    flags = [flag for flag in compiler_flags("Linux", "aarch64", ["-march=armv8-a"]) if flag != "-shared"]
    kernels = Path(library.__file__).parent
    subprocess.run([COMPILER, *flags, "-static", f"-I{kernels}", str(source), "-o", str(binary)], check=True)
    return binary


def run_on_arm(binary: Path, *arguments: Path) -> None:
    """Run a program in the emulator."""
    subprocess.run([EMULATOR, str(binary), *map(str, arguments)], check=True, timeout=300)
