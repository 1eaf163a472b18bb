"""The options of all commands that generate text, and what they say of a model and its prompts."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mm_rec.inference.sampler import SamplingParams

_PANEL = "How text is written"

MaxNewTokens = Annotated[int, typer.Option(min=1, help="The most tokens to write.", rich_help_panel=_PANEL)]
Temperature = Annotated[
    float,
    typer.Option(
        min=0, max=100, help="0 takes the likeliest token; higher is more varied.", rich_help_panel=_PANEL
    ),
]
TopK = Annotated[
    int, typer.Option(min=0, help="Choose among so many tokens (0: all).", rich_help_panel=_PANEL)
]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Choose among the fewest tokens of this total probability.", rich_help_panel=_PANEL
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Leave out tokens under this share of the likeliest's.", rich_help_panel=_PANEL
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option(min=0, max=100, help="Above 1: repeat less.", rich_help_panel=_PANEL)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text (may be given several times).", rich_help_panel=_PANEL),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same text.", rich_help_panel=_PANEL)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


class PrecisionChoice(StrEnum):
    """The data type of the weights during generation."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


Precision = Annotated[
    PrecisionChoice,
    typer.Option(
        help="Numbers of the weights. auto: float32 on a processor, on a GPU what it multiplies fastest. On a "
        "processor bfloat16 is twice as fast as float32, int8 three times and less exact; float16 is for GPUs."
    ),
]
ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a run, a .pt file, or owner/name of a hub.")
]

Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER[=WEIGHT]", help="Adapter of the model, perhaps with a weight (several are added)."
    ),
]


def read_sampling(command: str, **values: Any) -> SamplingParams:
    """The sampling that the options ask for; raises ConfigError naming the option that cannot be used."""
    from mm_rec.inference.sampler import SamplingParams

    values["stop"] = tuple(values.get("stop") or ())
    return SamplingParams.read(values, where=command)


def show_notice(notice: str, console: Console) -> None:
    """Say where a model is slower than it could be."""
    if notice:
        console.print(f"note: {notice}", style="dim")


def warn_prompt_format(adapters: list[str], prompt: str, console: Console) -> None:
    """Warn where a prompt has another format than those that an adapter was trained on."""
    from mm_rec.data.prompt_lines import prompt_mismatch_warning
    from mm_rec.models.adapters import find_adapter
    from mm_rec.models.loading import parse_adapter

    for text in adapters:
        if warning := prompt_mismatch_warning(find_adapter(parse_adapter(text)[0]), prompt):
            console.print(
                f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )
