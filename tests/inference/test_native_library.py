"""How the kernels are compiled: flags for each kind of machine, the cache, and what is said where it cannot be done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec import cpu
from mm_rec.inference.engine import Engine
from mm_rec.inference.native.decoder import KernelDecoder
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.presets import build, preset
from mm_rec.models.states import new_state
from mm_rec.native import library
from mm_rec.native.library import compiler_flags, native_library

IDS = [5, 17, 250, 3, 99, 42, 7, 7]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """The kernels are looked for anew, in each test and after it."""
    library._find.cache_clear()
    yield
    library._find.cache_clear()


def make() -> PreTrainedModel:
    return build(preset("tiny").config(300, num_hidden_layers=2), seed=1).eval()


@torch.inference_mode()
def logits_of(decoder: KernelDecoder, model: PreTrainedModel) -> Tensor:
    state = new_state(model, model.dtype, "cpu")
    return torch.cat([decoder.forward([state], [[token]], [-1]) for token in IDS])


@torch.inference_mode()
def test_without_a_compiler_the_model_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = make()
    engine = Engine(model)
    assert "C++ compiler" in engine.fallback_reason
    session = engine.session()
    session.prefill(IDS)
    reply = list(session.generate(SamplingParams(temperature=0, max_new_tokens=5)))
    for place, token in enumerate(reply):
        whole = model(input_ids=torch.tensor([IDS + reply[:place]]), use_cache=False).logits
        assert int(whole[0, -1].argmax()) == token


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where compiled kernels are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmrec"


def compiler(path: Path, script: str) -> str:
    """A compiler that is a few lines of shell; `$CC` is the real one."""
    real = shutil.which("g++") or shutil.which("clang++")
    if real is None:
        pytest.skip("there is no C++ compiler (apt-get install g++)")
    path.write_text(f"#!/bin/sh\nCC={real}\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


FULL_DISK = 'ulimit -f 8; exec $CC "$@"'  # no file may be longer than 8 blocks
HALF_A_LIBRARY = '[ "$1" = --version ] && exit; for last; do :; done; echo half > "$last"'


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 1", "refused"), (FULL_DISK, "refused"), (HALF_A_LIBRARY, "cannot be loaded")],
    ids=["fails", "full disk", "half a library"],
)
def test_a_compiler_that_fails_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, script: str, said: str
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", script))
    assert said in Engine(make()).fallback_reason
    assert not list(cache.iterdir())


def test_a_compiler_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert "/no/such/compiler cannot be used" in Engine(make()).fallback_reason


@pytest.mark.usefixtures("compiler")
def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that root cannot write either."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be kept" in Engine(make()).fallback_reason


def test_a_processor_that_the_kernels_do_not_know_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "vector_isa", lambda: "unknown")
    monkeypatch.setattr(cpu, "model_name", lambda: "a RISC-V")
    assert "do not know this processor (a RISC-V)" in Engine(make()).fallback_reason


@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_are_those_of_this_processor_and_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    log, built = tmp_path / "log", native_library("decoding")._name
    library._find.cache_clear()
    script = (
        f'for last; do :; done; [ $1 = --version ] && echo $V || {{ echo x >> {log}; cp {built} "$last"; }}'
    )
    monkeypatch.setenv("CXX", compiler(tmp_path / "c++", script))
    for count, (version, fingerprint) in enumerate([("1", "a"), ("2", "a"), ("1", "b")], 1):
        monkeypatch.setenv("V", version)
        monkeypatch.setattr(cpu, "fingerprint", lambda key=fingerprint: key)
        for _ in range(2):
            library._find.cache_clear()
            native_library("decoding")
        assert len(log.read_text().split()) == count == len(list(cache.iterdir())) - 1


def test_flags_for_each_kind_of_machine() -> None:
    native, held = ["-march=native"], ["-march=x86-64-v3"]
    for system, machine, target, there, not_there in [
        ("Linux", "x86_64", native, {"-march=native", "-mprefer-vector-width=512"}, set()),
        ("Linux", "x86_64", held, {"-march=x86-64-v3"}, {"-march=native", "-mcpu=native"}),
        ("Linux", "aarch64", ["-mcpu=native"], {"-mcpu=native"}, {"-mprefer-vector-width=512"}),
        ("Darwin", "arm64", ["-mcpu=native"], {"-mcpu=native"}, {"-mprefer-vector-width=512"}),
        ("Darwin", "x86_64", native, {"-march=native", "-mprefer-vector-width=512"}, set()),
    ]:
        flags = set(compiler_flags(system, machine, target))
        assert there <= flags and not not_there & flags and "-fopenmp" not in flags
    for system in ("Windows", "Java"):
        assert not compiler_flags(system, "AMD64", native)


def test_programs_are_run_one_after_the_other_by_any_number_of_threads() -> None:
    """Several callers at once, each with another number of threads: every one gets what one thread computes."""
    model = make()
    expected = logits_of(KernelDecoder(model, 1), model)
    decoders = [KernelDecoder(model, threads) for threads in (1, 2, 3, 5)]
    with ThreadPoolExecutor(len(decoders)) as pool:
        for _ in range(20):
            for logits in pool.map(lambda decoder: logits_of(decoder, model), decoders):
                assert torch.equal(logits, expected)
