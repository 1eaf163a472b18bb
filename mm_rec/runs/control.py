"""Control of a run while it trains: a file that people change and the training reads before each step.

RUN/control.json
    revision               rises with every change, so that nothing is done twice
    limits                 stop_at_loss, stop_at_epoch, max_learning_rate, those that were set; null takes one back
    save, pause, resume    the revision in which each was last asked for; 0 where it never was

Limits belong to the result of a run. They are saved with its checkpoints, and each change is in its log with its step:
a resumed run makes the changes that its checkpoint does not know again, at the same steps. Requests (save, pause,
resume) change no result and are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mm_rec.config import Section
from mm_rec.errors import ConfigError, DataError, UserError
from mm_rec.runs.directory import RECIPE_FILE, require_run
from mm_rec.runs.files import read_json, write_json
from mm_rec.runs.metrics import outcome_sentence
from mm_rec.runs.metrics_log import CONTROL_EVENT, METRICS_FILE, read_metrics
from mm_rec.runs.status import read_status

REQUESTS = ("save", "pause", "resume")
_FILE = "control.json"


class RunLimits(Section):
    """Limits of a training: where to stop, and the highest learning rate; None for no limit."""

    stop_at_loss: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stop_at_epoch: int | None = Field(default=None, ge=1)
    max_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class ControlState(Section):
    """The content of the control file."""

    revision: int = Field(default=0, ge=0)
    limits: RunLimits = RunLimits()
    save: int = Field(default=0, ge=0)
    pause: int = Field(default=0, ge=0)
    resume: int = Field(default=0, ge=0)

    @property
    def set_limits(self) -> dict[str, float | None]:
        """Return the limits that were set or taken back, and no others."""
        return self.limits.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class ControlChange:
    """A change for a training to apply: all limits that were set so far, and the new requests.

    `step` is None for a change that is new, and the step at which it was made for one that is made again.
    """

    revision: int
    limits: dict[str, float | None]
    asked: frozenset[str] = frozenset()
    step: int | None = None


class ControlFile:
    """The training's reader of the control file. Where nothing was changed, reading costs one `stat`."""

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self._path = run / _FILE
        self._say = say
        self._mark: tuple[int, int, int] | None = None
        self._content = ControlState()
        self._logged: list[ControlChange] = []

    def resume(self, run: Path, revision: int) -> None:
        """Repeat the changes that the run's log has after `revision`."""
        self._logged = [change for change in logged_changes(run) if change.revision > revision]

    def changes(self, step: int, revision: int) -> list[ControlChange]:
        """Return the changes to apply before a step (from 0), in order, for a training that has applied `revision`.

        A change from before an interruption comes at its own step, and what is newer waits until the last of these:
        so the steps that are done again are those that were done before.
        """
        due = [change for change in self._logged if change.step is not None and change.step <= step]
        self._logged = self._logged[len(due) :]
        done, control = due[-1].revision if due else revision, self._read()
        if self._logged or control.revision <= done:
            return due
        asked = frozenset(name for name in REQUESTS if getattr(control, name) > done)
        undone = "pause" if control.pause < control.resume else "resume"  # by the other, asked for later
        return [*due, ControlChange(control.revision, control.set_limits, asked - {undone})]

    def _read(self) -> ControlState:
        """Return the content; a file that cannot be used is reported once and changes nothing: no run ends by it."""
        try:
            found = self._path.stat()
        except OSError:  # absent, or a network disk that does not answer now
            return self._content
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        if mark != self._mark:
            self._mark = mark
            try:
                self._content = _read(self._path)
            except (UserError, OSError) as error:
                self._say(f"the control file is ignored: {error}")
        return self._content


def read_control(run: Path) -> ControlState:
    """Read a run's control file; raises DataError or ConfigError where it cannot be used."""
    path = run / _FILE
    return _read(path) if path.exists() else ControlState()


def _read(path: Path) -> ControlState:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise DataError("a control file is a JSON object with revision and limits; this is not", path)
        return ControlState.read(content, where=str(path))
    except UserError as error:
        raise ConfigError(f"{error}. Delete it, and set again what is to hold") from error


def update_control(run: Path, limits: Mapping[str, Any], requests: Collection[str] = ()) -> ControlState:
    """Ask a run for limits by name (None takes one back) and for requests, in one new revision of its control file.

    Raises ConfigError for a limit that cannot be, and where `run` is not one that trains.
    """
    require_controllable(run)
    old = read_control(run)
    # The log too is asked for the last revision: the file may have been deleted.
    revision = 1 + max([old.revision, *(change.revision for change in logged_changes(run))])
    merged = {**old.set_limits, **RunLimits.read(limits, where="runs set").model_dump(exclude_unset=True)}
    asked = dict.fromkeys(requests, revision)
    new = ControlState.read({**old.model_dump(), **asked, "revision": revision, "limits": merged})
    write_json(run / _FILE, {**new.model_dump(), "limits": new.set_limits})
    return new


def require_controllable(run: Path) -> None:
    """Raise ConfigError where no run lies, where it has only stages, or where it has come to its end."""
    require_run(run)
    stages = sorted(str(recipe.parent) for recipe in run.glob(f"*/{RECIPE_FILE}"))
    if stages and not (run / METRICS_FILE).exists():
        raise ConfigError(
            f"{run} is a run of several stages. Give the one that is meant: {', '.join(stages)}"
        )
    found = read_status(run)
    if found.outcome is not None and found.outcome.complete:
        raise ConfigError(
            f"{run}: this run has come to its end ({outcome_sentence(found.outcome)}, step {found.step:,}); "
            "there is nothing to steer"
        )


def logged_changes(run: Path) -> list[ControlChange]:
    """Return the changes that a run has applied so far, with the steps before which it did, in order."""
    return [
        ControlChange(record["revision"], record["limits"], step=record["step"])
        for record in read_metrics(run / METRICS_FILE)
        if record.get("event") == CONTROL_EVENT
    ]
