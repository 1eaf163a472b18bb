"""Checkpoints: everything that a run needs to continue as if it had never stopped.

checkpoints/step-00000200/
    model/                   a complete Hugging Face folder, with the tokenizer
    optimizer.safetensors    every optimizer slot, by parameter name
    state.json               loop, data position, random states
    data.safetensors         tokens that a stream had read and not handed out; absent where data comes from shards
    files.json               SHA-256 of every other file; written last, so a checkpoint without it is not whole
checkpoints/latest           the name of the newest, moved last
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import CheckpointError, DataError
from mm_rec.models.loading import save_model
from mm_rec.runs.files import (
    atomic_path,
    hash_file,
    read_json,
    remove,
    remove_leftovers,
    write_json,
    write_text,
)
from mm_rec.training.interfaces import OnEvent

_LATEST = "latest"
FILES = "files.json"
_DATA = "data.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    folder: Path
    step: int
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    data: dict[str, Tensor]

    @property
    def model_folder(self) -> Path:
        """The model's Hugging Face folder."""
        return self.folder / "model"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        on_event: OnEvent | None = None,
        data: dict[str, Tensor] | None = None,
    ) -> Path:
        """Write the checkpoint of a step under a temporary name, rename it, move `latest`, drop the oldest."""
        final = self.folder / f"step-{step:08d}"
        with atomic_path(final) as temporary:
            temporary.mkdir()
            save_model(model, tokenizer, temporary / "model")
            if on_event is not None:
                on_event("checkpoint", step)
            save_file(
                {name: tensor.contiguous().cpu() for name, tensor in optimizer.items()},
                temporary / "optimizer.safetensors",
            )
            if data:
                save_file(data, temporary / _DATA)
            write_json(temporary / "state.json", {"step": step, **state})
            write_json(temporary / FILES, _hashes(temporary))
        write_text(self.folder / _LATEST, final.name + "\n")
        for old in self.steps()[: -self.keep_last]:
            remove(old)
        return final

    def steps(self) -> list[Path]:
        """Folders of all finished checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def load_newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint; a damaged one is passed over, saying so. None where there is none at all.

        Raises CheckpointError where every checkpoint is damaged.
        """
        remove_leftovers(self.folder)
        folders = self.steps()[::-1]
        for folder in folders:
            try:
                return read_checkpoint(folder)
            except CheckpointError as error:
                say(f"{error}. Falling back to the checkpoint before it.")
        if folders:
            raise CheckpointError(
                f"{self.folder}: all {len(folders)} checkpoints are damaged; nothing can be continued. "
                "Start the run again under another name"
            )
        return None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint; raises CheckpointError naming the file that is missing or was changed."""
    try:
        expected: dict[str, str] = read_json(folder / FILES)
        for name, digest in expected.items():
            if not (folder / name).is_file() or hash_file(folder / name) != digest:
                raise CheckpointError(
                    f"{folder / name}: missing or damaged (its content is not what was written)"
                )
        state = read_json(folder / "state.json")
        optimizer = load_file(folder / "optimizer.safetensors")
        data = load_file(folder / _DATA) if _DATA in expected else {}
    except (DataError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: this checkpoint is not whole ({error})") from error
    return Checkpoint(folder, state.pop("step"), optimizer, state, data)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    return {item.relative_to(folder).as_posix(): hash_file(item) for item in files}
