"""The options of commands that write text, in one place so that they are the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mm_rec.inference.sampling import Sampling

_PANEL = "How text is written"

MaxNewTokens = Annotated[int, typer.Option(help="The most tokens to write.", rich_help_panel=_PANEL)]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; higher is more varied.", rich_help_panel=_PANEL)
]
TopK = Annotated[int, typer.Option(help="Choose among so many tokens (0: all).", rich_help_panel=_PANEL)]
TopP = Annotated[
    float,
    typer.Option(help="Choose among the fewest tokens of this total probability.", rich_help_panel=_PANEL),
]
MinP = Annotated[
    float,
    typer.Option(help="Leave out tokens under this share of the likeliest's.", rich_help_panel=_PANEL),
]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: repeat less.", rich_help_panel=_PANEL)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text (may be given several times).", rich_help_panel=_PANEL),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", rich_help_panel=_PANEL)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ModelPath = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a run, a .pt file, or owner/name of a hub.")
]

Adapter = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER[=WEIGHT]", help="Adapter of the model, perhaps with a weight (several are added)."
    ),
]


def read_sampling(command: str, **values: Any) -> Sampling:
    """The sampling that the options ask for; raises ConfigError naming the option that cannot be used."""
    from mm_rec.inference.sampling import Sampling

    values["stop"] = tuple(values.get("stop") or ())
    return Sampling.read(values, where=command)


def warn_of_format(adapters: list[str], prompt: str, console: Console) -> None:
    """Warn where a prompt is not written as those that an adapter was trained on."""
    from mm_rec.data.prompt_lines import differing_format
    from mm_rec.models.adapted import parse_adapter
    from mm_rec.models.adapters import find_adapter

    for text in adapters:
        if warning := differing_format(find_adapter(parse_adapter(text)[0]), prompt):
            console.print(
                f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )
