"""The kernels: the model's own predictions, the same bits whoever else is in the batch; and decoding without them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapters import with_adapters
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mm_rec import cpu
from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Engine
from mm_rec.inference.native.decoder import MAX_ROWS, KernelDecoder, decoder_for
from mm_rec.inference.native.program import GROUP, Activation, Program, StatePointers, quantize_int8
from mm_rec.models import attention
from mm_rec.models.adapters import Adapters
from mm_rec.models.lora import lora_layers
from mm_rec.models.presets import build, preset
from mm_rec.models.sections import LoraConfig
from mm_rec.models.states import new_state
from mm_rec.native.library import native_library

VOCABULARY, THREADS = 300, 2
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 200, "max_position_embeddings": 2048, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
OF_EACH_KIND = {SLIDING: {"rope_type": "default", "rope_theta": 10000.0}, FULL: YARN}


KIN: dict[str, dict[str, Any]] = {
    "gemma": {"model_type": "gemma", "head_dim": 40},
    "gemma2": {
        "model_type": "gemma2", "head_dim": 40, "query_pre_attn_scalar": 50, "sliding_window": 16,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 40, "query_pre_attn_scalar": 50, "sliding_window": 16,
        "layer_types": [SLIDING, FULL], "rope_parameters": OF_EACH_KIND, "final_logit_softcapping": 3.0,
    },
    "granite": {
        "model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 4.0,
        "attention_multiplier": 0.1, "attention_bias": True, "mlp_bias": True,
    },
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {
        "model_type": "olmo3", "sliding_window": 16, "layer_types": [SLIDING, FULL], "rope_parameters": OF_EACH_KIND,
    },
    "phi3": {
        "model_type": "phi3", "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "smollm3": {
        "model_type": "smollm3", "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 16,
    },
}  # fmt: skip


def kin(name: str, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(**{**SHAPE, **KIN[name], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "odd": lambda: LlamaForCausalLM(
        LlamaConfig(**{**SHAPE, "hidden_size": 52, "intermediate_size": 75, "num_key_value_heads": 1, "head_dim": 10})
    ),
    "biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)),
    "one layer slides": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=24)),
    "gelu": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu_pytorch_tanh")),
    **{name: functools.partial(kin, name) for name in KIN},
    "mmrec": lambda: build(preset("tiny").config(VOCABULARY, num_hidden_layers=4), seed=1),
    "odd memories": lambda: build(
        preset("tiny").config(VOCABULARY, num_hidden_layers=2, conv_taps=3, memory_key_dim=20, memory_value_dim=36,
                              num_memories=3), seed=1
    ),
    "hybrid": lambda: build(
        preset("hybrid_tiny").config(VOCABULARY, num_hidden_layers=4, full_attention_interval=2,
                                     num_key_value_heads=1), seed=1
    ),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make(request.param)


def make(name: str) -> PreTrainedModel:
    """A random model whose norms and biases are random too."""
    torch.manual_seed(3)
    model: PreTrainedModel = FAMILIES[name]()
    attention.register()
    if model.config.model_type != "mmrec":
        model.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def whole(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """The model's own logits (T, V)."""
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


@torch.inference_mode()
def one_by_one(decoder: KernelDecoder, model: PreTrainedModel, ids: list[int], place: int = -1) -> Tensor:
    state = new_state(model, model.dtype, "cpu")
    return torch.cat([decoder.forward([state], [[token]], [place]) for token in ids])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_kernels_say_what_the_model_says(family: PreTrainedModel) -> None:
    ids = tokens(150)  # beyond the windows
    assert relative(one_by_one(KernelDecoder(family, THREADS), family, ids), whole(family, ids)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mmrec", *KIN])
def test_in_bfloat16_they_are_nearer_to_the_exact_ones_than_the_model_is(name: str) -> None:
    model, ids = make(name).to(torch.bfloat16), tokens(60)
    ours, theirs = one_by_one(KernelDecoder(model, THREADS), model, ids), whole(model, ids)
    exact = whole(model.float(), ids)
    assert relative(ours, exact) < min(relative(theirs, exact), 0.02)


def test_huge_numbers_are_no_trap() -> None:
    """Gates far beyond what e to the x can hold saturate, as the model's do."""
    model, ids = make("mmrec"), tokens(10)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight *= 1e20
            layer.mlp.up_proj.weight *= 1e-20
    assert relative(one_by_one(KernelDecoder(model, THREADS), model, ids), whole(model, ids)) < 1e-5


def test_what_the_model_has_read_the_kernels_go_on_with(family: PreTrainedModel) -> None:
    """And the other way round, past the first room of a growing state."""
    ids = tokens(600)
    decoder, state = KernelDecoder(family, THREADS), new_state(family, family.dtype, "cpu")
    expected = whole(family, ids)
    with torch.inference_mode():
        family(input_ids=torch.tensor([ids[:250]]), past_key_values=state, use_cache=True)
        for token in ids[250:270]:
            logits = decoder.forward([state], [[token]], [-1])
        assert relative(logits[0], expected[269]) < 1e-5
        out = family(input_ids=torch.tensor([ids[270:]]), past_key_values=state, use_cache=True)
    assert relative(out.logits[0, -1], expected[-1]) < 1e-5
    assert state.length == 600


def test_others_in_the_batch_change_no_bit(family: PreTrainedModel) -> None:
    decoder = KernelDecoder(family, THREADS)
    sequences = [tokens(count, seed=count) for count in (1, 3, 40, 7, 64, 2, 11, 5, 9, 20, 31, 8)]
    alone = [one_by_one(decoder, family, ids)[-1] for ids in sequences]
    states = [new_state(family, family.dtype, "cpu") for _ in sequences]
    with torch.inference_mode():
        for state, ids in zip(states, sequences, strict=True):
            if len(ids) > 1:
                decoder.forward(
                    [state], [ids[:-1]], [-1]
                )  # several tokens at a time, over several calls of the kernels
        together = decoder.forward(states, [ids[-1:] for ids in sequences], [-1] * len(sequences))
    for row, lone in zip(together, alone, strict=True):
        assert torch.equal(row, lone)


def test_several_tokens_of_several_sequences_in_one_call(family: PreTrainedModel) -> None:
    decoder = KernelDecoder(family, THREADS)
    sequences = [tokens(count, seed=count) for count in (2 * MAX_ROWS + 3, 1, 5)]
    states = [new_state(family, family.dtype, "cpu") for _ in sequences]
    with torch.inference_mode():
        together = decoder.forward(states, sequences, [-1] * 3)
    for row, ids in zip(together, sequences, strict=True):
        assert torch.equal(row, one_by_one(decoder, family, ids)[-1])


@pytest.mark.parametrize("name", ["odd", "odd memories", "hybrid"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    model, ids = make(name), tokens(20)
    expected = one_by_one(KernelDecoder(model, 1), model, ids)
    for threads in (2, 3, 8):
        assert torch.equal(one_by_one(KernelDecoder(model, threads), model, ids), expected)


def dequantised(values: Tensor, scales: Tensor) -> Tensor:
    return (values.unflatten(1, (-1, GROUP)) * scales[..., None]).flatten(1)


def test_a_product_of_bytes_with_inputs_that_16_bits_hold_is_exact() -> None:
    """Also where a group of inputs is 0, tiny or huge; for every number of rows that share it."""
    torch.manual_seed(1)
    groups = torch.randint(-32767, 32768, (MAX_ROWS, 4, GROUP)).float()
    groups[..., 5] = 32767
    groups[:, 0] = 0
    groups[3:, 1] *= 2.0**-100
    groups[5:, 2] *= 2.0**60
    values, scales = quantize_int8(torch.randn(30, 4 * GROUP))
    expected = groups.flatten(1).double() @ dequantised(values, scales.double()).T
    program = Program(MAX_ROWS, THREADS)
    x, out = program.buffer(4 * GROUP), program.buffer(30)
    program.linear(x, values, out, scales=scales)
    x.copy_(groups.flatten(1))
    for rows in range(1, MAX_ROWS + 1):
        out.zero_()
        program.run([0] * rows, [0] * rows, [-1] * rows, [StatePointers([])] * rows)
        for row in range(rows):
            assert relative(out[row], expected[row]) < 1e-6


@pytest.mark.parametrize("name", ["llama", "mmrec", *KIN])
def test_bytes_are_the_model_with_rounded_matrices(name: str) -> None:
    changes = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 192, "head_dim": 32}
    torch.manual_seed(0)
    if name in KIN:
        model = kin(name, **changes)
    elif name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))
    else:
        model = build(preset("tiny").config(VOCABULARY, **changes), seed=1)
    model.eval()
    ids = tokens(30)
    exact, ours = whole(model, ids), one_by_one(KernelDecoder(model, THREADS, int8=True), model, ids)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                # Of a tied head too, and not of its embedding.
                module.weight = torch.nn.Parameter(dequantised(*quantize_int8(module.weight)))
    # An input is off by at most half of 1 / 32767 of the largest of its group, so a group by √64 / 65534 of its norm.
    assert relative(ours, whole(model, ids)) < GROUP**0.5 / 65534
    assert 1e-3 < relative(ours, exact) < 0.05


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bytes_hide_no_number_that_is_none(bad: float) -> None:
    model, ids = make("mmrec"), tokens(2)
    decoder = KernelDecoder(model, THREADS, int8=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids[-1], 3] = bad
    assert not one_by_one(decoder, model, ids)[-1].isfinite().any()


def test_caps_and_activations_are_right_to_the_last_digits_near_0_and_far_from_it() -> None:
    x = torch.linspace(-9, 9, 4001)
    x = torch.cat([x, x * 1e-4, torch.tensor([-1e20, -1e3, 1e3, 1e20])])
    program = Program(1, THREADS)
    given, ones, tanh, silu, gelu = (program.buffer(len(x)) for _ in range(5))
    program.scale(given, 1.0, tanh, cap=1.0)
    program.gate(given, ones, Activation.silu, silu)
    program.gate(given, ones, Activation.gelu_pytorch_tanh, gelu)
    given.copy_(x)
    ones.fill_(1.0)
    program.run([0], [0], [-1], [StatePointers([])])
    exact = x.double()
    assert torch.allclose(tanh[0].double(), exact.tanh(), rtol=4e-7, atol=0)
    near = exact.abs() < 5  # further below 0 what is left is small beside the rounding of its exponent
    for ours, theirs in ((silu, functional.silu(exact)), (gelu, functional.gelu(exact, approximate="tanh"))):
        assert torch.allclose(ours[0].double()[near], theirs[near], rtol=1e-5, atol=0)
        assert torch.allclose(ours[0].double(), theirs, rtol=4e-7, atol=1e-6)


def test_where_the_model_would_be_slower_the_kernels_read_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: False)
    model, ids = make("mmrec").to(torch.bfloat16), tokens(3 * MAX_KERNEL_TOKENS)
    engine, decoder = Engine(model), KernelDecoder(model, THREADS)
    monkeypatch.setattr(model, "forward", None)
    session = engine.session()
    session.prefill(ids)
    assert torch.equal(session.next_logits(), one_by_one(decoder, model, ids)[-1])


@pytest.mark.parametrize("name", ["llama", "mmrec"])
def test_others_in_the_batch_change_no_bit_of_bytes_and_bfloat16(name: str) -> None:
    """As above for every number of rows that share a product."""
    changes = {"hidden_size": 128, "intermediate_size": 192}
    model = (
        LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).eval() if name == "llama" else
        build(preset("tiny").config(VOCABULARY, num_hidden_layers=2, **changes), seed=1).eval()
    ).to(torch.bfloat16)  # fmt: skip
    ids = tokens(15)
    for int8 in (False, True):
        decoder = KernelDecoder(model, THREADS, int8=int8)
        alone = one_by_one(decoder, model, ids)
        for count in range(1, len(ids) + 1):
            state = new_state(model, model.dtype, "cpu")
            assert torch.equal(decoder.forward([state], [ids[:count]], [-1])[0], alone[count - 1])


@pytest.mark.parametrize("name", ["tied", "mmrec", "gemma2", "gemma3", "granite", "olmo3", "phi3"])
def test_each_session_of_a_batch_has_its_own_adapters(name: str, tmp_path: Path) -> None:
    model, ids = make(name), tokens(20)
    adapters = with_adapters(model, tmp_path, first="qkv" if name == "phi3" else "q+v")
    engine = Engine(model)
    assert not engine.fallback_reason
    choices: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -2.0}, {"a": 1.0}]
    sessions = [engine.session(choice) for choice in choices]
    for token in ids:
        for session in sessions:
            session.pending_ids.append(token)
        engine.forward(sessions)
    for session, choice in zip(sessions, choices, strict=True):
        adapters.apply(choice)
        assert session.logits is not None
        assert relative(session.logits, whole(model, ids)[-1]) < 1e-5
    plain, adapted = sessions[0].logits, sessions[1].logits
    assert plain is not None and adapted is not None and relative(plain, adapted) > 0.01
    assert torch.equal(adapted, sessions[4].logits)


def test_adapters_that_are_no_sum_are_read_by_the_model_itself(tmp_path: Path) -> None:
    model, ids = make("tied"), tokens(20)
    adapters = with_adapters(model, tmp_path, "a", dora=True)
    assert adapters.weights == {"a": 1.0}
    engine = Engine(model)
    session = engine.session()
    session.prefill(ids)
    assert relative(session.next_logits(), whole(model, ids)[-1]) < 1e-5


def test_an_adapter_that_is_being_trained_is_read_by_the_model_itself() -> None:
    """Even where it changes nothing yet, as at its start."""
    model, ids = make("tied"), tokens(20)
    Adapters(model, "base").train(LoraConfig(rank=4, dropout=0.0), seed=0)
    engine = Engine(model)
    assert "being trained" in engine.fallback_reason
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for matrix in layer.lora_B.values():
                matrix.weight.add_(0.2 * torch.randn_like(matrix.weight))
    session = engine.session()
    session.prefill(ids)
    assert relative(session.next_logits(), whole(model, ids)[-1]) < 1e-5


def test_adapters_that_come_later_are_seen(tmp_path: Path) -> None:
    model, ids = make("tied"), tokens(20)
    engine = Engine(model)
    with_adapters(model, tmp_path).apply({"b": 1.0})
    session = engine.session()
    session.prefill(ids)
    assert relative(session.next_logits(), whole(model, ids)[-1]) < 1e-5


def test_what_the_kernels_do_not_know_is_said_and_decoded_by_the_model() -> None:
    torch.manual_seed(0)
    unknown = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2))
    decoder, why = decoder_for(unknown.eval())
    assert decoder is None and "'gpt2'" in why
    scaled = LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu"))
    assert "gelu" in decoder_for(scaled)[1]


def test_a_model_that_computes_otherwise_is_found_out() -> None:
    model = make("llama")
    model.model.layers[0].register_forward_hook(lambda module, inputs, out: out * 1.5)
    decoder, why = decoder_for(model)
    assert decoder is None and "changes its predictions" in why


def test_kernels_that_are_held_use_no_newer_instruction(isa: str) -> None:
    """The registers that objdump names in what was compiled."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is absent: apt-get install binutils")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", native_library("decoding")._name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if isa != cpu.NATIVE:
        assert "%zmm" not in listing
        assert ("%ymm" in listing) == (isa == "x86-64-v3")


def test_short_and_long_prompts_are_read_alike() -> None:
    model, ids = make("mmrec"), tokens(2 * MAX_KERNEL_TOKENS)
    engine = Engine(model)
    in_parts, at_once = engine.session(), engine.session()
    for start in range(0, len(ids), MAX_KERNEL_TOKENS):
        in_parts.prefill(ids[start : start + MAX_KERNEL_TOKENS])
    at_once.prefill(ids)
    assert relative(in_parts.next_logits(), at_once.next_logits()) < 1e-5
