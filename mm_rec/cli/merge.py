"""`mmrec merge`: a model and its adapters as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mm_rec.cli.sampling_options import ModelPath


def merge(
    model: ModelPath,
    adapter: Annotated[
        list[str], typer.Option(metavar="FOLDER[=WEIGHT]", help="Adapter to merge (several are added).")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
) -> None:
    """Merge adapters into a copy of their model, which then needs none; proves that it says the same."""
    from mm_rec.pipeline.merge import merge as merge_adapters

    console = Console(soft_wrap=True, highlight=False, markup=False)
    difference = merge_adapters(model, adapter, out)
    console.print(
        f"Written: {out}. Read again, its logits are those of the model with adapters within {difference:.1e}"
    )
