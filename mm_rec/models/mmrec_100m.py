"""The documents' MM-Rec model of 100 M parameters."""

from __future__ import annotations

from typing import Any

from mm_rec.models.mmrec.modeling_mmrec import MMRecForCausalLM
from mm_rec.models.presets import build, preset


def MMRec100M(vocab_size: int = 100_256, seed: int = 0, **changes: Any) -> MMRecForCausalLM:  # noqa: N802 - its documented name
    """A freshly initialised MM-Rec of the preset `mmrec_100m`: 107.2 M parameters with the default vocabulary.

    The default has a row for each of gpt-4's ordinary tokens but none for the special ones: training enlarges it (see
    `resize.py`). `changes` are fields of MMRecConfig.
    """
    model = build(preset("mmrec_100m").config(vocab_size, **changes), seed)
    assert isinstance(model, MMRecForCausalLM)
    return model
