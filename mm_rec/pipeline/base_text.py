"""The text that a model was pre-trained on, found by way of the runs that it came from."""

from __future__ import annotations

from pathlib import Path

from mm_rec.config import load_yaml
from mm_rec.pipeline.former_recipes import is_former, upgrade
from mm_rec.runs.directory import RECIPE_FILE


def base_text(start_from: str) -> Path | None:
    """The prepared text of the run that a model came from, also by way of fine-tuning; None where it is not there."""
    seen = set()
    while start_from not in seen:
        seen.add(start_from)
        run = _run_of(Path(start_from))
        if (run / "data" / "split.json").is_file():
            return run / "data"
        start_from = _base_of(run) or start_from
    return None


def _base_of(run: Path) -> str | None:
    """Return the model that a run's stage began with."""
    if not (run / RECIPE_FILE).is_file():
        return None
    values = load_yaml(run / RECIPE_FILE)
    stages = (upgrade(values) if is_former(values) else values).get("stages") or []
    return next((stage["start_from"] for stage in stages if stage.get("start_from")), None)


def _run_of(path: Path) -> Path:
    """The run that a path is or lies in: its final, its best, or the model of one of its checkpoints."""
    if path.name in ("final", "best"):
        return path.parent
    return path.parents[2] if path.name == "model" and path.parent.parent.name == "checkpoints" else path
