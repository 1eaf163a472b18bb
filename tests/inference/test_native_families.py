"""The kernels write what transformers' own models write, family by family; what they do not know they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest
from tiny_families import VOCABULARY, WINDOW, tiny_config, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Engine
from mm_rec.inference.native.decoder import decoder_for
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.families import UnsupportedModelError, kernel_traits
from mm_rec.models.loading import load_model

NEW = 60  # tokens
FAMILIES = [
    "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3",
    "smollm3",
]  # fmt: skip


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def saved(family: str, seed: int, folder: Path) -> PreTrainedModel:
    """A model in a folder, as transformers reads it: its norms and biases are random too."""
    model = tiny_model(family, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    theirs.eval()
    return theirs


def written(model: Any, prompt: list[int]) -> tuple[list[int], Tensor]:
    """What transformers writes, greedily, and the logits (NEW, V)."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@pytest.mark.seldom(covers=["mm_rec/inference/native/*", "mm_rec/models/*", "tests/tiny_families.py"])
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_of_a_batch_write_what_transformers_writes_for_each_alone(
    family: str, seed: int, tmp_path: Path
) -> None:
    theirs = saved(family, seed, tmp_path)
    engine = Engine(load_model(tmp_path))
    assert not engine.fallback_reason
    prompts = [tokens(count, seed) for count in (100, 5, WINDOW)]
    assert len(prompts[0]) > MAX_KERNEL_TOKENS > WINDOW  # read by the model itself, and beyond the window
    expected = [written(theirs, prompt) for prompt in prompts]
    sessions = [engine.session() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.append(prompt)
    for place in range(NEW):
        engine.forward(sessions)
        for session, (ids, logits) in zip(sessions, expected, strict=True):
            ours = session.next_logits()
            assert largest(ours, logits[place]) < 1e-4
            assert int(ours.argmax()) == ids[place]
            session.append([ids[place]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_that_the_kernels_read_alone_is_one_that_the_model_began(
    family: str, tmp_path: Path
) -> None:
    saved(family, 0, tmp_path)
    engine, prompt = Engine(load_model(tmp_path)), tokens(100, 1)
    assert not engine.fallback_reason
    begun, alone = engine.session(), engine.session()
    begun.prefill(prompt)
    for token in prompt:
        alone.prefill([token])
    sampling = SamplingParams(temperature=0, max_new_tokens=NEW)
    assert list(begun.generate(sampling)) == list(alone.generate(sampling))


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "the setting use_bidirectional_attention = True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "the setting use_bidirectional_attention = True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "the setting attn_logit_softcapping = 50.0"),
        ("gemma2", {"hidden_activation": "gelu"}, "the activation gelu"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "layers of the kind 'chunked_attention'"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                                 "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
            "rotary positions of the kind 'longrope'",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}},
            "rotary positions of the kind 'dynamic'",
        ),
        ("cohere", {}, "models of the kind 'cohere'"),
    ],
)  # fmt: skip
def test_a_setting_that_the_kernels_do_not_know_is_named(
    family: str, changes: dict[str, Any], what: str
) -> None:
    config = tiny_config(family)
    fresh = type(config)(**{**config.to_dict(), **changes})
    with pytest.raises(UnsupportedModelError) as refusal:
        kernel_traits(fresh)
    assert str(refusal.value) == what


def test_a_field_that_a_family_gains_is_refused_unless_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    monkeypatch.setitem(LlamaConfig.__dataclass_fields__, "attention_temperature", None)
    model.config.attention_temperature = None
    assert decoder_for(model)[0] is not None
    model.config.attention_temperature = 0.5
    decoder, why = decoder_for(model)
    assert decoder is None and "attention_temperature = 0.5" in why


@torch.inference_mode()
def test_a_window_that_the_family_does_not_have_is_none(tmp_path: Path) -> None:
    """LLaMA's own code looks at no window, whatever its file says."""
    model = tiny_model("llama")
    model.config.sliding_window = WINDOW
    model.save_pretrained(tmp_path)
    loaded, ids = load_model(tmp_path), tokens(100, 0)
    assert loaded.config.sliding_window == WINDOW
    session = Engine(loaded).session()
    for token in ids:
        session.prefill([token])
    expected = loaded(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    assert largest(session.next_logits(), expected) < 1e-5
