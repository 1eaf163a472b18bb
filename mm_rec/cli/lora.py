"""`mmrec lora`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mm_rec.cli.sft import FORMAT_OPTIONS, example_sources
from mm_rec.cli.training_commands import TrainingCommand, command_of, option
from mm_rec.models.sections import ADAPTER_PANEL
from mm_rec.pipeline.stages.lora import KIND


def _translate(
    settings: dict[str, Any], values: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Settings by other tools' names are understood, and those of an earlier run (`--like`) lie under them."""
    from mm_rec.config import merge
    from mm_rec.pipeline.foreign_settings import read_parameters, translate

    copied = {} if values["like"] is None else read_parameters(values["like"], say)
    if values["pissa"]:
        settings = merge(settings, {"adapter": {"init": "pissa"}})
    return merge(copied, translate(settings, say))


lora = command_of(
    TrainingCommand(
        KIND,
        ".txt: raw text. .json, .jsonl, .csv: conversations, or rows of a --prompt-format. Or several.",
        example_sources,
        extras=(
            option(
                "like",
                Path | None,
                help="Copy the parameters of this run or training_parameters.json, Training PRO's too.",
            ),
            option(
                "pissa",
                bool,
                False,
                "--pissa",
                help="The same as --init pissa.",
                rich_help_panel=ADAPTER_PANEL,
            ),
            *FORMAT_OPTIONS,
        ),
        translate=_translate,
    )
)
