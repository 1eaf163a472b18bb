"""Progress callbacks for a terminal: a live bar, or plain lines in a file or pipe."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_OF_EVERY_STEP = ("lr", "norm", "tokens_per_second", "peak_share")  # the others are the objective's metrics
_PLAIN_EVERY = 10.0  # seconds between lines when the output is a file or a pipe


class RichReporter:
    """Progress callbacks of training: messages above, a live bar below with loss, speed, share of peak and ETA."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._progress: Progress | None = None
        self._last_line = 0.0

    def __enter__(self) -> RichReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, markup=False, soft_wrap=True)

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Show a step that was done."""
        share = f"{values['peak_share']:.0%} of peak"
        metrics = "  ".join(
            f"{name} {value:.4f}" for name, value in values.items() if name not in _OF_EVERY_STEP
        )
        text = f"{metrics}  lr {values['lr']:.2e}  {values['tokens_per_second']:,.0f} tokens/s  {share}"
        if self.console.is_terminal:
            self._bar(steps).update(self._progress.task_ids[0], completed=step, total=steps, text=text)  # type: ignore[union-attr]
        elif time.monotonic() - self._last_line > _PLAIN_EVERY or step == steps:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{steps}  {text}")

    def _bar(self, steps: int) -> Progress:
        if self._progress is None:
            columns = (
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self.console)
            self._progress.add_task("training", total=steps, text="")
            self._progress.start()
        return self._progress
