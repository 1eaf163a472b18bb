"""The learning rate as a pure function of the step.

A schedule is a shape: the share of the way from `min_lr_ratio` up to the peak, by how far the run is after warm-up. To
add one, write its function and name it in `SHAPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class ScheduleSettings(Protocol):
    """The settings that the rate follows from; `ResolvedTrainSection` has them."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""

    @property
    def learning_rate(self) -> float:
        """The peak."""

    @property
    def schedule(self) -> str:
        """The name of a shape."""

    @property
    def min_lr_ratio(self) -> float:
        """The rate of the last step, as a share of the peak."""

    @property
    def decay_fraction(self) -> float:
        """The share of the steps in which wsd falls."""


Shape = Callable[[float, ScheduleSettings], float]


def _constant(progress: float, section: ScheduleSettings) -> float:
    return 1.0


def _linear(progress: float, section: ScheduleSettings) -> float:
    return 1 - progress


def _cosine(progress: float, section: ScheduleSettings) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(progress: float, section: ScheduleSettings) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then linearly down over the last `decay_fraction`."""
    return min(1.0, (1 - progress) / section.decay_fraction) if section.decay_fraction else 1.0


SHAPES: dict[str, Shape] = {"cosine": _cosine, "linear": _linear, "wsd": _wsd, "constant": _constant}


def learning_rate(step: int, section: ScheduleSettings) -> float:
    """The rate of a step counted from 0: a linear warm-up, then the schedule down to min_lr_ratio of the peak.

    A schedule falls from the end of warm-up to the last step, or, where min_lr_ratio is 0, to the one after it, because
    a step at rate 0 learns nothing.
    """
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    last = section.steps - (1 if section.min_lr_ratio else 0)
    progress = min(1.0, (step - section.warmup_steps) / max(1, last - section.warmup_steps))
    share = SHAPES[section.schedule](progress, section)
    return section.learning_rate * (section.min_lr_ratio + (1 - section.min_lr_ratio) * share)
