"""Live control: the training's side of a run's control file (`runs/control.py`).

A run stops at a loss when the mean training loss of its last 3 steps (the mean that snapshots go by) is that loss or
less, so that no single lucky batch stops it. It stops at an epoch when so many epochs were read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm_rec.runs.control import ControlChange, ControlFile, RunLimits
from mm_rec.runs.metrics import Outcome
from mm_rec.runs.metrics_log import CONTROL_EVENT, MetricsLog
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.snapshots import LOSS_STEPS, mean_loss


class LiveControl:
    """The limits in force, and which changes of the control file they come from."""

    def __init__(
        self, run: Path, section: ResolvedTrainSection, log: MetricsLog, say: Callable[[str], None]
    ) -> None:
        self._run, self._log, self._say = run, log, say
        self._file = ControlFile(run, say)
        self._own = {"stop_at_loss": section.stop_at_loss, "stop_at_epoch": section.stop_at_epoch}
        self._set: dict[str, float | None] = {}
        self._revision = 0
        self.limits = RunLimits.read(self._own)

    def state_dict(self) -> dict[str, Any]:
        """The limits that were set, and the revision up to which the control file was obeyed."""
        return {"revision": self._revision, "limits": self._set}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: changes that the run's log has after it are made again at their steps."""
        self._revision, self._set = state["revision"], state["limits"]
        self.limits = RunLimits.read({**self._own, **self._set})
        self._file.resume(self._run, self._revision)

    def take_changes(self, step: int) -> frozenset[str]:
        """Take over what is new before a step (from 0); returns what was asked for: save, pause, resume.

        The control file is read here and nowhere else.
        """
        asked: frozenset[str] = frozenset()
        for change in self._file.changes(step, self._revision):
            if change.step is None:
                self._log.write(
                    "event",
                    step,
                    event=CONTROL_EVENT,
                    revision=change.revision,
                    limits=change.limits,
                    asked=sorted(change.asked),
                )
            self._set_limits(step, change)
            asked |= change.asked
        return asked

    def _set_limits(self, step: int, change: ControlChange) -> None:
        before = self.limits.model_dump()
        self._revision, self._set = change.revision, change.limits
        self.limits = RunLimits.read({**self._own, **self._set})
        changed = [
            f"{name.replace('_', '-')} = {'none' if value is None else value}"
            for name, value in self.limits.model_dump().items()
            if value != before[name]
        ]
        if changed:
            again = "" if change.step is None else " (as before the interruption)"
            self._say(f"step {step}: from now on {', '.join(changed)}{again}")

    def limit_reached(
        self, step: int, losses: Sequence[float], epoch: Callable[[int], int]
    ) -> Outcome | None:
        """Return the outcome where a limit is reached before `step`, else None; `epoch` gives a step's. Both from 0."""
        loss, limits = mean_loss(losses), self.limits
        if limits.stop_at_loss is not None and loss is not None and loss <= limits.stop_at_loss:
            self._say(
                f"stopping: the mean training loss of the last {LOSS_STEPS} steps is {loss:.4f}; "
                f"{limits.stop_at_loss:g} was asked for"
            )
            return Outcome.LOSS_REACHED
        if limits.stop_at_epoch is not None and epoch(step) >= limits.stop_at_epoch:
            self._say(f"stopping: epoch {limits.stop_at_epoch} has been read, as asked for")
            return Outcome.EPOCH_REACHED
        return None
