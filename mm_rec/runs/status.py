"""How a run stands, by its log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.runs.log import CHANGE, METRICS, read_metrics

_WORDS = {
    "started": "training",
    "continued": "training",
    "non-finite": "stopped by a loss that is not finite",
}
_PASSING = (CHANGE, "snapshot", "over-fitting")  # events that are no turn in a run's life


@dataclass(frozen=True, slots=True)
class Status:
    """How a run stands: `word` is "not started", "training", "paused" or how it ended.

    A run that was killed says "training" for good: `seconds_ago` is the age of its last record. `train` and
    `validation` are the last records of their kind, `snapshots` the folders that `training/snapshots.py` wrote.
    """

    word: str
    step: int
    steps: int | None
    seconds_ago: float | None
    train: dict[str, Any] | None
    validation: dict[str, Any] | None
    snapshots: list[str]


def status(run: Path) -> Status:
    """Read a run's log."""
    # A change may be one that a resumed run has yet to come to.
    records = [record for record in read_metrics(run / METRICS) if record.get("event") != CHANGE]
    events = [record for record in records if record["kind"] == "event"]
    turns = [record["event"] for record in events if record["event"] not in _PASSING]
    last = {record["kind"]: record for record in records}
    return Status(
        word=_WORDS.get(turns[-1], turns[-1]) if turns else "not started",
        step=max((record["step"] for record in records), default=0),
        steps=next((event["steps"] for event in reversed(events) if "steps" in event), None),
        seconds_ago=time.time() - records[-1]["time"] if records else None,
        train=last.get("train"),
        validation=last.get("validation"),
        snapshots=[event["folder"] for event in events if event["event"] == "snapshot"],
    )
