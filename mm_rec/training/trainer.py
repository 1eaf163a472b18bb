"""The one training loop, for every objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import TrainingStopped
from mm_rec.models.forward import Batch
from mm_rec.models.loading import save_model
from mm_rec.runs.files import atomic_path
from mm_rec.runs.metrics_log import METRICS_FILE, PLAN_EVENT, MetricsLog, read_metrics
from mm_rec.runtime import disable_malloc_trim, get_rng_state, set_rng_state
from mm_rec.training.checkpoint import Checkpoint, Checkpoints
from mm_rec.training.compilation import compile_for_training
from mm_rec.training.config import TrainingConfig
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.live import LiveControl
from mm_rec.training.objectives import Objective
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.schedule import learning_rate
from mm_rec.training.snapshots import Snapshots
from mm_rec.training.time_limit import TimeLimit

_RECENT = 20  # steps whose mean stands beside a validation loss: enough to be steady, few enough to be of the same time
_PAUSE_POLL = 0.2  # seconds between two looks at the control file of a run that pauses
_SUMMING_UP = 2.0  # seconds after the last save: pictures, card, log

Validation = Callable[[PreTrainedModel], dict[str, float]]


class Batches(Protocol):
    """Where batches come from; `mm_rec.data.batches.PackedBatches` is one."""

    def batch_at(self, step: int, micro_step: int = 0) -> Batch:
        """A micro-batch of a step, both counted from 0; the loop asks in order."""

    def epoch(self, step: int) -> int:
        """The epoch, from 0, in which a step starts."""

    def state_dict(self) -> dict[str, Any]:
        """What the order of the data depends on, and where a stream stands."""

    def state_tensors(self) -> dict[str, Tensor]:
        """What a stream has read and not handed out."""

    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Continue, or raise CheckpointError where the batches would be others."""


class Reporter(Protocol):
    """Who is told how a run goes."""

    def say(self, text: str) -> None:
        """A sentence for the person."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """A step was done."""


@dataclass(slots=True)
class LoopState:
    """What the loop itself remembers between steps, and saves."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    worse_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of the last steps, as many as _RECENT
    history: list[tuple[float, float]] = field(default_factory=list)
    validated_step: int = 0


class Training:
    """A run in progress: model, optimizer, data and where they stand."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        batches: Batches,
        objective: Objective,
        config: TrainingConfig,
        run: Path,
        reporter: Reporter,
        validate: Validation | None = None,
        flops_per_token: int = 0,
        peak_flops: float = math.inf,
        on_event: Callable[[str, int], None] | None = None,
        time_limit: TimeLimit | None = None,
    ) -> None:
        disable_malloc_trim()
        self.model, self.tokenizer = model, tokenizer
        self.batches, self.objective, self.config = batches, objective, config
        self.run, self.reporter, self.validate = run, reporter, validate
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.on_event, self.time_limit = on_event, time_limit
        self.clock = time.perf_counter
        self.optimizer = OptimizerSet(model, config)
        self.checkpoints = Checkpoints(run / "checkpoints", config.keep_last)
        self.log = MetricsLog(run / METRICS_FILE, run / "tensorboard" if config.tensorboard else None)
        self.state = LoopState()
        self.control = LiveControl(run, config, self.log, reporter.say)
        self.snapshots = Snapshots(run, config, self.log, reporter.say)
        self._saved_step, self._saved_at = -1, time.monotonic()
        self._clock = self.clock()
        self._validating = self._saving = 0.0  # seconds that the last one took
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if config.compile:
            compile_for_training(model, config, reporter.say)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take over optimizer, loop, data and random state; the model was loaded from the checkpoint's folder."""
        self.optimizer.load_state_tensors(checkpoint.optimizer)
        self.batches.load_state_dict(checkpoint.state["data"], checkpoint.data)
        self.state = LoopState(**checkpoint.state["loop"])
        self.state.history = [(train, validation) for train, validation in self.state.history]
        if "control" in checkpoint.state:  # not in those of older versions
            self.control.load_state_dict(checkpoint.state["control"])
            self.snapshots.load_state_dict(checkpoint.state["snapshots"])
        set_rng_state(checkpoint.state["random"])
        self._resume_plan(checkpoint.state.get("plan"))
        self.log.rewind(self.state.step)
        self._saved_step = self.state.step

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
        self.config = self.config.changed(steps=steps, warmup_steps=min(self.config.warmup_steps, steps))

    def _keep_time(self) -> None:
        """Change the number of steps where the time asked for is enough for more or fewer."""
        state, planned = self.state, self.config.steps
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

    def fit(self, stop: StopRequest) -> str:
        """Train until the last step, a limit, early stopping or a request to stop.

        Returns "finished", "at the loss asked for", "at the epoch asked for", "early" or "stopped". Every way out but
        a kill leaves a checkpoint of the last step.
        """
        self._clock = self.clock()
        self.log.write("event", self.state.step, event="started", steps=self.config.steps)
        outcome: str | None = None
        while outcome is None and self.state.step < self.config.steps:
            outcome = self._obey(stop) or self._advance(stop)
        outcome = outcome or "finished"
        self.save()
        self.log.write("event", self.state.step, event=outcome, seconds=round(self.state.seconds, 3))
        self.log.close()
        return outcome

    def _obey(self, stop: StopRequest) -> str | None:
        """Do what the control file asks for before a step; returns how the run ends where it ends here."""
        state = self.state
        if "pause" in self._take_changes():
            self._pause(stop)
            if stop.requested:
                return "stopped"
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

    def _advance(self, stop: StopRequest) -> str | None:
        """Train a step, measure and save what is due after it; returns how the run ends where it ends here."""
        state = self.state
        self.model.train()
        values = self._step()
        self._count_time()
        self._keep_time()
        config = self.config
        self._report(values)
        last = state.step == config.steps
        measured = self.validate is not None and (last or state.step % config.validate_every == 0)
        if measured:
            self._validate()
        self.snapshots.save_due(state.step, state.recent_losses, self.model, self.tokenizer)
        if self._save_is_due():
            self.save()
        if last:
            return None
        if measured and config.patience is not None and state.worse_in_a_row >= config.patience:
            self.reporter.say(
                f"stopping early: validation has not improved for {config.patience} measurements; "
                f"the best was {state.best_loss:.4f} at step {state.best_step}"
            )
            return "early"
        return "stopped" if stop.requested else None

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
            or step % self.config.checkpoint_every == 0
            or since > 60 * self.config.checkpoint_minutes
        )

    def _step(self) -> dict[str, float]:
        """One optimizer step over all its micro-batches, normalised by all their tokens; returns measurements."""
        step, config = self.state.step, self.config
        self._event("step", step)
        start = self.clock()
        device = next(self.model.parameters()).device
        total, count, tokens = 0.0, 0, 0
        for micro in range(config.accumulation):
            batch = {name: tensor.to(device) for name, tensor in self.batches.batch_at(step, micro).items()}
            loss, counted, _ = self.objective(self.model, batch)
            loss.backward()
            total += float(loss.detach())
            count += counted
            tokens += _present(batch)
            self._event("micro", step)
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / max(1, count))
        norm = float(torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, config.clip))
        loss_mean = total / max(1, count)
        if not (math.isfinite(loss_mean) and math.isfinite(norm)):
            self._stop_at_non_finite(loss_mean, norm)
        rate = min(learning_rate(step, config), self.control.limits.max_learning_rate or math.inf)
        self.optimizer.set_learning_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.state.tokens += tokens
        self.state.recent_losses = [*self.state.recent_losses[1 - _RECENT :], loss_mean]
        speed = tokens / (self.clock() - start)
        rate_of_work = 3 * self.flops_per_token * speed
        # A peak that was measured beside other work is too low: what was done can be done.
        self.peak_flops = max(self.peak_flops, rate_of_work)
        share = rate_of_work / self.peak_flops
        return {"loss": loss_mean, "lr": rate, "norm": norm, "tokens_per_second": speed, "peak_share": share}

    def _stop_at_non_finite(self, loss: float, norm: float) -> None:
        """Leave before the optimizer step, so that the weights stay good."""
        step = self.state.step
        self.log.write("event", step, event="non-finite", loss=str(loss), norm=str(norm))
        raise TrainingStopped(
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}, so the step was not taken. "
            f"The last checkpoint is of step {max(0, self._saved_step)}. Try a lower learning rate "
            f"(--learning-rate {self.config.learning_rate / 2:g}), a longer warm-up, or --precision float32"
        )

    def _stop_at_non_finite_model(self, what: str) -> None:
        """Leave without a checkpoint of a model that is of no use."""
        step = self.state.step
        self.log.write("event", step, event="non-finite", reason=what)
        raise TrainingStopped(
            f"step {step}: {what}, so nothing was saved. The last checkpoint is of step {max(0, self._saved_step)}. "
            f"Try a lower learning rate (--learning-rate {self.config.learning_rate / 2:g}), less weight decay, or "
            "--precision float32"
        )

    def _report(self, values: dict[str, float]) -> None:
        step, config = self.state.step, self.config
        self.reporter.progress(step, config.steps, values)
        if step == 1 or step % config.log_every == 0 or step == config.steps:
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
        loss, state.validated_step = scores["loss"], state.step
        if not math.isfinite(loss):
            self._stop_at_non_finite_model(f"the validation loss is {loss}")
        train = sum(state.recent_losses) / max(1, len(state.recent_losses))
        state.history.append((train, loss))
        self._validating = self.clock() - start
        self.log.write(
            "validation", state.step, **scores, train_loss=train, seconds=round(self._validating, 3)
        )
        shown = ", ".join(
            f"{name} {value:.4f}"
            for name, value in scores.items()
            if name in ("loss", "bits_per_byte") or name.startswith("loss/")  # loss/SOURCE of a mixture
        )
        self.reporter.say(
            f"step {state.step}: validation {shown} (training loss {train:.4f}) in {self._validating:.1f} seconds"
        )
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.worse_in_a_row = loss, state.step, 0
            with atomic_path(self.run / "best") as temporary:
                save_model(self.model, self.tokenizer, temporary)
        else:
            state.worse_in_a_row += 1
        if over_fitting(state.history):
            self.log.write("event", state.step, event="over-fitting")
            self.reporter.say(
                "warning: validation loss rises while training loss falls: the model is learning the training text by "
                "heart. Add text, stop here (the best model is kept in best/), or use --patience"
            )

    def save(self) -> None:
        """Write a checkpoint of the present step, unless it was written already."""
        if self._saved_step == self.state.step:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self.optimizer.parameters):
            self._stop_at_non_finite_model("weights are infinite or not numbers")
        start = self.clock()
        state = {
            "loop": asdict(self.state),
            "data": self.batches.state_dict(),
            "random": get_rng_state(),
            "control": self.control.state_dict(),
            "snapshots": self.snapshots.state_dict(),
        }
        if self.time_limit is not None:
            state["plan"] = {"steps": self.config.steps, "time": self.time_limit.state_dict()}
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


def over_fitting(history: list[tuple[float, float]]) -> bool:
    """Whether validation loss rose twice in a row while training loss fell; pairs are (training, validation)."""
    if len(history) < 3:
        return False
    (train_a, valid_a), (train_b, valid_b), (train_c, valid_c) = history[-3:]
    return valid_a < valid_b < valid_c and train_a > train_b > train_c


def _present(batch: Batch) -> int:
    """Tokens of a batch that are not padding, which is masked or has a negative document."""
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    documents = batch.get("document_ids")
    return batch["input_ids"].numel() if documents is None else int((documents >= 0).sum())
