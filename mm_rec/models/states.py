"""The state of a sequence: MM-Rec's (a constant size but for a hybrid), a KV cache, or transformers' own cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.models.kv_cache import KVCache
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.mmrec.state import MemoryState
from mm_rec.models.transformers_state import TransformersState, uses_plain_kv_cache
from mm_rec.runs.files import atomic_path


class SequenceState(Protocol):
    """One sequence's past, as a transformers cache that the kernels can read too."""

    @property
    def length(self) -> int:
        """Tokens read."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a further token adds: 0 for MM-Rec without attention."""

    def kernel_tensors(self, tokens: int) -> list[Tensor]:
        """Its tensors in the order of the layers, contiguous, with room for so many more tokens."""

    def advance(self, tokens: int) -> None:
        """Count tokens that were written into the tensors."""

    def copy(self) -> SequenceState:
        """An independent copy."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs, by name."""

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was saved; raises ValueError where the shapes are those of another model."""


def new_state(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | str) -> SequenceState:
    """The empty state of one sequence."""
    if isinstance(model.config, MMRecConfig):
        return MemoryState(model.config, 1, dtype, device)
    plain = uses_plain_kv_cache(model.config)
    return (KVCache if plain else TransformersState)(model.config, dtype, device)


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name of the cache argument of a model's forward: Mamba has its own."""
    names = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in names and "past_key_values" not in names else "past_key_values"


@torch.no_grad()
def require_cache_support(model: PreTrainedModel) -> None:
    """Prove, on a few tokens, that reading on from a state gives what reading all at once gives; MM-Rec's does.

    Raises CheckpointError for a model that cannot be read so: without a state, or with one of a form of its own.
    """
    if isinstance(model.config, MMRecConfig):
        return
    ids = torch.arange(12, device=model.device)[None] % model.config.vocab_size
    try:
        state = new_state(model, model.dtype, model.device)
        whole = model(input_ids=ids, use_cache=False).logits[0]
        reading = {cache_argument(model): state, "use_cache": True}
        parts = [model(input_ids=part, **reading).logits for part in ids.split(4, 1)]
    except Exception as error:  # each family has its own
        raise _no_cache_support(model, " ".join(f"{type(error).__name__}: {error}".split())) from error
    read = torch.cat(parts, dim=1)[0]
    exact = 0.1 if model.dtype.itemsize == 2 else 0.01  # another order of sums; what is wrong is off by more
    if read.shape != whole.shape or not (read - whole).abs().max() <= exact * whole.abs().max():
        raise _no_cache_support(model, "reading in parts gives other predictions than reading at once")


def _no_cache_support(model: PreTrainedModel, why: str) -> CheckpointError:
    kind = model.config.model_type
    return CheckpointError(
        f"models of the kind {kind!r} cannot go on from what they have read, so they do not write here ({why})"
    )


def save_state(
    path: Path, state: SequenceState, state_fingerprint: Mapping[str, str], more: Mapping[str, Tensor]
) -> None:
    """Write a state to a safetensors file, with the fingerprints of what it belongs to, and other tensors with it."""
    tensors = {f"state.{name}": tensor for name, tensor in state.state_dict().items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in {**tensors, **more}.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, dict(state_fingerprint))


def load_state(
    path: Path, state: SequenceState, state_fingerprint: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Fill an empty state from a file; returns all fingerprints and notes of the file, and the other tensors.

    Raises CheckpointError where it is no such file, or belongs to something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: this is no saved state ({error})") from error
    for name, value in state_fingerprint.items():
        if notes.get(name) != value:
            raise CheckpointError(
                f"{path}: this state belongs to another {name} ({notes.get(name)}, not {value}). Read the text anew"
            )
    try:
        state.load_state_dict(
            {name.removeprefix("state."): x for name, x in tensors.items() if name.startswith("state.")}
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return notes, {name: x for name, x in tensors.items() if not name.startswith("state.")}
