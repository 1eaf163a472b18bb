"""The options of commands that write text, in one place so that they are the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
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
    str, typer.Argument(metavar="MODEL", help="A model folder, a run folder or a .pt file.")
]


def read_sampling(command: str, **values: Any) -> Sampling:
    """The sampling that the options ask for; raises ConfigError naming the option that cannot be used."""
    from mm_rec.inference.sampling import Sampling

    values["stop"] = tuple(values.get("stop") or ())
    return Sampling.read(values, where=command)
