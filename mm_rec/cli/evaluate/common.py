"""What all `mmrec evaluate` commands have: options, the opening of the model, the writing of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMAND = "mmrec evaluate"  # in the messages of wrong options

Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the results here.")]


def open_measurable(
    model: str, adapters: list[str] | None, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model with its adapters, its tokenizer, and its name for reports.

    Raises CheckpointError for a model that cannot be measured.
    """
    from mm_rec.inference.manager import open_model
    from mm_rec.models.forward import require_packing_support

    adapters = adapters or []
    loaded = open_model(model, adapters, device)
    require_packing_support(loaded.model)
    return loaded.model, loaded.tokenizer, " + ".join([model, *adapters])


def print_line(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_result(values: dict[str, Any], out: Path | None, name: str, console: Console) -> None:
    """Write a result into the folder that was asked for, if one was."""
    from mm_rec.runs.files import write_json

    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / name, values)
    print_line(console, f"Written: {out / name}")
