"""Adapter folders of other programs say here what PEFT itself makes of them, or are refused by the setting's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from comparing import largest
from peft_folders import change_config, merge_by_peft, plain, read_by_peft, save_base, write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference.engine import Engine
from mm_rec.inference.fingerprints import adapter_digests
from mm_rec.models.adapter_folders import saved_settings
from mm_rec.models.adapters import Adapters, adapters_of
from mm_rec.models.loading import load_model, load_with_adapters, save_model
from mm_rec.models.presets import build, preset
from mm_rec.pipeline.merge import merge

IDS = torch.arange(40)[None] * 7 % 290 + 5
NEW = 16  # tokens that are written
QV = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MATRICES: dict[str, tuple[str, dict[str, Any]]] = {  # sums of matrices, which the kernels read too
    "target_modules, a list": ("llama", {"target_modules": QV}),
    "target_modules, a pattern": ("llama", {"target_modules": r".*\.layers\.[01]\.self_attn\.(q|v)_proj"}),
    "target_modules, all-linear": ("llama", {"target_modules": "all-linear"}),
    "exclude_modules": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "exclude_modules, a pattern": ("llama", {"target_modules": QV, "exclude_modules": r".*layers\.2\..*"}),
    "head": ("llama", {"target_modules": [*QV, "lm_head"]}),
    "use_rslora": ("llama", {"target_modules": QV, "use_rslora": True}),
    "rank_pattern, alpha_pattern": (
        "llama",
        {
            "target_modules": QV,
            "rank_pattern": {"v_proj": 2, "^model.layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {"q_proj": 32},
            "use_rslora": True,
        },
    ),
    "layers_to_transform": ("llama", {"target_modules": QV, "layers_to_transform": [1, 3]}),
    "layers_pattern": (
        "llama",
        {"target_modules": QV, "layers_to_transform": 2, "layers_pattern": "layers"},
    ),
    "bias of a model without": ("llama", {"target_modules": QV, "bias": "all"}),
    "init_lora_weights, gaussian": ("llama", {"target_modules": QV, "init_lora_weights": "gaussian"}),
    "init_lora_weights, orthogonal": ("llama", {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "init_lora_weights, eva": (
        "llama",
        {"target_modules": QV, "init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    ),
    "init_lora_weights, mica": ("llama", {"target_modules": QV, "init_lora_weights": "mica"}),
    "revision": ("qwen2", {"target_modules": QV, "revision": "a1b2c3"}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # which the model itself reads
    "use_dora": ("llama", {"target_modules": QV, "use_dora": True}),
    "modules_to_save": (
        "llama",
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "modules_to_save, norms": ("llama", {"target_modules": QV, "modules_to_save": ["input_layernorm"]}),
    "modules_to_save, norms of heads": ("qwen3", {"target_modules": QV, "modules_to_save": ["q_norm"]}),
    "modules_to_save, blocks": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "modules_to_save, tied": ("tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "modules_to_save, tied, both": (
        "tied",
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "ensure_weight_tying": (
        "tied",
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embedding": ("llama", {"target_modules": [*QV, "embed_tokens"]}),
    "embedding, tied": ("tied", {"target_modules": [*QV, "embed_tokens"]}),
    "trainable_token_indices": (
        "llama",
        {"target_modules": QV, "trainable_token_indices": [3, 5, 12, 290]},
    ),
    "trainable_token_indices, tied": (
        "tied",
        {"target_modules": QV, "trainable_token_indices": [3, 5, 12, 290]},
    ),
    "trainable_token_indices, by name": (
        "llama",
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 12], "lm_head": [3]}},
    ),
    "lora_bias": ("qwen2", {"target_modules": QV, "lora_bias": True}),
    "fan_in_fan_out": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "fan_in_fan_out, use_dora": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "target_parameters": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS}),
    "target_parameters, one of two": (
        "mixtral",
        {"target_modules": QV, "target_parameters": EXPERTS[:1]},
    ),
}
SETTINGS = {**MATRICES, **OTHERS}
# PEFT merges into the tied weights, so that its merged model's head has changed as well.
MERGED_OTHERWISE = {"embedding, tied"}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def by_peft(model: Any) -> list[int]:
    """What transformers and PEFT write."""
    written: list[int] = model.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=NEW, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[0, IDS.shape[1] :].tolist()  # fmt: skip
    return written


def by_engine(engine: Engine, choices: list[dict[str, float]]) -> list[list[int]]:
    """What the engine writes with each choice of adapters, all at once."""
    sessions = [engine.session(choice) for choice in choices]
    for session in sessions:
        session.append(IDS[0].tolist())
    for _ in range(NEW):
        engine.forward(sessions)
        for session in sessions:
            session.append([int(session.next_logits().argmax())])
    return [list(session.recent)[-NEW:] for session in sessions]


def bits(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_folder_says_what_it_says_by_peft_alone_beside_others_and_merged(
    setting: str, tmp_path: Path
) -> None:
    family, settings = SETTINGS[setting]
    base, folder, other = tmp_path / "base", tmp_path / "one", tmp_path / "two"
    save_base(family, base)
    write_adapter(base, folder, **settings)
    targets = ["c_attn"] if family == "gpt2" else ["k_proj"]
    write_adapter(base, other, seed=2, target_modules=targets, fan_in_fan_out=family == "gpt2")
    theirs = [plain(base), read_by_peft(base, folder), read_by_peft(base, other)]
    wanted, texts = [logits(one) for one in theirs], [by_peft(one) for one in theirs]
    assert largest(wanted[1], wanted[0]) > 0.01

    model = load_model(base)
    before, adapters = bits(model), Adapters(model, "base")
    adapters.load("one", folder)
    assert largest(logits(model), wanted[1]) < 1e-5
    assert by_engine(Engine(model), [{"one": 1.0}]) == [texts[1]]
    adapters.apply({})
    adapters.load("two", other)
    assert largest(logits(model), wanted[2]) < 1e-5
    adapters.apply({})
    assert largest(logits(model), wanted[0]) < 1e-5
    engine = Engine(model)
    assert by_engine(engine, [{}, {"one": 1.0}, {"two": 1.0}, {"one": 1.0}]) == [*texts, texts[1]]
    assert (engine.fallback_reason == "") == (family not in ("gpt2", "mixtral"))
    assert (engine._adapter_slot(engine.session({"one": 1.0})) is not None) == (setting in MATRICES)
    adapters.remove("two")
    adapters.apply({"one": 1.0})
    assert largest(logits(model), wanted[1]) < 1e-5
    adapters.unload()
    assert same(model, before) and torch.equal(logits(model), logits(load_model(base)))

    adapters = Adapters(model, "base")
    adapters.load("one", folder)
    adapters.merge()
    assert largest(logits(model), wanted[1]) < 1e-5
    if setting not in MERGED_OTHERWISE:
        assert largest(logits(model), logits(merge_by_peft(base, folder))) < 1e-5
    save_model(model, None, tmp_path / "merged")
    assert largest(logits(load_model(tmp_path / "merged")), wanted[1]) < 1e-5


@pytest.mark.parametrize(
    "setting", ["use_dora", "modules_to_save", "modules_to_save, norms", "trainable_token_indices"]
)
def test_what_is_no_sum_is_applied_alone_and_whole(setting: str, tmp_path: Path) -> None:
    family, settings = SETTINGS[setting]
    save_base(family, tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", **settings)
    write_adapter(tmp_path / "base", tmp_path / "two", seed=2, target_modules=["k_proj"])
    adapters = Adapters(load_model(tmp_path / "base"), "base")
    adapters.load("one", tmp_path / "one")
    wanted = logits(adapters.model)
    for refused in ({"one": 0.5}, {"one": 1.0, "two": 1.0}):
        if "two" in refused:
            adapters.apply({})
            adapters.load("two", tmp_path / "two")
        with pytest.raises(ConfigError, match="applied alone and whole"):
            adapters.apply(refused)
    adapters.apply({"one": 1.0})
    assert torch.equal(logits(adapters.model), wanted)


QWEN = {"target_modules": QV}
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # family, settings that PEFT trains with, settings that stand in the file, what is said
    "bias, lora_only": ("qwen2", {**QWEN, "bias": "lora_only"}, {}, "the setting bias=lora_only"),
    "bias, all": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"},
        {},
        "the setting bias=all",
    ),
    "init_lora_weights, pissa": (
        "llama",
        {**QWEN, "init_lora_weights": "pissa"},
        {},
        "init_lora_weights='pissa'",
    ),
    "init_lora_weights, olora": (
        "llama",
        {**QWEN, "init_lora_weights": "olora"},
        {},
        "init_lora_weights='olora'",
    ),
    "init_lora_weights, pissa_niter": (
        "llama",
        QWEN,
        {"init_lora_weights": "pissa_niter_16"},
        "init_lora_weights='pissa_niter_16'",
    ),
    "loftq_config": (
        "llama",
        QWEN,
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        "init_lora_weights='loftq'",
    ),
    "corda_config": ("llama", QWEN, {"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
    "lora_ga_config": ("llama", QWEN, {"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
    "alora_invocation_tokens": (
        "llama",
        {**QWEN, "alora_invocation_tokens": [7, 8]},
        {},
        r"alora_invocation_tokens=\[7, 8\] .*only DoRA",
    ),
    "arrow_config": ("llama", QWEN, {"arrow_config": {"top_k": 2}}, "arrow_config="),
    "kasa_config": ("llama", {**QWEN, "kasa_config": peft.KasaConfig()}, {}, "kasa_config="),
    "velora_config": ("llama", QWEN, {"velora_config": {"num_groups": 2}}, "velora_config="),
    "layer_replication": (
        "llama",
        {**QWEN, "layer_replication": [(0, 3), (1, 4)]},
        {},
        r"layer_replication=\[\[0, 3\], \[1, 4\]\] .*longer model",
    ),
    "megatron_config": ("llama", QWEN, {"megatron_config": {"hidden_size": 64}}, "megatron_config="),
    "use_qalora": ("llama", QWEN, {"use_qalora": True}, "use_qalora=True"),
    "task_type": ("llama", QWEN, {"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' .*write text"),
    "of a newer PEFT": (
        "llama",
        QWEN,
        {"use_newest_lora": True},
        r"use_newest_lora=True .*peft [\d.]+ does not know",
    ),
    "IA3": ("llama", QWEN, {"peft_type": "IA3"}, "the kind IA3, and not LoRA"),
    "PREFIX_TUNING": ("llama", QWEN, {"peft_type": "PREFIX_TUNING"}, "the kind PREFIX_TUNING, and not LoRA"),
    "rank of other matrices": ("llama", QWEN, {"r": 8}, r"lora_[AB].weight is \[.*4.*\], and \[.*8.*\] here"),
    "no rank": ("llama", QWEN, {"r": "four"}, "does not fit the model"),
    "layers_pattern alone": ("llama", QWEN, {"layers_pattern": "layers"}, "layers_to_transform"),
    "parts of another model": ("llama", QWEN, {"target_modules": ["query"]}, "does not fit the model base"),
    "tokens of another model": (
        "llama",
        QWEN,
        {"trainable_token_indices": {"wte": [1]}},
        "does not fit the model base .*wte",
    ),
    "tokens past the vocabulary": ("llama", QWEN, {"trainable_token_indices": [400]}, "does not fit"),
    "parts that take no adapter": ("llama", QWEN, {"target_modules": ["q_proj", "mlp"]}, "does not fit"),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_cannot_be_used_is_named_and_the_model_stays(setting: str, tmp_path: Path) -> None:
    family, settings, written, words = REFUSED[setting]
    save_base(family, tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", **settings)
    change_config(tmp_path / "one", **written)
    model = load_model(tmp_path / "base")
    before, expected = bits(model), logits(model)
    with pytest.raises(CheckpointError, match=words) as caught:
        Adapters(model, "base").load("one", tmp_path / "one")
    assert "\n" not in str(caught.value)
    assert same(model, before) and torch.equal(logits(model), expected) and adapters_of(model) is None


def test_a_refusal_leaves_what_was_loaded_before(tmp_path: Path) -> None:
    save_base("llama", tmp_path / "base")
    for name in ("one", "bad"):
        write_adapter(tmp_path / "base", tmp_path / name, target_modules=QV)
    change_config(tmp_path / "bad", trainable_token_indices={"wte": [1]})
    model = load_model(tmp_path / "base")
    before, adapters = bits(model), Adapters(model, "base")
    adapters.load("one", tmp_path / "one")
    wanted = logits(model)
    with pytest.raises(CheckpointError, match="wte"):
        adapters.load("bad", tmp_path / "bad")
    assert adapters.names == ["one"] and torch.equal(logits(model), wanted)
    adapters.unload()
    assert same(model, before)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 5]}),
        ({"trainable_token_indices": [3, 5]}, {"modules_to_save": ["embed_tokens"]}),
        ({"trainable_token_indices": [3, 5]}, {"target_modules": ["embed_tokens"]}),
        ({"target_modules": [*QV, "embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}),
        ({"modules_to_save": ["mlp"]}, {"target_modules": ["up_proj"]}),
    ],
)
def test_two_that_change_one_part_in_two_ways_are_not_loaded_together(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT can only hold one of them; each alone, and two of one kind, are read."""
    save_base("llama", tmp_path / "base")
    for seed, (name, settings) in enumerate((("one", first), ("two", second), ("like", first))):
        write_adapter(tmp_path / "base", tmp_path / name, seed, **{"target_modules": QV, **settings})
    model = load_model(tmp_path / "base")
    before, adapters = bits(model), Adapters(model, "base")
    adapters.load("one", tmp_path / "one")
    wanted = logits(model)
    adapters.apply({})
    with pytest.raises(CheckpointError, match=r"does not fit .* or load it without one"):
        adapters.load("two", tmp_path / "two")
    adapters.load("like", tmp_path / "like")
    assert largest(logits(model), logits(read_by_peft(tmp_path / "base", tmp_path / "like"))) < 1e-5
    adapters.apply({"one": 1.0})
    assert torch.equal(logits(model), wanted)
    adapters.unload()
    assert same(model, before)
    adapters.load("two", tmp_path / "two")
    assert largest(logits(model), logits(read_by_peft(tmp_path / "base", tmp_path / "two"))) < 1e-5


def test_settings_of_a_newer_peft_that_are_off_are_of_no_interest(tmp_path: Path) -> None:
    save_base("llama", tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", target_modules=QV)
    change_config(tmp_path / "one", use_newest_lora=False, newest_config=None, task_type=None)
    model = load_model(tmp_path / "base")
    Adapters(model, "base").load("one", tmp_path / "one")
    assert largest(logits(model), logits(read_by_peft(tmp_path / "base", tmp_path / "one"))) < 1e-5


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: f"module.{name}",
        lambda name: name.replace("lora_A", "lora_A.default"),
    ],
    ids=["compiled", "wrapped", "with the adapter's name"],
)
def test_names_that_peft_itself_does_not_read_are_refused(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    save_base("llama", tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", target_modules=QV)
    file = tmp_path / "one" / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match="does not fit the model base"):
        Adapters(load_model(tmp_path / "base"), "base").load("one", tmp_path / "one")


def test_the_old_pickled_form_is_read_where_it_holds_tensors_alone(tmp_path: Path) -> None:
    save_base("llama", tmp_path / "base")
    folder = tmp_path / "one"
    write_adapter(tmp_path / "base", folder, target_modules=QV)
    wanted = logits(read_by_peft(tmp_path / "base", folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    model = load_model(tmp_path / "base")
    adapters = Adapters(model, "base")
    adapters.load("one", folder)
    assert largest(logits(model), wanted) < 1e-5
    assert len(adapter_digests(model, [str(folder)])["one"]) == 64
    adapters.unload()
    torch.save({**tensors, "code": Path("x")}, folder / "adapter_model.bin")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged or holds more than tensors"):
            adapters.load("one", folder)
        (folder / "adapter_model.bin").write_bytes(b"broken")
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no whole adapter"):
        adapters.load("one", folder)


@pytest.mark.parametrize("saved", [True, False])
def test_a_base_with_a_larger_vocabulary_is_asked_for(saved: bool, tmp_path: Path) -> None:
    """Whether its embedding was trained with the adapter, or only saved with it."""
    save_base("llama", tmp_path / "base")
    enlarged = plain(tmp_path / "base")
    enlarged.resize_token_embeddings(320, mean_resizing=False)
    enlarged.save_pretrained(tmp_path / "enlarged")
    settings: dict[str, Any] = {"modules_to_save": ["embed_tokens", "lm_head"]} if saved else {}
    write_adapter(tmp_path / "enlarged", tmp_path / "one", target_modules=QV, **settings)
    if not saved:
        file = tmp_path / "one" / "adapter_model.safetensors"
        rows = {f"base_model.model.{name}": bits(enlarged)[name] for name in ("lm_head.weight",)}
        save_file({**load_file(file), **rows}, file)
    model = load_model(tmp_path / "base")
    before = bits(model)
    words = (
        r"weight is \[320, 64\], and \[300, 64\] here" if saved else "lm_head.weight .*enlarged vocabulary"
    )
    with pytest.raises(CheckpointError, match=words):
        Adapters(model, "base").load("one", tmp_path / "one")
    assert same(model, before)
    fitting = load_model(tmp_path / "enlarged")
    Adapters(fitting, "enlarged").load("one", tmp_path / "one")
    assert largest(logits(fitting), logits(read_by_peft(tmp_path / "enlarged", tmp_path / "one"))) < 1e-5


def test_a_vocabulary_that_was_rounded_up_comes_with_the_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """With its tokenizer and its trained embedding and head, as programs save it that add tokens."""
    base = build(preset("llama_tiny").config(len(tokenizer), num_hidden_layers=2), seed=0)
    save_model(base, tokenizer, tmp_path / "base")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>", "<|newer|>"]})
    base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    assert base.config.vocab_size > len(tokenizer)
    save_model(base, tokenizer, tmp_path / "enlarged")
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    write_adapter(tmp_path / "enlarged", tmp_path / "one", target_modules=QV, **saved)
    tokenizer.save_pretrained(tmp_path / "one")
    wanted = logits(read_by_peft(tmp_path / "enlarged", tmp_path / "one"))
    model, own = load_with_adapters(tmp_path / "base", [str(tmp_path / "one")])
    assert len(own) == len(tokenizer) and largest(logits(model), wanted) < 1e-5
    assert merge(str(tmp_path / "base"), [str(tmp_path / "one")], tmp_path / "merged") < 1e-5


def test_a_folder_that_holds_the_bases_own_tensors_too_changes_nothing_in_it(tmp_path: Path) -> None:
    save_base("qwen2", tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", target_modules=QV)
    change_config(tmp_path / "one", bias="all")
    file = tmp_path / "one" / "adapter_model.safetensors"
    own = bits(plain(tmp_path / "base"))
    biases = {f"base_model.model.{name}": own[name] for name in own if name.endswith("k_proj.bias")}
    save_file({**load_file(file), **biases}, file)
    model = load_model(tmp_path / "base")
    Adapters(model, "base").load("one", tmp_path / "one")
    assert biases and largest(logits(model), logits(read_by_peft(tmp_path / "base", tmp_path / "one"))) < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": r".*q_proj"}, "target_modules='.*q_proj'"),
        ({"alpha_pattern": {"q_proj": 32}}, "alpha_pattern="),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\]"),
        ({"exclude_modules": ["down_proj"]}, "exclude_modules="),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\]"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"target_parameters": EXPERTS}, "target_parameters="),
    ],
)
def test_training_goes_on_only_with_settings_that_it_has(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    peft.LoraConfig(r=4, target_modules=QV).save_pretrained(str(tmp_path))
    assert saved_settings(tmp_path) == {
        "rank": 4, "alpha": 8, "targets": "q_proj+v_proj", "rslora": False, "dora": False, "train_head": False,
    }  # fmt: skip
    change_config(tmp_path, target_modules="all-linear", revision="a1b2c3")
    assert saved_settings(tmp_path)["targets"] == "all-linear"
    change_config(tmp_path, **{"target_modules": QV, **settings})
    with pytest.raises(CheckpointError, match=f"the setting {words}.* mmrec lora"):
        saved_settings(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "norm"], "ensure_weight_tying": True},
        {"target_modules": [*QV, "embed_tokens"]},
        {"trainable_token_indices": [3, 5, 12]},
    ],
    ids=["dora", "head", "head, tied", "embedding", "tokens"],
)
def test_a_folder_of_peft_is_merged_with_its_proof(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = build(preset("llama_tiny").config(len(tokenizer), num_hidden_layers=2), seed=0)
    save_model(base, tokenizer, tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", **{"target_modules": QV, **settings})
    assert merge(str(tmp_path / "base"), [str(tmp_path / "one")], tmp_path / "merged") < 1e-5
    theirs = read_by_peft(tmp_path / "base", tmp_path / "one")
    assert largest(logits(load_model(tmp_path / "merged")), logits(theirs)) < 1e-5


def test_what_cannot_be_merged_is_said_and_nothing_is_written(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A bias of the adapter's own, where the model has none."""
    base = build(preset("llama_tiny").config(len(tokenizer), num_hidden_layers=2), seed=0)
    save_model(base, tokenizer, tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / "one", target_modules=QV, lora_bias=True)
    model = load_model(tmp_path / "base")
    Adapters(model, "base").load("one", tmp_path / "one")
    assert largest(logits(model), logits(read_by_peft(tmp_path / "base", tmp_path / "one"))) < 1e-5
    with pytest.raises(ConfigError, match=r"cannot be merged .*lora_bias"):
        merge(str(tmp_path / "base"), [str(tmp_path / "one")], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
