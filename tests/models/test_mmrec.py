"""MM-Rec as a model: state, documents, padding, generation, folders, against an independent forward pass."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparing import relative
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from waiting import LONGEST

from mm_rec.errors import CheckpointError
from mm_rec.models.loading import load_model, save_model
from mm_rec.models.mmrec import memory as memory_layer
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig, MMRecHybridConfig
from mm_rec.models.mmrec.forward_context import make_context
from mm_rec.models.mmrec.modeling_mmrec import MMRecForCausalLM
from mm_rec.models.mmrec.state import MemoryState
from mm_rec.models.presets import build
from mm_rec.models.states import load_state, save_state

VOCABULARY, LENGTH = 97, 45


FAMILIES = {"mmrec": MMRecConfig, "hybrid": MMRecHybridConfig}


def make(family: str = "mmrec", **changes: object) -> MMRecForCausalLM:
    """A small model in float64, moved away from its initial values so that every part matters."""
    values = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 4, "chunk_size": 8}
    if family == "hybrid":
        values["full_attention_interval"] = 2
    model = build(FAMILIES[family](**{**values, **changes}), seed=0).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    assert isinstance(model, MMRecForCausalLM)
    return model


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def slow_logits(model: MMRecForCausalLM, ids: list[int]) -> torch.Tensor:
    """An independent forward pass of one document, token by token, written from the equations with plain loops."""
    config, weights = model.config, dict(model.state_dict())
    m_count, size = config.num_memories, config.memory_value_dim

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean() + config.rms_norm_eps).sqrt() * weights[name]

    def silu(x: torch.Tensor) -> torch.Tensor:
        return x / (1 + torch.exp(-x))

    hidden = [weights["model.embed_tokens.weight"][token] for token in ids]
    for layer, kind in enumerate(config.layer_types):
        at = f"model.layers.{layer}."
        normed = [norm(x, at + "mixer_norm.weight") for x in hidden]
        mixed = []
        if kind == "linear_attention":
            raw = [torch.cat([weights[f"{at}mixer.{n}_proj.weight"] @ x for n in "qkv"]) for x in normed]
            state = torch.zeros(m_count, config.memory_key_dim, size, dtype=torch.float64)
            for t, x in enumerate(normed):
                taps = weights[at + "mixer.conv_weight"]
                qkv = silu(
                    sum(taps[-1 - back] * raw[t - back] for back in range(config.conv_taps) if t >= back)
                )
                q, k, v = qkv.view(3, m_count, -1)
                q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
                q = q * config.memory_key_dim**-0.5  # as in Qwen3.5
                beta = torch.sigmoid(weights[at + "mixer.write_proj.weight"] @ x)
                gate = weights[at + "mixer.decay_proj.weight"] @ x + weights[at + "mixer.decay_bias"]
                gamma = torch.exp(-weights[at + "mixer.decay_log_rate"].exp() * torch.log1p(gate.exp()))
                out = []
                for m in range(m_count):
                    state[m] = gamma[m] * state[m]
                    target = v[m] - state[m].T @ k[m]
                    state[m] = state[m] + beta[m] * torch.outer(k[m], target)
                    out.append(norm(state[m].T @ q[m], at + "mixer.norm.weight"))
                gated = torch.cat(out) * silu(weights[at + "mixer.g_proj.weight"] @ x)
                mixed.append(weights[at + "mixer.o_proj.weight"] @ gated)
        else:
            mixed = slow_attention(config, weights, at, normed, norm)
        hidden = [x + y for x, y in zip(hidden, mixed, strict=True)]
        for t, x in enumerate(hidden):
            y = norm(x, at + "mlp_norm.weight")
            inner = silu(weights[at + "mlp.gate_proj.weight"] @ y) * (weights[at + "mlp.up_proj.weight"] @ y)
            hidden[t] = x + weights[at + "mlp.down_proj.weight"] @ inner
    return torch.stack([weights["lm_head.weight"] @ norm(x, "model.norm.weight") for x in hidden])


def slow_attention(config, weights, at, normed, norm):
    groups = config.num_attention_heads // config.num_key_value_heads
    q, k, v = (
        [(weights[f"{at}mixer.{name}_proj.weight"] @ x).view(-1, config.head_dim) for x in normed]
        for name in "qkv"
    )
    mixed = []
    for t in range(len(normed)):
        heads = []
        for h in range(config.num_attention_heads):
            query = norm(q[t][h], at + "mixer.q_norm.weight")
            keys = [norm(k[s][h // groups], at + "mixer.k_norm.weight") for s in range(t + 1)]
            scores = torch.stack([query @ key for key in keys]) / math.sqrt(config.head_dim)
            heads.append(sum(p * v[s][h // groups] for s, p in enumerate(scores.softmax(0))))
        mixed.append(weights[at + "mixer.o_proj.weight"] @ torch.cat(heads))
    return mixed


@pytest.mark.parametrize(
    ("family", "changes"), [("mmrec", {}), ("hybrid", {}), ("hybrid", {"num_key_value_heads": 1})]
)
def test_against_an_independent_forward_pass(family: str, changes: dict[str, int]) -> None:
    model, ids = make(family, **changes), tokens(1)
    with torch.no_grad():
        assert relative(model(ids, use_cache=False).logits[0], slow_logits(model, ids[0].tolist())) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cuts", [range(1, LENGTH), (1, 20, 21, 40), (16,), (44,)])
def test_segments_with_a_state_equal_the_whole(family: str, cuts: list[int]) -> None:
    model, ids = make(family), tokens()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        state, parts = None, []
        for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            out = model(ids[:, start:stop], past_key_values=state, use_cache=True)
            state = out.past_key_values
            parts.append(out.logits)
    assert relative(torch.cat(parts, dim=1), whole) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cuts", [(), (3, 4, 10, 30), tuple(range(1, LENGTH))])
def test_packed_documents_equal_documents_alone(family: str, cuts: tuple[int, ...]) -> None:
    """Documents of 7, 1, 20 and 17 tokens in one row, read at once or in segments with a state."""
    model, ids = make(family), tokens()
    documents = torch.tensor([0] * 7 + [1] + [2] * 20 + [3] * 17).expand(2, -1)
    with torch.no_grad():
        alone = torch.cat(
            [model(ids[:, a:b], use_cache=False).logits for a, b in ((0, 7), (7, 8), (8, 28), (28, 45))],
            dim=1,
        )
        state, parts = None, []
        for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            part = documents[:, start:stop]
            out = model(ids[:, start:stop], document_ids=part, past_key_values=state, use_cache=bool(cuts))
            state = out.past_key_values
            parts.append(out.logits)
    assert relative(torch.cat(parts, dim=1), alone) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_cannot_change_the_one_before_or_after(family: str) -> None:
    model, ids = make(family), tokens()
    documents = torch.tensor([0] * 20 + [1] * 25).expand(2, -1)
    other = ids.clone()
    other[:, :20] = tokens(seed=9)[:, :20]
    with torch.no_grad():
        one, two = (model(x, document_ids=documents, use_cache=False).logits for x in (ids, other))
    # Not bit for bit: the decays of a chunk are differences of sums that began in the document before.
    assert relative(one[:, 20:], two[:, 20:]) < 1e-13
    assert relative(one[:, :20], two[:, :20]) > 0.1


@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 25, 26)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["left", "right", "anywhere"])
def test_padding_changes_nothing(family: str, where: str, cuts: tuple[int, ...]) -> None:
    model, ids, width = make(family), tokens(), LENGTH + 15
    mask = torch.ones(2, width, dtype=torch.int64)
    gaps = {"left": slice(0, 15), "right": slice(LENGTH, None)}
    for row in range(2):
        chosen = torch.randperm(width, generator=torch.Generator().manual_seed(row))[:15]
        mask[row, gaps.get(where, chosen)] = 0
    padded = torch.zeros(2, width, dtype=torch.int64)
    padded[mask == 1] = ids.flatten()
    with torch.no_grad():
        expected = model(ids, use_cache=True)
        state, parts = None, []
        for start, stop in zip([0, *cuts], [*cuts, width], strict=True):
            out = model(
                padded[:, start:stop], attention_mask=mask[:, :stop], past_key_values=state, use_cache=True
            )
            state = out.past_key_values
            parts.append(out.logits)
        logits = torch.cat(parts, dim=1)[mask == 1].view_as(expected.logits)
        assert relative(logits, expected.logits) < 1e-9
        following = tokens(length=1, seed=5)
        after = [model(following, past_key_values=s).logits for s in (state, expected.past_key_values)]
        assert relative(*after) < 1e-9


def test_a_memory_layer_is_that_of_qwen3_5() -> None:
    """Term for term, as transformers computes it; its key norm adds 1e-6 to the square, which ours does not."""
    config = MMRecConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=1)
    ours = make(num_hidden_layers=1).model.layers[0].mixer
    theirs = Qwen3_5GatedDeltaNet(
        Qwen3_5TextConfig(
            hidden_size=128, num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=config.rms_norm_eps,
            linear_num_key_heads=config.num_memories, linear_num_value_heads=config.num_memories,
            linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=config.conv_taps,
        ), 0,
    ).double()  # fmt: skip
    weights = ours.state_dict()
    theirs.load_state_dict({
        "in_proj_qkv.weight": torch.cat([weights[f"{name}_proj.weight"] for name in "qkv"]),
        "in_proj_z.weight": weights["g_proj.weight"], "out_proj.weight": weights["o_proj.weight"],
        "in_proj_b.weight": weights["write_proj.weight"], "in_proj_a.weight": weights["decay_proj.weight"],
        "dt_bias": weights["decay_bias"], "A_log": weights["decay_log_rate"], "norm.weight": weights["norm.weight"],
        "conv1d.weight": weights["conv_weight"].T[:, None],
    })  # fmt: skip
    x = torch.randn(2, 70, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = theirs(x)
    assert relative(ours(x, make_context(config, x, None, None, None), None)[0], expected) < 1e-5


def test_state_has_a_constant_size_and_can_be_forked_and_gathered() -> None:
    model = make()
    with torch.no_grad():
        state = model(tokens(), use_cache=True).past_key_values
        size = state.nbytes
        assert model(tokens(length=200, seed=3), past_key_values=state).past_key_values.nbytes == size
        fork = state.copy()
        next_one = tokens(length=3, seed=4)
        expected = model(next_one, past_key_values=state).logits
        swapped = model(next_one.flip(0), past_key_values=fork.gather(torch.tensor([1, 0]))).logits
    assert relative(swapped.flip(0), expected) < 1e-12
    assert state.seen == 248 and fork.seen == 245


def test_state_survives_a_file_and_is_bound_to_its_model(tmp_path: Path) -> None:
    model, following = make(), tokens(length=2, seed=8)
    path = tmp_path / "state.safetensors"
    with torch.no_grad():
        state = model(tokens(), use_cache=True).past_key_values
        save_state(path, state, {"model": "a", "tokenizer": "b"}, {"more": torch.ones(2)})
        loaded = MemoryState(model.config, state.batch_size, torch.float64, "cpu")
        notes, more = load_state(path, loaded, {"model": "a", "tokenizer": "b"})
        assert notes == {"model": "a", "tokenizer": "b"} and more["more"].tolist() == [1, 1]
        assert torch.equal(
            model(following, past_key_values=loaded).logits, model(following, past_key_values=state).logits
        )
    with pytest.raises(CheckpointError, match="another model"):
        load_state(path, loaded, {"model": "other"})
    with pytest.raises(CheckpointError, match="other shapes"):
        load_state(
            path, MemoryState(make(memory_key_dim=8).config, state.batch_size, torch.float64, "cpu"), {}
        )
    path.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="no saved state"):
        load_state(path, loaded, {})


def test_the_cache_of_a_hybrid_grows_with_the_longest_text() -> None:
    model = make("hybrid")
    with torch.no_grad():
        state = model(tokens(), use_cache=True).past_key_values
        small = state.nbytes
        model(tokens(length=200, seed=3), past_key_values=state)
    assert state.nbytes - small == 200 * 2 * state.bytes_per_token // 2
    assert state["1.keys"].shape == (2, LENGTH + 200, 2, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_generate_greedy_padded_and_beams(family: str) -> None:
    model, ids = make(family), tokens(2, 12)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **settings)
    assert torch.equal(plain, model.generate(ids, use_cache=False, **settings))
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.int64), ids], dim=1)
    mask = (torch.arange(17) >= 5).long().expand(2, -1)
    assert torch.equal(model.generate(padded, attention_mask=mask, **settings)[:, 5:], plain)
    beams = model.generate(ids, num_beams=3, **settings)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **settings))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.seldom(covers=["mm_rec/models/mmrec/*"])
def test_gradient_checkpointing_and_compilation_change_nothing(family: str) -> None:
    ids = tokens()
    documents = torch.tensor([0] * 30 + [1] * 15).expand(2, -1)
    gradients = []
    for kind in ("plain", "checkpointed", "compiled"):
        model = make(family, num_hidden_layers=2).train()
        if kind == "checkpointed":
            model.activation_checkpointing_enable()
        if kind == "compiled":
            for layer in model.model.layers:
                layer.compile(dynamic=False)
        loss = model(ids, labels=ids, document_ids=documents, use_cache=False).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert relative(gradients[1][name], expected) < 1e-9, name
        assert relative(gradients[2][name], expected) < 1e-9, name


def test_peft_adapts_it() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    model, ids = make(), tokens()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapted(ids, labels=ids).loss.backward()
    assert sum(p.grad is not None for p in adapted.parameters()) == 2 * 2 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_where_this_project_is_not_installed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trust_remote_code=True` in a process that cannot import mm_rec gives the same logits."""
    model, ids = make(family).float(), tokens()
    save_model(model, None, tmp_path / "model")
    script = """
import sys, torch
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
sys.modules["mm_rec"] = None  # as if it were not there
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.load(sys.argv[2], weights_only=True)
torch.save(model(ids).logits, sys.argv[3])
"""
    torch.save(ids, tmp_path / "ids.pt")
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model", tmp_path / "ids.pt", tmp_path / "logits.pt"],
        check=True,
        timeout=LONGEST,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )
    monkeypatch.setattr(memory_layer, "memory_kernel", None)  # there is none there
    with torch.no_grad():
        assert relative(torch.load(tmp_path / "logits.pt", weights_only=True), model(ids).logits) < 1e-6
        assert torch.equal(load_model(tmp_path / "model")(ids).logits, model(ids).logits)
        auto = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert isinstance(auto, MMRecForCausalLM)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mmrec", {"layer_types": ["linear_attention"]}, "layer_types of this family"),
        ("mmrec", {"layer_types": ["linear_attention", "full_attention"] * 2}, "layer_types of this family"),
        ("hybrid", {"num_attention_heads": 3, "num_key_value_heads": 2}, "multiple"),
        ("hybrid", {"full_attention_interval": 0}, "full_attention_interval"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(
    family: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        make(family, **changes)


@pytest.mark.parametrize(
    "former",
    [
        {"layer_types": ["memory", "window"]},
        {"layer_types": ["memory", "window"], "memory_update": "delta"},
        {"layer_types": ["memory", "memory"]},
        {"layer_types": ["memory", "memory"], "memory_update": "gated"},
    ],
)
def test_a_model_of_the_former_architecture_is_refused(former: dict[str, object], tmp_path: Path) -> None:
    """With the last version that reads it, when its folder is opened; the delta rule alone still opens."""
    model = make(num_hidden_layers=2)
    save_model(model, None, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **former}))
    with pytest.raises(CheckpointError, match=r"MM-Rec 0\.2 .* was the last version to read it"):
        load_model(tmp_path)
    same = {"layer_types": ["memory", "memory"], "memory_update": "delta", "window": 128}
    (tmp_path / "config.json").write_text(json.dumps({**settings, **same}))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(tokens()).logits, model.float()(tokens()).logits)
