"""Options that the commands of every training share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES, TIME, MACHINE = "Examples", "Length and learning", "Machine and records"

# Of fine-tuning, of all weights or of an adapter.
Validation = Annotated[
    list[str] | None, typer.Option(help="Files held out, instead of a share.", rich_help_panel=EXAMPLES)
]
Fix = Annotated[
    bool | None,
    typer.Option("--fix", help="Mend rows with problems, or leave them out.", rich_help_panel=EXAMPLES),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat layout: default, chatml or llama3 (without it: the model's own).", rich_help_panel=EXAMPLES
    ),
]
TrainOn = Annotated[
    str | None,
    typer.Option(help="Answers of a conversation to learn: all or last.", rich_help_panel=EXAMPLES),
]
MaxLength = Annotated[
    int | None, typer.Option(min=2, help="Most tokens of a conversation.", rich_help_panel=EXAMPLES)
]
BaseText = Annotated[
    list[str] | None,
    typer.Option(
        help="Text of the base, for --text-share and for what it forgets.", rich_help_panel=EXAMPLES
    ),
]
TextShare = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of rows that are text of the base.", rich_help_panel=EXAMPLES),
]

# Of every training.

Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps.", rich_help_panel=TIME)]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="As many steps as this machine does in so long.", rich_help_panel=TIME),
]
SeqLen = Annotated[int | None, typer.Option(min=2, help="Tokens of a row.", rich_help_panel=TIME)]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows at a time.", rich_help_panel=TIME)]
Accumulation = Annotated[int | None, typer.Option(min=1, help="Batches of one step.", rich_help_panel=TIME)]
LearningRate = Annotated[float | None, typer.Option(min=0, help="Peak rate.", rich_help_panel=TIME)]
OptimizerName = Annotated[str | None, typer.Option(help="muon or adamw.", rich_help_panel=TIME)]
Patience = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after so many validations without a better one.", rich_help_panel=TIME),
]
RunName = Annotated[str | None, typer.Option(help="Name of the run.", rich_help_panel=MACHINE)]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=MACHINE)]
Resume = Annotated[Path | None, typer.Option(help="Continue this run.", rich_help_panel=MACHINE)]
RecipeFile = Annotated[
    Path | None, typer.Option(help="Recipe (YAML) to start from.", rich_help_panel=MACHINE)
]
PrecisionChoice = Annotated[
    str | None, typer.Option(help="auto, bfloat16 or float32.", rich_help_panel=MACHINE)
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything.", rich_help_panel=MACHINE)]
