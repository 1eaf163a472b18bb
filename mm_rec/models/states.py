"""What a sequence has read, whatever the family: MM-Rec's state of constant size, or keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.models.key_values import KeyValueState
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.mmrec.state import MemoryState
from mm_rec.runs.files import atomic_path


class State(Protocol):
    """One sequence's past, as a transformers cache that the kernels can read too."""

    @property
    def length(self) -> int:
        """Tokens read."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    @property
    def bytes_per_token(self) -> int:
        """By how much a further token makes it grow: 0 for MM-Rec's."""

    def tensors_for(self, tokens: int) -> list[Tensor]:
        """Its tensors in the order of the layers, contiguous, with room for so many more tokens."""

    def advance(self, tokens: int) -> None:
        """Note that so many tokens were written into the tensors."""

    def copy(self) -> State:
        """An independent copy."""

    def saved(self) -> dict[str, Tensor]:
        """What `restore` needs, by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was saved; raises ValueError where the shapes are those of another model."""


def new_state(model: PreTrainedModel, dtype: torch.dtype, device: torch.device | str) -> State:
    """The empty state of one sequence."""
    if isinstance(model.config, MMRecConfig):
        return MemoryState(model.config, 1, dtype, device)
    return KeyValueState(model.config, dtype, device)


def write_state(path: Path, state: State, belongs_to: Mapping[str, str], more: Mapping[str, Tensor]) -> None:
    """Write a state to a safetensors file, with the fingerprints of what it belongs to, and other tensors with it."""
    tensors = {f"state.{name}": tensor for name, tensor in state.saved().items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in {**tensors, **more}.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, dict(belongs_to))


def read_state(
    path: Path, state: State, belongs_to: Mapping[str, str]
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
    for name, value in belongs_to.items():
        if notes.get(name) != value:
            raise CheckpointError(
                f"{path}: this state belongs to another {name} ({notes.get(name)}, not {value}). Read the text anew"
            )
    try:
        state.restore(
            {name.removeprefix("state."): x for name, x in tensors.items() if name.startswith("state.")}
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return notes, {name: x for name, x in tensors.items() if not name.startswith("state.")}
