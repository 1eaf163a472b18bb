"""A training in another process: started, followed, stopped, killed and started again.

The process gets the run's folder, in which the recipe lies, and the kinds of stages that its parent knows.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from mm_rec.pipeline.kinds import StageKind
from mm_rec.pipeline.recipe import Recipe, read_run, write_recipe
from mm_rec.pipeline.registry import all_kinds, register
from mm_rec.pipeline.run import run_stage
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.status import RunStatus, read_status

if sys.platform == "win32":  # there os.kill ends a process at once, whatever the signal
    KILL, KILLED = signal.SIGTERM, int(signal.SIGTERM)
else:
    KILL, KILLED = signal.SIGKILL, -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a training: the nth time that `event` happens in it.

    step: between two steps; micro: in the middle of accumulation; checkpoint: while one is being written.
    """

    event: str
    count: int


class Worker:
    """A training of a run's recipe in a process of its own; its log tells how it goes."""

    def __init__(self, run: Path, recipe: Recipe | None = None) -> None:
        """`recipe` of one stage is written into the run, unless one lies there already."""
        self.run = run
        self._process: BaseProcess | None = None
        if recipe is not None and not (run / RECIPE_FILE).is_file():
            run.mkdir(parents=True, exist_ok=True)
            write_recipe(recipe, run)

    def start(self, kill_at: Moment | None = None) -> None:
        """Begin, or go on from the newest checkpoint; with `kill_at` the process kills itself at that moment."""
        kinds = tuple(all_kinds().values())
        target, arguments = _train, (str(self.run), kinds, kill_at)
        self._process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
        self._process.start()

    def status(self) -> RunStatus:
        """Return the run's status, by its log."""
        return read_status(self.run)

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.is_alive()

    def wait(self, seconds: float) -> int | None:
        """Wait until the process has ended, for so long at most; returns its exit status, None where it goes on."""
        assert self._process is not None
        self._process.join(seconds)
        return self._process.exitcode

    def stop(self) -> None:
        """Ask the training to finish its step, save and leave."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once; nothing but its checkpoints is left of it."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.join()

    def restart(self) -> None:
        """Go on with a training whose process has ended."""
        self.kill()
        self.start()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.pid is not None and self.alive:
            os.kill(self._process.pid, number)


class Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Nothing."""


def _train(run: str, kinds: tuple[StageKind, ...], kill_at: Moment | None) -> None:
    """Train with the recipe that lies in the run."""
    for kind in kinds:
        register(kind)
    run_stage(read_run(Path(run)), Path(run), Silent(), None if kill_at is None else _kill_at(kill_at))


def _kill_at(moment: Moment) -> Callable[[str, int], None]:
    """Die by SIGKILL at a moment, which leaves no time to tidy up."""
    seen = 0

    def on_event(event: str, step: int) -> None:
        nonlocal seen
        seen += event == moment.event
        if seen == moment.count and event == moment.event:
            os.kill(os.getpid(), KILL)

    return on_event
