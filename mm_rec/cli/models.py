"""`mmrec models`: every preset with what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mm_rec.models.presets import ModelSize


def models() -> None:
    """List the presets: parameters, what a conversation costs in memory and arithmetic, how much text they want."""
    from mm_rec.models.presets import PRESETS, measure, minimum_tokens

    table = Table(title="Presets", caption=_CAPTION, caption_justify="left")
    for column in (
        "preset",
        "parameters",
        "width × layers",
        "vocabulary",
        "state",
        "FLOPs a token",
        "text it wants",
    ):
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    for preset in PRESETS.values():
        config = preset.config()
        size = measure(config)
        table.add_row(
            preset.name,
            f"{size.parameters:,}",
            f"{config.hidden_size:,} × {config.num_hidden_layers}",
            f"{config.vocab_size:,}",
            " ".join(_state(size)),
            f"{size.flops_per_token / 1e6:,.1f} M",
            f"{minimum_tokens(size.parameters) / 1e6:,.0f} M tokens",
        )
    console = Console()
    console.width = max(console.width, 132)  # numbers cut short would be of no use
    console.print(table)


def _state(size: ModelSize) -> Iterator[str]:
    if size.state_bytes:
        yield f"{size.state_bytes / 1e6:.2f} MB"
    if size.cache_bytes_per_token:
        yield f"+{size.cache_bytes_per_token / 1e3:.1f} kB/token"


_CAPTION = (
    "state: memory of one conversation in float32, constant for MM-Rec, growing with each token for LLaMA and hybrids; "
    "FLOPs: of a forward pass (LLaMA and hybrids: at 2,048 tokens of context; training costs three times as much); "
    "text: the least that the methodology advises, ten tokens a parameter up to 1 B, 100 B for 7 B"
)
