"""The kernels compiled for 64-bit ARM, run by an emulator: the model's own predictions there too."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from arm import build_for_arm, run_on_arm
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mm_rec.inference.native.decoder import KernelDecoder
from mm_rec.inference.native.program import GROUP, StatePointers
from mm_rec.models import attention
from mm_rec.models.presets import build, preset
from mm_rec.models.states import new_state

VOCABULARY, TOKENS = 300, 40


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program for ARM that runs what `write` wrote."""
    return build_for_arm(Path(__file__).with_name("replay.cpp"), tmp_path_factory.mktemp("arm"))


def make(name: str) -> PreTrainedModel:
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    if name == "mmrec":
        return build(preset("tiny").config(VOCABULARY, **shape), seed=1).eval()
    torch.manual_seed(3)
    attention.register()
    if name == "gemma2":
        return Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=VOCABULARY, **shape, num_attention_heads=4, num_key_value_heads=2, head_dim=20,
                sliding_window=16, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
            )
        ).eval()  # fmt: skip
    small = {"hidden_size": 52, "intermediate_size": 75, "head_dim": 10} if name == "odd" else {}
    config = LlamaConfig(
        vocab_size=VOCABULARY, **{**shape, "num_attention_heads": 4, "num_key_value_heads": 2, **small}
    )
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention.NAME)
    return model


def write(path: Path, model: PreTrainedModel, decoder: KernelDecoder, calls: Sequence[Sequence[int]]) -> None:
    """A decoder's program and the tokens of one sequence, some in each call, as replay.cpp reads them."""
    description = decoder._graph
    program, logits = description.program, description.logits
    state = StatePointers(new_state(model, model.dtype, "cpu").kernel_tensors(sum(map(len, calls))))
    kept = [one for one in program._kept if isinstance(one, Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in [*kept, *state.tensors]}
    numbers = lambda *values: struct.pack(f"<{len(values)}q", *values)  # noqa: E731
    with path.open("wb") as file:
        file.write(numbers(len(storages)))
        for address, storage in storages.items():
            file.write(numbers(address, storage.nbytes()) + ctypes.string_at(address, storage.nbytes()))
        file.write(numbers(len(program._ops)) + b"".join(map(bytes, program._ops)))
        file.write(numbers(len(state.tensors), *(one.data_ptr() for one in state.tensors)))
        file.write(numbers(logits.data_ptr(), VOCABULARY, len(calls)))
        place = 0
        for ids in calls:
            file.write(numbers(len(ids), *ids, *range(place, place + len(ids))))
            place += len(ids)


@torch.inference_mode()
def on_arm(
    replay: Path, folder: Path, model: PreTrainedModel, decoder: KernelDecoder, calls: Sequence[Sequence[int]]
) -> Tensor:
    """The logits (T, V) of a sequence."""
    write(folder / "program", model, decoder, calls)
    run_on_arm(replay, folder / "program", folder / "logits")
    flat = torch.frombuffer(bytearray((folder / "logits").read_bytes()), dtype=torch.float32)
    return flat.view(-1, VOCABULARY)


def ids_of(count: int) -> list[int]:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(5)).tolist()


@torch.inference_mode()
def whole(model: PreTrainedModel, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["llama", "odd", "gemma2", "mmrec"])
def test_arm_says_what_the_model_says(name: str, replay: Path, tmp_path: Path) -> None:
    model, ids = make(name), ids_of(TOKENS)
    ours = on_arm(replay, tmp_path, model, KernelDecoder(model, 1), [[one] for one in ids])
    assert relative(ours, whole(model, ids)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mmrec"])
def test_arm_in_bfloat16_is_nearer_to_the_exact_ones_than_the_model_is(
    name: str, replay: Path, tmp_path: Path
) -> None:
    model, ids = make(name).to(torch.bfloat16), ids_of(TOKENS)
    ours = on_arm(replay, tmp_path, model, KernelDecoder(model, 1), [[one] for one in ids])
    theirs = whole(model, ids)
    exact = whole(model.float(), ids)
    assert relative(ours, exact) < min(relative(theirs, exact), 0.02)


@pytest.mark.parametrize("name", ["llama", "mmrec"])
def test_arm_multiplies_bytes_as_this_machine_does(name: str, replay: Path, tmp_path: Path) -> None:
    model, ids = make(name), ids_of(TOKENS)
    decoder, state = KernelDecoder(model, 1, int8=True), new_state(model, model.dtype, "cpu")
    ours = on_arm(replay, tmp_path, model, decoder, [[one] for one in ids])
    with torch.inference_mode():
        here = torch.cat([decoder.forward([state], [[one]], [-1]) for one in ids])
    # Each rounds the inputs of a product to 16 bits, from numbers that differ in their last: see test_native.py.
    assert relative(ours, here) < GROUP**0.5 / 65534


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_rows_that_share_a_call_change_no_bit_on_arm(form: str, replay: Path, tmp_path: Path) -> None:
    model, ids = make("mmrec"), ids_of(31)
    if form == "bfloat16":
        model.to(torch.bfloat16)
    decoder = KernelDecoder(model, 1, int8=form == "int8")
    alone = on_arm(replay, tmp_path, model, decoder, [[one] for one in ids])
    together = on_arm(replay, tmp_path, model, decoder, [ids[:1], ids[1:16], ids[16:]])
    assert torch.equal(together, alone)
