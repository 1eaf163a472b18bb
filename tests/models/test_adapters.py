"""Adapters: beside PEFT itself, after saving, merging, weighing and removing; and the model left as it was."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.models.adapters import Adapters, adapters_of, find_adapter
from mm_rec.models.fingerprint import model_fingerprint
from mm_rec.models.forward import hidden_states, lm_head_of
from mm_rec.models.loading import find_model, load_model, load_with_adapters, parse_adapter, save_model
from mm_rec.models.lora import find_targets
from mm_rec.models.presets import build, preset
from mm_rec.models.sections import LoraConfig
from mm_rec.pipeline.merge import merge
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.section import ResolvedTrainSection

VOCABULARY = 300
KINDS = {
    "plain": LoraConfig(rank=4),
    "all, by the root": LoraConfig(rank=4, rslora=True, targets="all-linear"),
    "dora": LoraConfig(rank=4, dora=True),
    "pissa": LoraConfig(rank=4, init="pissa"),
    "pissa by the root": LoraConfig(rank=4, init="pissa", rslora=True, targets="q+k+v+o"),
    "head": LoraConfig(rank=4, train_head=True),
}
FAMILIES = {
    "mmrec": ("tiny", {}),
    "tied": ("llama_tiny", {}),
    "untied": ("llama_tiny", {"tie_word_embeddings": False}),
}


def fresh(family: str, seed: int = 0) -> PreTrainedModel:
    name, changes = FAMILIES[family]
    return build(preset(name).config(VOCABULARY, num_hidden_layers=2, **changes), seed)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> LoraConfig:
    return KINDS[request.param]


def ids() -> Tensor:
    return torch.arange(40)[None]


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids(), use_cache=False).logits
    return found


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def learn(model: PreTrainedModel, steps: int = 3, rate: float = 1e-2, **changes: Any) -> None:
    """A few steps by our own loss and optimizer."""
    config = ResolvedTrainSection(steps=steps, seq_len=40, learning_rate=rate, optimizer="adamw", **changes)
    optimizer = OptimizerSet(model, config)
    optimizer.set_learning_rate(rate)
    model.train()
    for _ in range(steps):
        hidden = hidden_states(model, {"input_ids": ids(), "document_ids": torch.zeros_like(ids())})
        scores = lm_head_of(model).logits(hidden[0, :-1])
        torch.nn.functional.cross_entropy(scores, ids()[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def trained(model: PreTrainedModel, config: LoraConfig, folder: Path) -> Adapters:
    adapters = Adapters(model, "the base")
    adapters.train(config, seed=1)
    learn(model)
    adapters.save(folder)
    return adapters


def test_saved_reloaded_merged_and_continued_it_says_the_same_and_the_base_is_never_changed(
    family: str, kind: LoraConfig, tmp_path: Path
) -> None:
    model = fresh(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model)
    adapters = Adapters(model, "the base")
    adapters.train(kind, seed=1)
    assert difference(logits(model), plain) < 1e-6  # a new adapter changes nothing yet
    learn(model)
    wanted = logits(model)
    assert difference(wanted, plain) > 0.05
    adapters.save(tmp_path / "a")
    adapters.unload()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(model), plain) and adapters_of(model) is None

    again = Adapters(model, "the base")
    again.load("one", tmp_path / "a")
    assert difference(logits(model), wanted) < 1e-5
    again.merge()
    assert difference(logits(model), wanted) < 1e-5 and adapters_of(model) is None
    save_model(model, None, tmp_path / "merged")
    assert difference(logits(load_model(tmp_path / "merged")), wanted) < 1e-5

    other = fresh(family)
    Adapters(other, "the base").continue_training(kind, tmp_path / "a")
    assert torch.equal(logits(other), wanted)


def test_peft_itself_reads_what_was_written(family: str, kind: LoraConfig, tmp_path: Path) -> None:
    model = fresh(family)
    trained(model, kind, tmp_path / "a")
    wanted = logits(model)
    with (
        warnings.catch_warnings()
    ):  # PEFT's own: of an attribute that transformers renamed, and of the base's name
        warnings.simplefilter("ignore")
        read = peft.PeftModel.from_pretrained(fresh(family), str(tmp_path / "a"))
    assert difference(logits(read), wanted) < 1e-5


@pytest.mark.parametrize("root", [False, True])
def test_a_pissa_adapter_learns_as_peft_lets_it_which_changes_the_weights(root: bool) -> None:
    ours, theirs = fresh("tied"), fresh("tied")
    Adapters(ours, "x").train(LoraConfig(rank=4, dropout=0.0, init="pissa", rslora=root), seed=1)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa", use_rslora=root
    )
    peft.inject_adapter_in_model(config, theirs)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for model in (ours, theirs):
        learn(model, steps=5, rate=1e-3)
    assert difference(logits(ours), logits(theirs)) < 1e-5


def test_only_the_adapter_learns_and_its_second_matrices_faster_where_asked() -> None:
    model = fresh("tied")
    adapters = Adapters(model, "x")
    adapters.train(LoraConfig(rank=4), seed=1)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 8 and all(".lora_" in name for name in names)
    config = ResolvedTrainSection(
        steps=1, seq_len=8, learning_rate=1e-3, optimizer="adamw", adapter={"lora_plus": 16}
    )
    optimizer = OptimizerSet(model, config)
    optimizer.set_learning_rate(1e-3)
    rates = {
        optimizer.names[parameter].split(".")[-3]: group["lr"]
        for one in optimizer.optimizers for group in one.param_groups for parameter in group["params"]
    }  # fmt: skip
    assert rates == {"lora_A": 1e-3, "lora_B": pytest.approx(16e-3)}


@pytest.fixture
def two(tmp_path: Path) -> tuple[PreTrainedModel, list[Tensor], list[Path]]:
    """A model, what two adapters of different ranks each make of it, and their folders."""
    model, outputs, folders = fresh("tied"), [], []
    for number, config in enumerate((LoraConfig(rank=4), LoraConfig(rank=6, targets="q+v+o"))):
        folders.append(tmp_path / f"adapter{number}")
        adapters = trained(model, config, folders[-1])
        outputs.append(logits(model))
        adapters.unload()
    return model, outputs, folders


def effect(model: PreTrainedModel, base: PreTrainedModel) -> dict[str, Tensor]:
    return {name: model.state_dict()[name] - tensor for name, tensor in base.state_dict().items()}


def test_adapters_of_different_ranks_are_weighed_switched_and_removed_without_reading_again(
    two: tuple[PreTrainedModel, list[Tensor], list[Path]],
) -> None:
    model, (first, second), folders = two
    plain = logits(model)
    adapters = Adapters(model, "the base")
    for name, folder in zip("ab", folders, strict=True):
        adapters.load(name, folder)
    for folder in folders:
        shutil.rmtree(folder)
    both = logits(model)
    adapters.apply({"a": 1})
    assert torch.equal(logits(model), first)
    adapters.apply({"b": 1})
    assert torch.equal(logits(model), second)
    adapters.apply({})
    assert torch.equal(logits(model), plain)
    adapters.apply({"a": 0, "b": 1})
    assert difference(logits(model), second) < 1e-6
    adapters.apply({"a": 1, "b": 1})
    assert torch.equal(logits(model), both)
    adapters.remove("a")
    assert torch.equal(logits(model), second) and adapters.names == ["b"]
    adapters.remove("b")
    assert torch.equal(logits(model), plain) and adapters_of(model) is None
    with pytest.raises(ConfigError, match="no adapter 'a'; loaded are none"):
        adapters.apply({"a": 1})


def test_weighed_effects_add_up_in_the_weights(two: tuple[PreTrainedModel, list[Tensor], list[Path]]) -> None:
    _, _, folders = two
    base = fresh("tied")

    def merged(weights: list[float]) -> dict[str, Tensor]:
        model = fresh("tied")
        adapters = Adapters(model, "the base")
        for name, folder, weight in zip("ab", folders, weights, strict=True):
            if weight:
                adapters.load(name, folder, weight)
        adapters.merge()
        return effect(model, base)

    a, b, both = merged([1, 0]), merged([0, 1]), merged([0.5, -2])
    for name, change in both.items():
        assert torch.allclose(change, 0.5 * a[name] - 2 * b[name], atol=1e-6), name


def test_targets_by_name_and_what_exists_where_one_matches_nothing() -> None:
    llama, mmrec = fresh("tied"), fresh("mmrec")
    assert find_targets(llama, "q+v") == find_targets(llama, "q_proj, v_proj") == ["q_proj", "v_proj"]
    assert find_targets(llama, "all-linear") == sorted(
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    )
    assert "lm_head" not in find_targets(fresh("untied"), "all")
    assert {"g_proj", "write_proj"} <= set(find_targets(mmrec, "all"))
    with pytest.raises(
        ConfigError, match="no projection 'query' in this model; there are down, gate, k, o, q, up, v"
    ):
        find_targets(llama, "query+v")
    with pytest.raises(ConfigError, match="name projections"):
        find_targets(llama, " + ")


def test_an_adapter_is_refused_by_another_base_another_rank_and_when_it_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    trained(fresh("tied"), LoraConfig(rank=4), folder)
    with pytest.raises(CheckpointError, match=r"trained on the base \(LlamaForCausalLM.*with other weights"):
        Adapters(fresh("tied", seed=1), "another").load("a", folder)
    with pytest.raises(CheckpointError, match="has rank 4, and rank 8 was asked for"):
        Adapters(fresh("tied"), "the base").continue_training(LoraConfig(rank=8), folder)
    (folder / "base.json").unlink()  # written by another tool
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Adapters(fresh("mmrec"), "another").load("a", folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="kind IA3, and not LoRA"):
        Adapters(fresh("tied"), "the base").load("a", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="no whole adapter"):
        Adapters(fresh("tied"), "the base").load("a", folder)
    for place, words in ((tmp_path, "no adapter here"), (tmp_path / "x.gguf", "format for inference")):
        with pytest.raises(CheckpointError, match=words):
            find_adapter(place)


def test_an_adapter_with_a_head_of_its_own_is_applied_alone_and_whole(tmp_path: Path) -> None:
    model = fresh("tied")
    for name, config in (("head", LoraConfig(rank=4, train_head=True)), ("plain", LoraConfig(rank=4))):
        trained(model, config, tmp_path / name).unload()
    adapters = Adapters(model, "the base")
    adapters.load("head", tmp_path / "head")
    with_head = logits(model)
    with pytest.raises(ConfigError, match="applied alone and whole"):
        adapters.load("plain", tmp_path / "plain")
    assert adapters.names == ["head"] and torch.equal(logits(model), with_head)
    with pytest.raises(ConfigError, match="applied alone and whole"):
        adapters.apply({"head": 0.5})


def test_a_dora_is_no_sum_and_singular_vectors_are_as_many_as_the_smaller_side(tmp_path: Path) -> None:
    model = fresh("tied")
    trained(model, LoraConfig(rank=4, dora=True), tmp_path / "dora").unload()
    with pytest.raises(ConfigError, match="applied alone and whole"):
        Adapters(model, "the base").load("dora", tmp_path / "dora", 0.5)
    with pytest.raises(ConfigError, match="has only 2 singular vectors"):
        Adapters(fresh("mmrec"), "x").train(LoraConfig(rank=16, init="pissa", targets="all"), seed=0)


def test_the_fingerprint_knows_weights_and_not_their_precision() -> None:
    model = fresh("mmrec")
    before = model_fingerprint(model)
    assert model_fingerprint(fresh("mmrec")) == before == model_fingerprint(fresh("mmrec").bfloat16())
    assert model_fingerprint(fresh("mmrec", seed=1)) != before


def test_the_written_form_of_adapters_and_gguf_in_place_of_a_model(tmp_path: Path) -> None:
    assert parse_adapter("runs/a") == ("runs/a", 1.0) and parse_adapter("a=-0.5") == ("a", -0.5)
    with pytest.raises(ConfigError, match="after the = stands a weight"):
        parse_adapter("a=much")
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised" / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    for place in (tmp_path / "quantised", tmp_path / "quantised" / "m-Q4_K_M.gguf"):
        with pytest.raises(
            CheckpointError, match=r"GGUF is a format for inference.*Give the Transformers folder"
        ):
            find_model(place)


@pytest.mark.parametrize(
    "config", [LoraConfig(rank=4), LoraConfig(rank=4, train_head=True)], ids=["plain", "head"]
)
def test_a_merged_model_with_added_tokens_says_what_base_and_adapter_say(
    config: LoraConfig, tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    model = build(preset("llama_tiny").config(len(tokenizer), num_hidden_layers=2), seed=0)
    save_model(model, tokenizer, tmp_path / "base")
    adapters = Adapters(model, "base")
    if config.train_head:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>", "<|newer|>"]})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    adapters.train(config, seed=0)
    learn(model)
    save_model(model, tokenizer, tmp_path / "adapter")
    found, own = load_with_adapters(tmp_path / "base", [str(tmp_path / "adapter")])
    assert len(own) == len(tokenizer) and difference(logits(found), logits(model)) < 1e-5
    assert merge(str(tmp_path / "base"), [f"{tmp_path / 'adapter'}"], tmp_path / "merged") < 1e-5
    merged = load_model(tmp_path / "merged")
    assert difference(logits(merged), logits(model)) < 1e-5 and len(
        load_tokenizer(tmp_path / "merged")
    ) == len(own)
    assert merged.config.tie_word_embeddings == model.config.tie_word_embeddings
    with pytest.raises(ConfigError, match="is there already"):
        merge(str(tmp_path / "base"), [str(tmp_path / "adapter")], tmp_path / "merged")
