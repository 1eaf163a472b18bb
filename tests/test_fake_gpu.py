"""Every stage on a GPU that is not there (fake_gpu.py): no operator of two devices, the CPU's results, few waits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from fake_gpu import NAME, fake_gpu
from typer.testing import CliRunner

from mm_rec.cli.main import app
from mm_rec.errors import TrainingStopped
from mm_rec.models.presets import build, preset
from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.micro_step import micro_step
from mm_rec.training.objectives import next_token
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.step import training_step

FAMILIES = ("tiny", "hybrid_tiny", "llama_tiny")
SHORT = ("--precision", "float32", "--steps", "3", "--seq-len", "64", "--batch-size", "4", "--runs", "runs")


class PackedRows:
    """Rows of several documents, the same at every step."""

    def __init__(self, rows: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 400, (rows, length), generator=generator)
        self.documents = (torch.arange(length) // (length // 3)).expand(rows, -1)

    def batch_at(self, step: int, micro_step: int = 0) -> dict[str, torch.Tensor]:
        labels = self.ids.masked_fill(self.documents == 1, -100)
        return {"input_ids": self.ids, "labels": labels, "document_ids": self.documents}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_cpus_and_waits_once(family: str) -> None:
    section = ResolvedTrainSection(steps=10, seq_len=128, batch_size=2, learning_rate=1e-3, accumulation=2)
    results, weights = [], []

    def step(device: str) -> list[str]:
        with fake_gpu() as record:
            model = build(preset(family).config(400), seed=1).double().to(device)
            optimizer, said = OptimizerSet(model, section), []
            run = micro_step(model, next_token(torch.float64), None, said.append)
            record.synchronisations.clear()
            for number in range(2):
                done = training_step(model, PackedRows(2, 128), run, optimizer, section, number, 1e-3)
                results.append((done.means["loss"], done.norm, done.tokens))
            assert not said, said
            waits = list(record.synchronisations)
            weights.append([one.detach().to("cpu") for one in model.parameters()])
            return waits

    step("cpu")
    waits = step(NAME)
    assert results[:2] == [pytest.approx(one, rel=1e-6) for one in results[2:]]
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert [wait.rpartition(":")[0] for wait in waits] == 2 * ["tolist at training/step.py"]


def test_float16_is_scaled_and_recorded_there_too() -> None:
    section = ResolvedTrainSection(steps=10, seq_len=128, batch_size=2, learning_rate=1e-3)
    found = {}
    for device, dtype in (("cpu", torch.float32), (NAME, torch.float16)):
        with fake_gpu() as record:
            model, scaler = build(preset("tiny").config(400), seed=1).to(device), None
            if dtype == torch.float16:
                scaler = LossScaler()
            run = micro_step(model, next_token(dtype), scaler, print)
            optimizer, rows = OptimizerSet(model, section), PackedRows(2, 128)
            steps = [
                training_step(model, rows, run, optimizer, section, n, 1e-3, scaler=scaler) for n in range(4)
            ]
        found[device] = [value for one in steps for value in (one.means["loss"], one.norm)]
    assert record.launches["graph"] == 3
    assert found[NAME] == pytest.approx(found["cpu"], rel=0.01)
    assert found[NAME] != found["cpu"]


def test_an_operator_of_two_devices_is_refused() -> None:
    with fake_gpu() as record:
        on_device = torch.ones(3).to(NAME)
        with pytest.raises(RuntimeError, match="of the CPU together"):
            on_device + torch.ones(3)
        assert float((2 * on_device).sum()) == 6
    assert record.launches["mul.Tensor"] == 1
    assert record.synchronisations == ["_local_scalar_dense at ?"]


def test_dtypes_that_a_device_lacks_are_refused() -> None:
    with fake_gpu(without={torch.float64}), pytest.raises(TypeError, match="float64"):
        torch.zeros(3, dtype=torch.float64, device=NAME)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = (f"Küçük kız ırmağın kıyısında {i * 7} taş topladı ve {i} gün bekledi." for i in range(1500))
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    turns = (
        [{"role": "user", "content": f"Kaç taş {i}?"}, {"role": "assistant", "content": f"{i * 7} taş."}]
        for i in range(100)
    )
    rows = "\n".join(json.dumps({"messages": one}, ensure_ascii=False) for one in turns)
    (tmp_path / "chats.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def losses(output: str) -> list[str]:
    return re.findall(r"loss ([\d.]+)", output)


@pytest.mark.seldom(
    covers=["mm_rec/training/*", "mm_rec/models/*", "mm_rec/pipeline/*", "mm_rec/inference/*.py"]
)
@pytest.mark.parametrize("family", ["tiny", "llama_tiny"])
def test_every_stage_is_the_cpus(files: Path, family: str) -> None:
    """Pre-training, tuning, an adapter and text, with the CPU's losses and words; where Apple's dtypes are enough."""
    outputs: dict[str, list[object]] = {}
    for device in ("cpu", NAME):
        with fake_gpu(without={torch.float64} if device == NAME else ()) as record:
            place, base = ("--device", device), f"runs/{device}"
            made = [run("pretrain", "text.txt", "--size", family, "--name", device, *SHORT, *place)]
            made.append(run("sft", "chats.jsonl", "--from", base, "--name", f"{device}-sft", *SHORT, *place))
            lora = ("lora", "chats.jsonl", "--from", base, "--name", f"{device}-lora", "--dropout", "0")
            made.append(run(*lora, *SHORT, *place))
            text = run(
                "generate", base, "--prompt", "Küçük", "--max-new-tokens", "8", "--temperature", "0", *place
            )
        outputs[device] = [*map(losses, made), text.partition("\n\n")[0]]
    assert record.launches["graph"]
    assert outputs["cpu"] == outputs[NAME]


@pytest.mark.parametrize(
    "setting", [("--segment-len", "32"), ("--state-passing", "0.9"), ("--seq-len-start", "32")]
)
def test_forms_of_long_training_are_the_cpus(files: Path, setting: tuple[str, str]) -> None:
    found = []
    for device in ("cpu", NAME):
        with fake_gpu():
            options = ("--size", "tiny", "--name", device, *SHORT, *setting, "--device", device)
            found.append(losses(run("pretrain", "text.txt", *options)))
    assert found[0] == found[1]


def test_batches_are_as_large_as_the_memory_holds(files: Path) -> None:
    """Less memory, fewer rows at a time; a step reads as many, and learns the same."""
    shown = []
    for name, memory in (("large", None), ("small", 150 << 20)):
        with fake_gpu(memory=memory):
            options = (
                "--steps",
                "2",
                "--seq-len",
                "64",
                "--precision",
                "float32",
                "--no-compile",
                "--device",
                NAME,
            )
            shown.append(run("pretrain", "text.txt", "--size", "llama_tiny", "--name", name, *options))
    rows = [int(re.search(r"batch_size = (\d+)", one)[1]) for one in shown]
    assert rows[0] == 64 > rows[1] >= 2
    assert losses(shown[0]) == losses(shown[1])


def test_full_memory_ends_the_run_with_what_to_do_and_it_goes_on(files: Path) -> None:
    options = ("--size", "llama_tiny", *SHORT, "--batch-size", "32", "--no-compile", "--device", NAME)
    with fake_gpu(memory=110 << 20):
        done = CliRunner().invoke(app, ["pretrain", "text.txt", "--name", "full", *options])
    assert isinstance(done.exception, TrainingStopped)
    assert "--resume runs/full --batch-size 16 --gradient-checkpointing" in str(done.exception)
    with fake_gpu():
        expected = run("pretrain", "text.txt", "--name", "whole", *options)
        again = run("pretrain", "--resume", "runs/full", "--batch-size", "8")
    assert losses(again) == losses(expected)
