"""Which device and dtype are chosen on machines that are not here: torch's answers about them are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from mm_rec import runtime
from mm_rec.errors import ConfigError
from mm_rec.runtime import choose_device, choose_precision

GIB = 1 << 30


@dataclass(frozen=True)
class GPU:
    name: str
    capability: tuple[int, int]
    free: int


T4 = GPU("Tesla T4", (7, 5), 15 * GIB)
RTX_4090 = GPU("NVIDIA GeForce RTX 4090", (8, 9), 23 * GIB)
A100 = GPU("NVIDIA A100-SXM4-80GB", (8, 0), 79 * GIB)
H200 = GPU("NVIDIA H200", (9, 0), 139 * GIB)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def pretend(gpus: Sequence[GPU] = (), apple: bool = False) -> None:
        for name, answer in {
            "is_available": lambda: bool(gpus),
            "device_count": lambda: len(gpus),
            "mem_get_info": lambda device=0: (gpus[torch.device("cuda", device).index].free, 0),
            "get_device_name": lambda device=0: gpus[torch.device(device).index or 0].name,
            "get_device_capability": lambda device=0: gpus[torch.device(device).index or 0].capability,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
        monkeypatch.setattr(torch.mps, "device_count", lambda: int(apple))
        monkeypatch.setattr(runtime, "_require_usable", lambda device: None)

    return pretend


@pytest.mark.parametrize(
    ("gpus", "device", "dtype"),
    [
        ([T4], "cuda:0", torch.float16),
        ([RTX_4090], "cuda:0", torch.bfloat16),
        ([A100], "cuda:0", torch.bfloat16),
        ([H200], "cuda:0", torch.bfloat16),
        ([T4, A100], "cuda:1", torch.bfloat16),
        ([A100, T4], "cuda:0", torch.bfloat16),
    ],
)
def test_auto_takes_the_gpu_with_the_most_free_memory_and_its_dtype(machine, gpus, device, dtype) -> None:
    machine(gpus)
    chosen = choose_device("auto")
    assert str(chosen) == str(choose_device("cuda")) == device
    assert choose_precision("auto", chosen).dtype == dtype


def test_auto_without_a_gpu_is_the_processor(machine) -> None:
    machine()
    assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("rates", "chosen"), [({"cpu": 1e11, "mps": 2e12}, "mps"), ({"cpu": 2e12, "mps": 1e11}, "cpu")]
)
def test_apples_gpu_is_taken_where_it_is_faster(
    machine, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], chosen: str
) -> None:
    machine(apple=True)
    monkeypatch.setattr(runtime, "measure_peak_flops", lambda dtype, device, seconds: rates[device.type])
    device = choose_device("auto")
    assert device.type == chosen
    if chosen == "mps":
        assert choose_precision("auto", device).dtype == torch.float32
        assert runtime.widest_float(device) == torch.float32  # it has no float64


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("cuda:7", [T4, A100], "the last one here is cuda:1"),
        ("mps", [], "no Apple machine"),
        ("gpu", [], "use auto, cpu, cuda, cuda:1 or mps"),
        ("cuda", [], "torch sees no GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine, monkeypatch, name, gpus, words) -> None:
    machine(gpus)
    monkeypatch.setattr(runtime, "_has_nvidia_gpu", lambda: False)
    with pytest.raises(ConfigError, match=words):
        choose_device(name)


@pytest.mark.parametrize(
    ("built_for", "words"),
    [(None, r"pip install --force-reinstall torch==[\d.]+"), ("13.0", "driver is too old or not loaded")],
)
def test_a_gpu_that_torch_cannot_use_is_named_with_what_mends_it(
    machine, monkeypatch, built_for, words
) -> None:
    machine()
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(runtime, "_has_nvidia_gpu", lambda: True)
    with pytest.raises(ConfigError, match=words):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    assert runtime.unused_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not runtime.unused_gpu()  # it is hidden on purpose


def test_a_gpu_that_refuses_work_is_named(machine, monkeypatch) -> None:
    refused = runtime._require_usable
    machine([A100])
    monkeypatch.setattr(runtime, "_require_usable", refused)

    def zeros(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(
        ConfigError, match=r"cuda:0 cannot be used: .*busy or unavailable\. Is another program"
    ):
        choose_device("auto")


def test_bfloat16_on_a_gpu_that_only_emulates_it_is_refused(machine) -> None:
    machine([T4])
    with pytest.raises(ConfigError, match="--precision float16"):
        choose_precision("bfloat16", torch.device("cuda", 0))
