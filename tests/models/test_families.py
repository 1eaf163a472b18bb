"""Every causal text family of transformers predicts here what it predicts there, or is refused by name."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comparing import largest
from tiny_families import FAMILIES, VOCABULARY, WINDOW, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.models.forward import hidden_states, require_documents_apart
from mm_rec.models.loading import load_model

IDS = torch.arange(200)[None] * 7 % (VOCABULARY - 10) + 5
PROMPT, NEW, FIRST = 50, 60, 90  # tokens: of a prompt, to be written, of the first of two documents


# Whose own predictions change in transformers where it reads on from its cache: the choice of keys then differs.
UNLIKE_WITH_CACHE = {"hy_v4"}


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What a family cannot do here is said by name, in a sentence."""
    said = ""
    try:
        yield
    except CheckpointError as refusal:
        said = str(refusal)
    assert not said or re.fullmatch(
        ".*(not supported here|models of the kind).*", said
    )  # `.` is no line's end


def likeliest(model: PreTrainedModel, written: list[int]) -> list[int]:
    """What the model, reading everything at once, would have written at each place."""
    ids = torch.cat([IDS[:, :PROMPT], torch.tensor([written])], dim=1)
    with torch.no_grad():
        predicted: Tensor = model(input_ids=ids, use_cache=False).logits[0].argmax(-1)
    return predicted[PROMPT - 1 : -1].tolist()


def generated(model: PreTrainedModel, written: list[int]) -> list[int]:
    """What transformers writes with its cache."""
    ids = IDS[:, :PROMPT]
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(written), do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    new: list[int] = whole[0, PROMPT:].tolist()
    return new


@pytest.mark.seldom(covers=["mm_rec/models/*", "mm_rec/inference/*", "tests/tiny_families.py"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_predicts_writes_and_packs_as_in_transformers_or_is_refused(
    family: str, tmp_path: Path
) -> None:
    assert min(FIRST, PROMPT) > WINDOW
    tiny_model(family).save_pretrained(tmp_path)
    theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with refusals():
        ours = load_model(tmp_path)
        with torch.no_grad():
            expected = theirs(input_ids=IDS, use_cache=False).logits
            assert largest(ours(input_ids=IDS, use_cache=False).logits, expected) < 1e-5
        with refusals():
            session = Engine(ours).session()
            session.feed(IDS[0, :PROMPT].tolist())
            written = list(session.generate(Sampling(temperature=0, max_new_tokens=NEW)))
            assert len(written) == NEW
            assert written == (generated if family in UNLIKE_WITH_CACHE else likeliest)(theirs, written)
        with refusals():
            require_documents_apart(ours)
            documents = (torch.arange(IDS.shape[1]) >= FIRST).long()[None]
            with torch.no_grad():
                packed = hidden_states(ours, {"input_ids": IDS, "document_ids": documents})
                alone = [hidden_states(ours, {"input_ids": ids}) for ids in IDS.tensor_split([FIRST], dim=1)]
            assert largest(packed, torch.cat(alone, dim=1)) < 1e-5


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "falcon_h1", "gemma4_text", "gpt_oss", "mamba2", "mistral", "qwen3_5_text"]
)
def test_what_was_read_is_copied_saved_and_gone_on_with(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    engine = Engine(load_model(tmp_path))
    session = engine.session()
    session.feed(IDS[0, :PROMPT].tolist())
    session.save(tmp_path / "state", {"model": "tiny"})
    fork, loaded = session.fork(), engine.load_session(tmp_path / "state", {"model": "tiny"})
    expected = list(session.generate(Sampling(temperature=0, max_new_tokens=10)))
    assert session.state.nbytes > 0
    for one in (fork, loaded):
        assert list(one.generate(Sampling(temperature=0, max_new_tokens=10))) == expected


@pytest.mark.parametrize(
    "code", [{}, {"auto_map": {"AutoConfig": "other.Config", "AutoModelForCausalLM": "other.Model"}}]
)
def test_a_kind_that_transformers_does_not_know_is_refused_without_a_question(
    code: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", **code}))
    with pytest.raises(CheckpointError, match="knows no models of the kind 'other'"):
        load_model(tmp_path)
