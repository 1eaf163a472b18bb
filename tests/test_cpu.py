"""What a processor is known to do, what it is held to, and what libraries are told of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_rec import cpu
from mm_rec.errors import ConfigError

ZEN5 = {"sse4_2", "avx2", "fma3", "avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16"}
SKYLAKE_SERVER = ZEN5 - {"avx512_bf16"}
ZEN3 = {"sse4_2", "avx2", "fma3"}
SAPPHIRE_RAPIDS = ZEN5 | {"amx_bf16", "amx_tile", "amx_int8"}
PROBE = """
from mm_rec import cpu
cpu.configure_libraries()
import torch
torch.randn(64, 64) @ torch.randn(64, 64)
from mm_rec.runtime import choose_precision
from torch._inductor.cpp_builder import _get_cpu_arch_cflags
print(torch.backends.cpu.get_cpu_capability(), cpu.vector_isa(), *cpu.march_flags(),
      choose_precision("auto", torch.device("cpu")).name, *_get_cpu_arch_cflags("g++"))
"""


@pytest.mark.parametrize(
    ("architecture", "features", "held", "isa"),
    [
        ("x86_64", ZEN5, None, "avx512_bf16"),
        ("x86_64", SAPPHIRE_RAPIDS, None, "amx_bf16"),
        ("x86_64", SKYLAKE_SERVER, None, "avx512"),
        ("x86_64", ZEN3, None, "avx2"),
        ("x86_64", {"sse4_2"}, None, "sse4_2"),
        ("x86_64", set(), None, "unknown"),
        ("x86_64", SAPPHIRE_RAPIDS, "x86-64-v3", "avx2"),
        ("x86_64", ZEN3, "x86-64-v2", "sse4_2"),
        ("x86_64", {"sse4_2"}, "x86-64-v3", "sse4_2"),
        ("aarch64", set(), None, "neon"),
        ("riscv64", {"avx2", "fma3"}, None, "unknown"),
    ],
)
def test_the_best_vector_instructions(
    architecture: str, features: set[str], held: str | None, isa: str
) -> None:
    assert cpu.best_vector_isa(architecture, features, held) == isa


def test_a_level_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREC_ISA", "avx2")
    with pytest.raises(
        ConfigError, match=r"MMREC_ISA=avx2 is no level .* use x86-64-v2, x86-64-v3 or native"
    ):
        cpu.isa_limit()
    monkeypatch.setenv("MMREC_ISA", "x86-64-v3")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    with pytest.raises(ConfigError, match="this processor is arm64"):
        cpu.isa_limit()


@pytest.mark.skipif(cpu._architecture() != "x86_64", reason="the levels are those of x86-64 processors")
@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("x86-64-v2", "DEFAULT sse4_2 -march=x86-64-v2 float32 march=x86-64-v2"),
        ("x86-64-v3", "AVX2 avx2 -march=x86-64-v3 float32 march=x86-64-v3"),
    ],
)
def test_everything_is_held_to_a_level_at_once(level: str, shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"MMREC_ISA": level},
    )  # fmt: skip
    assert done.stdout.split() == shown.split()


def test_compiled_code_of_another_processor_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for flags in ("sse4_2 avx2", "sse4_2 avx2 avx512f"):
        for level in ("native", "x86-64-v2"):
            monkeypatch.setattr(cpu, "_flags", lambda flags=flags: flags)
            monkeypatch.setattr(cpu, "_architecture", lambda: "x86_64")
            monkeypatch.setenv("MMREC_ISA", level)
            cpu.configure_inductor_cache()
            keys.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(keys) == 4


def test_a_cache_of_the_user_is_kept_and_one_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    cpu.configure_inductor_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own") and (tmp_path / "own").is_dir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"file/cache, where compiled code is kept, cannot be made"):
        cpu.configure_inductor_cache()


def test_waiting_is_short_unless_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(variable, raising=False)
    cpu.configure_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == "1000" and os.environ["KMP_BLOCKTIME"] == "1"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cpu.configure_libraries()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cpu.configure_libraries()
    assert "GOMP_SPINCOUNT" not in os.environ
