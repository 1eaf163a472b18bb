"""The status of a run, from its log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_rec.runs.metrics import Outcome, read_outcome
from mm_rec.runs.metrics_log import CONTROL_EVENT, METRICS_FILE, PLAN_EVENT, read_metrics

_TRANSIENT_EVENTS = (
    CONTROL_EVENT,
    PLAN_EVENT,
    "snapshot",
    "over-fitting",
)  # events that do not change the state


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of a run: `state` is "not started", "training", "paused" or "ended", with its `outcome`.

    A run that was killed says "training" for good: `seconds_ago` is the age of its last record. `train` and
    `validation` are the last records of their kind, `snapshots` the folders that `training/snapshots.py` wrote.
    """

    state: str
    outcome: Outcome | None
    step: int
    steps: int | None
    seconds_ago: float | None
    train: dict[str, Any] | None
    validation: dict[str, Any] | None
    snapshots: list[str]


def read_status(run: Path) -> RunStatus:
    """Return the status of a run from its log."""
    # A change may be one that a resumed run has yet to come to.
    all_records = read_metrics(run / METRICS_FILE)
    records = [record for record in all_records if record.get("event") not in (CONTROL_EVENT, PLAN_EVENT)]
    step = max((record["step"] for record in records), default=0)
    plans = [record for record in all_records if "steps" in record and record["step"] <= step]
    events = [record for record in records if record["kind"] == "event"]
    turns = [record["event"] for record in events if record["event"] not in _TRANSIENT_EVENTS]
    outcome = read_outcome(turns[-1]) if turns else None
    last = {record["kind"]: record for record in records}
    return RunStatus(
        state=_state(turns[-1], outcome) if turns else "not started",
        outcome=outcome,
        step=step,
        steps=max(plans, key=lambda record: record["step"])["steps"] if plans else None,
        seconds_ago=time.time() - records[-1]["time"] if records else None,
        train=last.get("train"),
        validation=last.get("validation"),
        snapshots=[event["folder"] for event in events if event["event"] == "snapshot"],
    )


def _state(turn: str, outcome: Outcome | None) -> str:
    if outcome is not None:
        return "ended"
    return "paused" if turn == "paused" else "training"
