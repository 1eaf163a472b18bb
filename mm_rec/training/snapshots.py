"""Snapshots: models that a run leaves at moments worth coming back to, and never deletes.

Each is a complete model folder in the run (of LoRA the adapter alone), beside `checkpoints/` from which the run itself
goes on:

    checkpoint-100              every `save_every` steps
    checkpoint-72-loss-1_62     when the loss had dropped, here to 1.62 at step 72
    checkpoint-100-user         on request: mmrec runs set RUN save

The rule of loss drops, to the letter. The loss is the mean training loss of the last 3 steps, so there is none before
step 3. When it is below the threshold, a snapshot is written and the threshold falls to that loss − `save_loss_step`,
or, with `save_loss_ratio`, to that loss × (1 − `save_loss_ratio`). The first threshold is `save_below_loss`. How far it
has fallen is saved with the checkpoints: a resumed run writes the same snapshots under the same names.

Training PRO, where the rule comes from ("Save at 10% loss change"), takes the loss of a single step once three in a row
(four without accumulation) are below the threshold, does so only after a tenth of an epoch, counts micro-batches as
steps, and lowers the threshold to that loss − 0.09. Ours waits for no part of an epoch, since one lucky batch does not
move the mean far, and lowers it by the full 0.1 that the setting says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.models.loading import save_model
from mm_rec.runs.files import atomic_path
from mm_rec.runs.metrics_log import MetricsLog
from mm_rec.training.section import ResolvedTrainSection

LOSS_STEPS = 3  # a mean over more would come late in a run of a hundred steps


class Snapshots:
    """The snapshots of one run."""

    def __init__(
        self, run: Path, section: ResolvedTrainSection, log: MetricsLog, say: Callable[[str], None]
    ) -> None:
        self._run, self._section, self._log, self._say = run, section, log, say
        self._last_loss: float | None = None  # of the last snapshot that a drop of the loss gave

    def state_dict(self) -> dict[str, Any]:
        """Return how far the threshold has fallen."""
        return {"last_loss": self._last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._last_loss = state["last_loss"]

    def save_due(
        self,
        step: int,
        losses: Sequence[float],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """Write the snapshots that are due after `step` steps; `losses` are the training losses of the last ones."""
        every = self._section.save_every
        if every is not None and step % every == 0:
            self.save(f"checkpoint-{step}", step, model, tokenizer)
        loss, threshold = mean_loss(losses), self.threshold()
        if loss is not None and threshold is not None and loss < threshold:
            self._last_loss = loss
            shown = f"{loss:.2f}".replace(".", "_")
            self.save(f"checkpoint-{step}-loss-{shown}", step, model, tokenizer)

    def save(
        self, name: str, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Write one snapshot, whole or not at all."""
        with atomic_path(self._run / name) as temporary:
            save_model(model, tokenizer, temporary)
        self._log.write("event", step, event="snapshot", folder=name)
        self._say(f"step {step}: saved {self._run / name}")

    def threshold(self) -> float | None:
        """The loss below which the next snapshot is written; None where none is."""
        first, ratio, last = self._section.save_below_loss, self._section.save_loss_ratio, self._last_loss
        if first is None or last is None:
            return first
        return min(first, last - self._section.save_loss_step if ratio is None else last * (1 - ratio))


def mean_loss(losses: Sequence[float]) -> float | None:
    """The mean of the last 3 steps' training losses; None where there are fewer."""
    return sum(losses[-LOSS_STEPS:]) / LOSS_STEPS if len(losses) >= LOSS_STEPS else None
