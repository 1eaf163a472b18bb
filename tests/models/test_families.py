"""Every causal text family of transformers does here what it does there, or is refused; docs/models.md says which.

MMREC_WRITE_DOCS=1 with MMREC_ALL_TESTS=1 writes the document's rows anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import largest, relative
from tiny_families import FAMILIES, MORE_THAN_TEXT, NOT_BUILT, VOCABULARY, WINDOW, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models import attention
from mm_rec.models.adapters import Adapters
from mm_rec.models.forward import require_packing_support
from mm_rec.models.loading import load_model
from mm_rec.models.lora import lora_layers
from mm_rec.models.sections import LoraConfig
from mm_rec.pipeline.merge import MOST_DIFFERENCE
from mm_rec.training.objectives import next_token

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/models.md"
BEGIN, END = "<!-- The table begins: tests write it. -->", "<!-- The table ends. -->"
HOW = "run tests/models/test_families.py with MMREC_ALL_TESTS=1 MMREC_WRITE_DOCS=1 to write its rows anew"
COLUMNS = (
    "predicts",
    "attention",
    "writes",
    "many at once",
    "by the kernels",
    "packed",
    "trained",
    "LoRA",
    "merged",
)
IDS = torch.arange(200)[None] * 7 % (VOCABULARY - 10) + 5
PROMPT, NEW, FIRST = 50, 60, 90  # tokens: of a prompt, to be written, of the first of two documents
YES, NO = "yes", "–"

# Whose own predictions change in transformers where it reads on from its cache: it then chooses other keys (hy_v4), or
# forgets those out of a window that its attention does not have (moshi).
UNLIKE_WITH_CACHE = {"hy_v4", "moshi"}


class Row(dict[str, str]):
    """What a family can do here, by column."""

    @contextlib.contextmanager
    def noting(self, column: str) -> Iterator[None]:
        """Note that something holds, or that it is refused by name in a sentence."""
        self[column], said = YES, ""
        try:
            yield
        except (CheckpointError, ConfigError) as refusal:
            self[column], said = NO, str(refusal)
        assert not said or re.fullmatch(
            r".*(not supported here|models of the kind|targets: |does not fit the model).*", said
        )  # one line


def test_families_are_all_in_the_document() -> None:
    rows = written_rows()
    assert sorted(rows) == FAMILIES
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in [*MORE_THAN_TEXT.split(), *NOT_BUILT.split()])


@pytest.mark.seldom(
    covers=[
        "mm_rec/models/*",
        "mm_rec/inference/*",
        "mm_rec/training/objectives.py",
        "tests/tiny_families.py",
    ]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_here_what_it_does_in_transformers_or_is_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert min(FIRST, PROMPT) > WINDOW
    tiny_model(family).save_pretrained(tmp_path)
    theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    row, asked = Row(), recorded(monkeypatch)
    with row.noting("predicts"):
        ours = load_model(tmp_path)
        with torch.no_grad():
            expected = theirs(input_ids=IDS, use_cache=False).logits
            assert largest(ours(input_ids=IDS, use_cache=False).logits, expected) < 1e-5
        used = ours.config._attn_implementation == attention.NAME
        row["attention"] = " ".join(["ours", *sorted(asked)]) if used else "its own"
        with row.noting("writes"):
            writes(family, ours, theirs, row)
        with row.noting("packed"):
            require_packing_support(ours)
            packs(ours, row)
        with row.noting("LoRA"):
            adapts(tmp_path, row)
    check(family, row)


def recorded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What models ask of our attention, from now on."""
    asked: set[str] = set()

    def noting(*given: Any, **more: Any) -> Any:
        mask = given[4] if len(given) > 4 else more.get("attention_mask")
        asked.update(["windows"] * (mask is not None and mask.dim() == 4))
        asked.update(
            f"{what}s" for what, name in (("cap", "softcap"), ("sink", "s_aux")) if more.get(name) is not None
        )
        return plain(*given, **more)

    plain = attention.attention
    monkeypatch.setattr(attention, "attention", noting)  # reading a model registers it
    return asked


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


def writes(family: str, ours: PreTrainedModel, theirs: PreTrainedModel, row: Row) -> None:
    """Greedy text is that of transformers, alone and beside a shorter prompt's."""
    row["many at once"] = row["by the kernels"] = NO
    engine, first, second = Engine(ours), IDS[0, :PROMPT].tolist(), IDS[0, 7:20].tolist()
    written, other = (write(engine, prompt) for prompt in (first, second))
    assert written == (generated if family == "hy_v4" else likeliest)(theirs, written)
    if family not in UNLIKE_WITH_CACHE:
        assert engine.generate_greedy([first, second], NEW, ()) == [written, other]
        row["many at once"] = YES
    row["by the kernels"] = NO if engine.fallback_reason else YES


def write(engine: Engine, prompt: list[int]) -> list[int]:
    """Greedy text of a session."""
    session = engine.session()
    session.prefill(prompt)
    written = list(session.generate(SamplingParams(temperature=0, max_new_tokens=NEW)))
    assert len(written) == NEW
    return written


def packs(model: PreTrainedModel, row: Row) -> None:
    """Documents that share a row are learnt from as each is alone: the same loss, and the same gradients."""
    row["trained"] = NO
    documents = (torch.arange(IDS.shape[1]) >= FIRST).long()[None]
    labels = IDS.clone()
    labels[:, FIRST] = -100
    parts = [{"input_ids": ids, "labels": ids} for ids in IDS.tensor_split([FIRST], dim=1)]
    objective, found = next_token(torch.float32), []
    for batches in ([{"input_ids": IDS, "document_ids": documents, "labels": labels}], parts):
        model.zero_grad()
        total = torch.stack([objective(model, batch)["loss"].total for batch in batches]).sum()
        total.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        found.append((total.detach(), torch.cat(gradients)))
    (packed, of_packed), (apart, of_parts) = found
    assert relative(packed, apart) < 1e-5 and relative(of_packed, of_parts) < 1e-4
    model.zero_grad()
    row["trained"] = YES


def adapts(folder: Path, row: Row) -> None:
    """An adapter on all projections is made, saved, read again and merged: the same predictions.

    Where layers use their weights past PEFT's, merging changes what is predicted, and `mmrec merge` refuses it.
    """
    row["merged"] = NO
    model = load_model(folder)
    adapters = Adapters(model, "tiny")
    adapters.train(LoraConfig(rank=4, targets="all-linear", dropout=0), seed=0)
    torch.manual_seed(0)
    for _, layer in lora_layers(model):
        for weight in layer.lora_B.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
    adapters.save(folder / "adapter")
    merged = load_model(folder)
    again = Adapters(merged, "tiny")
    again.load("adapter", folder / "adapter")
    with torch.no_grad():
        assert largest(merged(input_ids=IDS, use_cache=False).logits, expected) < 1e-5
        again.merge()
        if largest(merged(input_ids=IDS, use_cache=False).logits, expected) < MOST_DIFFERENCE:
            row["merged"] = YES


def written_rows() -> dict[str, str]:
    """The rows of the document's table, by family."""
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}


def check(family: str, row: Row) -> None:
    """A family's row in the document is what was seen."""
    line = f"| `{family}` | {' | '.join(row.get(column, NO) for column in COLUMNS)} |"
    rows = written_rows()
    if os.environ.get("MMREC_WRITE_DOCS") == "1":
        rows[family] = line
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        head = f"| family | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n"
        table = "\n".join(rows[name] for name in sorted(rows))
        DOCUMENT.write_text(
            f"{before}{BEGIN}\n\n{head}{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8"
        )
        return
    assert rows.get(family) == line, f"docs/models.md is not what was seen; {HOW}"


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "falcon_h1", "gemma4_text", "gpt_oss", "mamba2", "mistral", "qwen3_5_text"]
)
def test_what_was_read_is_copied_saved_and_gone_on_with(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    engine = Engine(load_model(tmp_path))
    session = engine.session()
    session.prefill(IDS[0, :PROMPT].tolist())
    session.save(tmp_path / "state", {"model": "tiny"})
    fork, loaded = session.fork(), engine.load_session(tmp_path / "state", {"model": "tiny"})
    expected = list(session.generate(SamplingParams(temperature=0, max_new_tokens=10)))
    assert session.state.nbytes > 0
    for one in (fork, loaded):
        assert list(one.generate(SamplingParams(temperature=0, max_new_tokens=10))) == expected


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
