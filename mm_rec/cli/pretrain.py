"""`mmrec pretrain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm_rec.cli.training_commands import TrainingCommand, command_of
from mm_rec.pipeline.sections import PretrainSection
from mm_rec.pipeline.stages.pretrain import KIND


def _sources(files: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": {"sources": list(files)}}


def _default_name(section: PretrainSection) -> str:
    return "continued" if section.model.start_from is not None else section.model.size


pretrain = command_of(
    TrainingCommand(
        KIND,
        "Files, folders, globs or URLs of text (formats: see `mmrec data clean --help`).",
        _sources,
        use="mmrec generate {run} --prompt …",
        default_name=_default_name,
    )
)
