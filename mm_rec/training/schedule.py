"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from mm_rec.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of a step counted from 0: a linear warm-up, then the schedule down to min_lr_ratio of the peak.

    cosine and linear fall from the end of warm-up to the last step, or, where min_lr_ratio is 0, to the one after it,
    because a step at rate 0 learns nothing; wsd (warm-up, stable, decay: Hu et al. 2024)
    stays at the peak and falls linearly over the last `decay_fraction` of the steps after warm-up; constant stays.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    last = config.steps - (1 if config.min_lr_ratio else 0)
    span = max(1, last - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.schedule == "constant":
        share = 1.0
    elif config.schedule == "linear":
        share = 1 - progress
    elif config.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
