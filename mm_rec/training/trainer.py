"""The one training loop, for every objective.

The trainer is handed model, optimizer, data, objective and what validates. `resume` takes over all of a checkpoint, bit
for bit; `warm_start` takes weights, or weights and moments, from another model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, TrainingStopped, truncated
from mm_rec.models.loading import load_weights, save_model
from mm_rec.runs.files import atomic_path
from mm_rec.runs.metrics import LOSS, MetricSpec, Outcome, describe_metrics
from mm_rec.runs.metrics_log import METRICS_FILE, PLAN_EVENT, MetricsLog, read_metrics
from mm_rec.runtime import disable_malloc_trim, get_rng_state, is_out_of_memory, set_rng_state
from mm_rec.training.checkpoint import Checkpoint, Checkpoints
from mm_rec.training.compilation import compile_for_training
from mm_rec.training.interfaces import Batches, OnEvent, Reporter, Validation
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.live import LiveControl
from mm_rec.training.loop_state import LoopState
from mm_rec.training.loss_scaler import LossScaler
from mm_rec.training.micro_step import micro_step
from mm_rec.training.objectives import Objective
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.schedule import learning_rate
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.snapshots import Snapshots
from mm_rec.training.step import NonFiniteError, training_step
from mm_rec.training.time_limit import TimeLimit

_PAUSE_POLL = 0.2  # seconds between two looks at the control file of a run that pauses
_SUMMING_UP = 2.0  # seconds after the last save: pictures, card, log


class Trainer:
    """A run in progress: model, optimizer, data and where they stand."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        optimizer: OptimizerSet,
        batches: Batches,
        objective: Objective,
        section: ResolvedTrainSection,
        run: Path,
        reporter: Reporter,
        metrics: Sequence[MetricSpec] = (LOSS,),
        best: str = LOSS.name,
        validate: Validation | None = None,
        flops_per_token: int = 0,
        peak_flops: float = math.inf,
        on_event: OnEvent | None = None,
        time_limit: TimeLimit | None = None,
        scaler: LossScaler | None = None,
    ) -> None:
        """`metrics` describe what objective and validation give; `best` is that of them by which the best is chosen."""
        disable_malloc_trim()
        self.model, self.tokenizer = model, tokenizer
        self.batches, self.section = batches, section
        self.run, self.reporter, self.validate = run, reporter, validate
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.on_event, self.time_limit = on_event, time_limit
        self.clock = time.perf_counter
        self.metrics = {spec.name: spec for spec in metrics}
        self.best = self.metrics[best]
        self.optimizer, self.scaler = optimizer, scaler
        self.checkpoints = Checkpoints(run / "checkpoints", section.keep_last)
        self.log = MetricsLog(run / METRICS_FILE, run / "tensorboard" if section.tensorboard else None)
        self.state = LoopState(best_value=self.best.worst)
        self.control = LiveControl(run, section, self.log, reporter.say)
        self.snapshots = Snapshots(run, section, self.log, reporter.say)
        self._saved_step, self._saved_at = -1, time.monotonic()
        self._clock = self.clock()
        self._validating = self._saving = 0.0  # seconds that the last one took
        if section.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if section.compile:
            compile_for_training(model, section, reporter.say)
        self.micro_step = micro_step(model, objective, scaler, reporter.say)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take over optimizer, loop, data and random state; the model was loaded from the checkpoint's folder."""
        self.optimizer.load_state_tensors(checkpoint.optimizer)
        self.batches.load_state_dict(checkpoint.state["data"], checkpoint.data)
        self.state = LoopState.from_state_dict(checkpoint.state["loop"])
        if "control" in checkpoint.state:  # not in those of older versions
            self.control.load_state_dict(checkpoint.state["control"])
            self.snapshots.load_state_dict(checkpoint.state["snapshots"])
        if self.scaler is not None and "loss_scaler" in checkpoint.state:
            self.scaler.load_state_dict(checkpoint.state["loss_scaler"])
        set_rng_state(checkpoint.state["random"], self.model.device)
        self._resume_plan(checkpoint.state.get("plan"))
        self.log.rewind(self.state.step)
        self._saved_step = self.state.step

    def warm_start(self, checkpoint: Checkpoint, moments: bool = False) -> None:
        """Begin with the weights of another run's checkpoint, and with its optimizer's moments where asked.

        Steps, data and random state begin anew. Raises CheckpointError where a weight or a moment is of another shape.
        """
        load_weights(self.model, checkpoint.model_folder)
        if moments:
            self.optimizer.load_state_tensors(checkpoint.optimizer)

    def _resume_plan(self, plan: dict[str, Any] | None) -> None:
        """Take over the steps and the time limit of a checkpoint, and the changes that were made after it."""
        if plan is None:
            return
        self._plan(plan["steps"])
        step, records = self.state.step, read_metrics(self.log.path)
        made = {
            one["step"]: one["steps"]
            for one in records
            if one.get("event") == PLAN_EVENT and one["step"] > step
        }
        self.time_limit = TimeLimit(**plan["time"])
        self.time_limit.resume(step, self.state.seconds, made)

    def _plan(self, steps: int) -> None:
        """End with this many steps in all; the schedule of the learning rate ends there too."""
        self.section = self.section.replace(steps=steps, warmup_steps=min(self.section.warmup_steps, steps))

    def _keep_time(self) -> None:
        """Change the number of steps where the time asked for is enough for more or fewer."""
        state, planned = self.state, self.section.steps
        if self.time_limit is None:
            return
        again = state.step in self.time_limit.made
        closing = self._validating + 3 * self._saving + _SUMMING_UP  # checkpoint, best and final
        steps = self.time_limit.steps(state.step, planned, state.seconds, closing)
        if steps == planned:
            return
        self._plan(steps)
        if not again:
            self.log.write("event", state.step, event=PLAN_EVENT, steps=steps)
        self.reporter.say(
            f"step {state.step}: {steps:,} steps instead of {planned:,} fit into the time asked for"
        )

    def fit(self, stop: StopRequest) -> Outcome:
        """Train until the last step, a limit, early stopping or a request to stop.

        Every way out but a kill leaves a checkpoint of the last step.
        """
        self._clock = self.clock()
        started = {"steps": self.section.steps, "metrics": describe_metrics(self.metrics.values())}
        self.log.write("event", self.state.step, event="started", **started)
        outcome: Outcome | None = None
        while outcome is None and self.state.step < self.section.steps:
            outcome = self._apply_control(stop) or self._train_step(stop)
        outcome = outcome or Outcome.FINISHED
        self.save()
        self.log.write("event", self.state.step, event=outcome.value, seconds=round(self.state.seconds, 3))
        self.log.close()
        return outcome

    def _apply_control(self, stop: StopRequest) -> Outcome | None:
        """Do what the control file asks for before a step; returns how the run ends where it ends here."""
        state = self.state
        if "pause" in self._take_changes():
            self._pause(stop)
            if stop.requested:
                return Outcome.STOPPED
        ended = self.control.limit_reached(state.step, state.recent_losses, self.batches.epoch)
        if ended is not None and self.validate is not None and state.validated_step < state.step:
            self._validate()
        return ended

    def _take_changes(self) -> frozenset[str]:
        """Take over new limits and save where that is asked for; returns all that was asked for."""
        asked = self.control.take_changes(self.state.step)
        if "save" in asked:
            self.save()
            name = f"checkpoint-{self.state.step}-user"
            self.snapshots.save(name, self.state.step, self.model, self.tokenizer)
        return asked

    def _pause(self, stop: StopRequest) -> None:
        """Save, and wait until the control file says `resume` or a signal comes; this is not training time."""
        step = self.state.step
        self._count_time()
        self.save()
        self.log.write("event", step, event="paused")
        self.reporter.say(
            f"step {step}: paused and saved. To go on: mmrec runs set {self.run} resume; Ctrl-C ends the run here"
        )
        while not stop.requested and "resume" not in self._take_changes():
            time.sleep(_PAUSE_POLL)
        self._clock = self.clock()
        if not stop.requested:
            self.log.write("event", step, event="continued")
            self.reporter.say(f"step {step}: going on")

    def _train_step(self, stop: StopRequest) -> Outcome | None:
        """Train a step, measure and save what is due after it; returns how the run ends where it ends here."""
        state = self.state
        values = self._step()
        self._count_time()
        self._keep_time()
        section = self.section
        self._report(values)
        last = state.step == section.steps
        measured = self.validate is not None and (last or state.step % section.validate_every == 0)
        if measured:
            self._validate()
        self.snapshots.save_due(state.step, state.recent_losses, self.model, self.tokenizer)
        if self._save_is_due():
            self.save()
        if last:
            return None
        if measured and section.patience is not None and state.evals_without_improvement >= section.patience:
            self.reporter.say(
                f"stopping early: validation has not improved for {section.patience} measurements; "
                f"the best was {state.best_value:.4f} at step {state.best_step}"
            )
            return Outcome.EARLY
        return Outcome.STOPPED if stop.requested else None

    def _count_time(self) -> None:
        """Add the time since the last call to the training time, in seconds."""
        now = self.clock()
        self.state.seconds += now - self._clock
        self._clock = now

    def _save_is_due(self) -> bool:
        """After every `checkpoint_every` steps or `checkpoint_minutes`, and after the first step of all: a disk that
        is full or may not be written is then found in the first minute and not after hours.
        """
        since = time.monotonic() - self._saved_at
        step = self.state.step
        return (
            step == 1
            or step % self.section.checkpoint_every == 0
            or since > 60 * self.section.checkpoint_minutes
        )

    def _step(self) -> dict[str, float]:
        """One optimizer step over all its micro-batches, normalised by all their tokens; returns measurements."""
        step, section = self.state.step, self.section
        self._event("step", step)
        start = self.clock()
        rate = min(learning_rate(step, section), self.control.limits.max_learning_rate or math.inf)
        try:
            done = training_step(
                self.model,
                self.batches,
                self.micro_step,
                self.optimizer,
                section,
                step,
                rate,
                self._event,
                self.scaler,
            )
        except NonFiniteError as error:
            self._stop_at_non_finite(error.loss, error.norm)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._stop_at_full_memory(error)
        self.state.step += 1
        self.state.tokens += done.tokens
        self.state.add_loss(done.means["loss"])
        speed = done.tokens / (self.clock() - start)
        rate_of_work = 3 * self.flops_per_token * speed
        # A peak that was measured beside other work is too low: what was done can be done.
        self.peak_flops = max(self.peak_flops, rate_of_work)
        share = rate_of_work / self.peak_flops
        values = {
            **done.means,
            "lr": rate,
            "norm": done.norm,
            "tokens_per_second": speed,
            "peak_share": share,
        }
        if done.skipped:
            del values["norm"]  # it is infinite
        if self.scaler is not None:
            values |= {"loss_scale": self.scaler.scale, "skipped_steps": self.scaler.skipped_steps}
        return values

    def _stop_at_non_finite(self, loss: float, norm: float) -> NoReturn:
        """Leave before the optimizer step, so that the weights stay good."""
        step = self.state.step
        self.log.write("event", step, event=Outcome.NON_FINITE.value, loss=str(loss), norm=str(norm))
        raise TrainingStopped(
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}, so the step was not taken. "
            f"The last checkpoint is of step {max(0, self._saved_step)}. Try a lower learning rate "
            f"(--learning-rate {self.section.learning_rate / 2:g}), a longer warm-up, or --precision float32"
        )

    def _stop_at_full_memory(self, error: RuntimeError) -> NoReturn:
        """Leave, and say how the run can go on."""
        step, section = self.state.step, self.section
        self.log.write("event", step, event="out of memory")
        # Conversations are packed for the batches that they are read in, and states are passed within one.
        same = "global_batch" in self.batches.state_dict() and not section.state_passing
        less = [f"--batch-size {max(1, section.batch_size // 2)}"] * (same and section.batch_size > 1)
        less += ["--gradient-checkpointing"] * (not section.gradient_checkpointing)
        raise TrainingStopped(
            f"step {step + 1}: the device's memory is full ({truncated(str(error).strip().splitlines()[0])}). The last "
            f"checkpoint is of step {max(0, self._saved_step)}. Go on with less at a time, which changes nothing of "
            f"what is learnt: --resume {self.run} {' '.join(less) or 'on a device with more memory'}"
        ) from error

    def _stop_at_non_finite_model(self, what: str) -> NoReturn:
        """Leave without a checkpoint of a model that is of no use."""
        step = self.state.step
        self.log.write("event", step, event=Outcome.NON_FINITE.value, reason=what)
        raise TrainingStopped(
            f"step {step}: {what}, so nothing was saved. The last checkpoint is of step {max(0, self._saved_step)}. "
            f"Try a lower learning rate (--learning-rate {self.section.learning_rate / 2:g}), less weight decay, or "
            "--precision float32"
        )

    def _report(self, values: dict[str, float]) -> None:
        step, section = self.state.step, self.section
        self.reporter.progress(step, section.steps, values)
        if step == 1 or step % section.log_every == 0 or step == section.steps:
            rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
            epoch = self.batches.epoch(step - 1)
            self.log.write("train", step, **rounded, tokens=self.state.tokens, epoch=epoch)

    def _validate(self) -> None:
        """Measure validation loss, keep the best model, notice over-fitting."""
        assert self.validate is not None
        state, start = self.state, self.clock()
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):  # its shapes would each be compiled for a few batches
            scores = self.validate(self.model)
        if self.best.name not in scores:
            raise ConfigError(
                f"the best model cannot be chosen by {self.best.name}: validation gives {', '.join(scores)}"
            )
        loss, value = scores[LOSS.name], scores[self.best.name]
        state.validated_step = state.step
        if not (math.isfinite(loss) and math.isfinite(value)):
            self._stop_at_non_finite_model(f"the validation {self.best.title} is {value}, the loss {loss}")
        train = state.train_loss
        state.history.append((train, loss))
        self._validating = self.clock() - start
        seconds = round(self._validating, 3)
        self.log.write("validation", state.step, **scores, train_loss=train, seconds=seconds)
        self.reporter.say(
            f"step {state.step}: validation {self._shown(scores)} (training loss {train:.4f}) in "
            f"{self._validating:.1f} seconds"
        )
        if self.best.better(value, state.best_value):
            state.best_value, state.best_step, state.evals_without_improvement = value, state.step, 0
            with atomic_path(self.run / "best") as temporary:
                save_model(self.model, self.tokenizer, temporary)
        else:
            state.evals_without_improvement += 1
        if state.over_fitting:
            self.log.write("event", state.step, event="over-fitting")
            self.reporter.say(
                "warning: validation loss rises while training loss falls: the model is learning the training text by "
                "heart. Add text, stop here (the best model is kept in best/), or use --patience"
            )

    def _shown(self, scores: dict[str, float]) -> str:
        """The metrics with a unit, and of a mixture the loss of each source (loss/SOURCE), in a line."""
        units = {name for name, spec in self.metrics.items() if spec.unit}
        shown = units | {name for name in scores if name.startswith("loss/")}
        return ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if name in shown)

    def save(self) -> None:
        """Write a checkpoint of the present step, unless it was written already."""
        if self._saved_step == self.state.step:
            return
        if not bool(torch.stack([one.isfinite().all() for one in self.optimizer.parameters]).all()):
            self._stop_at_non_finite_model("weights are infinite or not numbers")
        start = self.clock()
        state = {
            "loop": self.state.state_dict(),
            "data": self.batches.state_dict(),
            "random": get_rng_state(self.model.device),
            "control": self.control.state_dict(),
            "snapshots": self.snapshots.state_dict(),
        }
        if self.scaler is not None:
            state["loss_scaler"] = self.scaler.state_dict()
        if self.time_limit is not None:
            state["plan"] = {"steps": self.section.steps, "time": self.time_limit.state_dict()}
        self.checkpoints.save(
            self.state.step,
            self.model,
            self.tokenizer,
            self.optimizer.state_tensors(),
            state,
            self.on_event,
            self.batches.state_tensors(),
        )
        self._saving = self.clock() - start
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def _event(self, moment: str, step: int) -> None:
        if self.on_event is not None:
            self.on_event(moment, step)
