"""`mmrec sft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm_rec.cli.data_convert import ConversationFormatChoice, parse_fields
from mm_rec.cli.training_commands import TrainingCommand, command_of, option
from mm_rec.pipeline.sections import EXAMPLES_PANEL
from mm_rec.pipeline.stages.sft import KIND

FORMAT_OPTIONS = (
    option(
        "format",
        ConversationFormatChoice | None,
        help="Format of the files (default: told by their fields).",
        rich_help_panel=EXAMPLES_PANEL,
    ),
    option(
        "map",
        list[str] | None,
        help="A field of theirs for one of ours: --map prompt=soru.",
        rich_help_panel=EXAMPLES_PANEL,
    ),
)


def example_sources(files: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Text and conversations are two sources, so that each can have its weight."""
    from mm_rec.pipeline.examples import holds_text

    told = {
        "format": values["format"] and values["format"].value,
        "fields": parse_fields(values["map"] or []),
    }
    return {
        "data": [
            {"path": file, "name": "text"}
            if holds_text(file)
            else {"path": file, "name": "conversations", **told}
            for file in files
        ]
    }


sft = command_of(
    TrainingCommand(
        KIND,
        "Conversations: OpenAI messages, ShareGPT, Alpaca, prompt and response, CSV; .txt is raw text.",
        example_sources,
        extras=FORMAT_OPTIONS,
    )
)
