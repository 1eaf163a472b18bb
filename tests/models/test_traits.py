"""What is asked of a model above `models/` goes through its traits, so that a family from outside is treated alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

import mm_rec
from mm_rec.data.packing import MAX_CARRIED_SEQ_LEN
from mm_rec.models.presets import measure, preset
from mm_rec.models.traits import FAMILY_TRAITS, Traits, traits_of
from mm_rec.pipeline.finetune_data import longest_allowed
from mm_rec.pipeline.sections import FinetuneSection

PACKAGE = Path(mm_rec.__file__).parent
QUESTION = re.compile(
    r"models\.mmrec\b|MMRec(Config|Model|ForCausalLM)"  # an import or a class of the family
    r"|isinstance\([^)]*Config\b"
    r"|config\.model_type\s*(==|!=|in\b|not\b)|\.get\([^)]*model_type"
    r"|max_position_embeddings|(has|get)attr\((\w+\.)*config,"
)


@pytest.mark.parametrize(
    "line",
    [
        "from mm_rec.models.mmrec.state import MemoryState",
        "if isinstance(model.config, (MMRecConfig, LlamaConfig)):",
        'if config.model_type == "mmrec":',
        'kind = LABELS.get(model.config.model_type, "A")',
        'limit = getattr(self.model.config, "n_positions", None)',
    ],
)
def test_a_question_about_the_family_is_found(line: str) -> None:
    assert QUESTION.search(line)


def test_nothing_above_the_models_asks_which_family_a_model_is_of() -> None:
    asked = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "models"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if QUESTION.search(line)
    ]
    assert not asked, "ask traits_of(config) of models/traits.py instead:\n" + "\n".join(asked)


def test_the_traits_of_our_own_families() -> None:
    ours, twin = preset("tiny").config(), preset("llama_tiny").config()
    assert traits_of(ours) == Traits("An MM-Rec", constant_state=True, linear_time=True, carries_state=True)
    assert traits_of(twin) == Traits("A LLaMA-like", context_limit=2048)
    assert traits_of(ours).state_text(measure(ours)).endswith("MB of state, however long the text")
    assert traits_of(twin).state_text(measure(twin)).endswith("kB of cache for each token read")


class ToyConfig(PreTrainedConfig):
    """A family that mm_rec does not know."""

    model_type = "toy"


def test_a_family_from_outside_is_treated_by_its_traits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ToyConfig()
    assert traits_of(config) == Traits() and longest_allowed(FinetuneSection(seq_len=64), config) == 64
    monkeypatch.setitem(FAMILY_TRAITS, "toy", Traits("A toy", constant_state=True, carries_state=True))
    assert traits_of(config).label == "A toy" and traits_of(config).context_limit is None
    assert longest_allowed(FinetuneSection(seq_len=64), config) >= MAX_CARRIED_SEQ_LEN
