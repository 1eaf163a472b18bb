"""A kind of stage with an objective of two metrics, as a package of someone else's would bring it: one module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from mm_rec.config import setting
from mm_rec.models.cross_entropy import token_logprobs
from mm_rec.models.forward import Batch, hidden_states, lm_head_of
from mm_rec.pipeline.pretrain import prepare_pretraining
from mm_rec.pipeline.sections import PretrainSection
from mm_rec.pipeline.training_job import TrainingContext, TrainingJob
from mm_rec.pipeline.training_kind import training_kind
from mm_rec.runs.metrics import LOSS, MetricSpec
from mm_rec.training.objectives import Objective, SumCount, Sums

SURPRISE = MetricSpec("surprise", "nats a token")
SURE = MetricSpec("sure", lower_is_better=False, label="share of sure tokens")


class ToySection(PretrainSection):
    """Pre-training that learns more from what surprises it."""

    focus: float = setting(1.0, "How much more surprising tokens count.", ge=0)


def focal(focus: float) -> Callable[[torch.dtype], Objective]:
    """Focal loss (Lin et al. 2017) of next tokens, with two metrics."""

    def make(dtype: torch.dtype) -> Objective:
        def objective(model: PreTrainedModel, batch: Batch) -> Sums:
            device = batch["input_ids"].device.type
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                hidden = hidden_states(model, batch)
            logprobs = token_logprobs(hidden, lm_head_of(model), batch["labels"], dtype)
            weights = (1 - logprobs.exp()).detach() ** focus
            count = len(logprobs)
            return {
                "loss": SumCount(-(weights * logprobs).sum(), count),
                "surprise": SumCount(-logprobs.sum().detach(), count),
                "sure": SumCount((logprobs > -0.7).sum().float(), count),
            }

        return objective

    return make


def prepare(section: ToySection, context: TrainingContext) -> TrainingJob:
    """The training of pre-training, with another objective."""
    job = prepare_pretraining(section, context)
    return replace(job, objective=focal(section.focus), metrics=(LOSS, SURPRISE, SURE))


KIND = training_kind("toy", ToySection, prepare)
