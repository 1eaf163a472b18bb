"""Fingerprints of all that a saved state depends on: model, adapters, chat template and precision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.models.adapter_folders import weights_file
from mm_rec.models.adapters import adapters_of, find_adapter
from mm_rec.models.fingerprint import model_fingerprint
from mm_rec.models.loading import parse_adapter
from mm_rec.runs.files import hash_file


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return the fingerprint of a model's own weights, whatever adapters are on it."""
    on_model = adapters_of(model)
    return model_fingerprint(model) if on_model is None else str(on_model.base["fingerprint"])


def adapter_digests(model: PreTrainedModel, wanted: Sequence[str]) -> dict[str, str]:
    """The hash of each adapter's file by its name; `wanted` as they were loaded, "FOLDER" or "FOLDER=WEIGHT"."""
    on_model = adapters_of(model)
    names = [] if on_model is None else on_model.names
    return {
        name: hash_file(weights_file(find_adapter(parse_adapter(text)[0])))
        for name, text in zip(names, wanted, strict=True)
    }


def compute_state_fingerprint(
    weights: str, tokenizer: PreTrainedTokenizerBase, precision: str, adapters: Mapping[str, float],
    digests: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """The fingerprints of all that a state depends on.

    `weights` is that of `weights_fingerprint`; `adapters` are those that read, with their weights, `digests` their
    hashes.
    """
    return {
        "model": weights,
        "adapter": " ".join(sorted(f"{digests[name]}={weight:g}" for name, weight in adapters.items())),
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "precision": precision,
    }
