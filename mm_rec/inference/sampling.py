"""Choosing the next token from a model's logits.

Shapes: V vocabulary, C candidates that are left of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from mm_rec.config import Section
from mm_rec.errors import CheckpointError

_FEW = 256  # candidates that are looked at first
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class Sampling(Section):
    """How tokens are chosen, and when to stop.

    `temperature` 0 always takes the likeliest token. `top_k` keeps that many of the likeliest tokens (0: all),
    `top_p` the fewest that together have this probability, `min_p` those with at least this share of the
    likeliest one's probability. `repetition_penalty` above 1 makes the tokens of the last 256 less likely
    (Keskar et al. 2019). Text ends before any of the `stop` strings. Without a `seed` every run differs.
    """

    temperature: Finite = pydantic.Field(default=0.8, ge=0, le=100)
    top_k: int = pydantic.Field(default=0, ge=0)
    top_p: Finite = pydantic.Field(default=0.95, gt=0, le=1)
    min_p: Finite = pydantic.Field(default=0.0, ge=0, le=1)
    repetition_penalty: Finite = pydantic.Field(default=1.0, gt=0, le=100)
    max_new_tokens: int = pydantic.Field(default=200, ge=1)
    stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = ()
    seed: int | None = pydantic.Field(default=None, ge=0, lt=2**63)

    def generator(self) -> torch.Generator:
        """A fresh source of random numbers, started from `seed` where there is one."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(
    logits: Tensor, generator: torch.Generator, sampling: Sampling, recent_ids: Collection[int] = ()
) -> int:
    """Choose a token from logits (V,) float32 on the CPU; only `generator` changes.

    Raises CheckpointError where the logits are not numbers, as those of damaged weights are.
    """
    if not math.isfinite(logits.max()):
        raise CheckpointError(
            "the model's predictions are not finite numbers: its weights are damaged or its training went "
            "astray. Use an earlier checkpoint"
        )
    if sampling.temperature == 0:
        return int(_penalised(logits, sampling.repetition_penalty, recent_ids).argmax())
    if (
        sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0
    ):  # all may be chosen: no need to sort
        return _draw(_scores(logits, sampling, recent_ids).softmax(0), generator)
    ids, probabilities = candidates(logits, sampling, recent_ids)
    return int(ids[_draw(probabilities, generator)])


def candidates(logits: Tensor, sampling: Sampling, recent_ids: Collection[int] = ()) -> tuple[Tensor, Tensor]:
    """The tokens (C,) that may be chosen at a temperature above 0, likeliest first, and their probabilities (C,)."""
    scores = _scores(logits, sampling, recent_ids)
    count = len(scores) if sampling.top_k == 0 else min(sampling.top_k, len(scores))
    total = (scores if count == len(scores) else scores.topk(count).values).logsumexp(0)
    for few in (min(_FEW, count), count):  # most often few are left: sorting a whole vocabulary takes long
        likeliest, ids = scores.topk(few)
        probabilities = (likeliest - total).exp()
        likelier = probabilities.cumsum(0) - probabilities
        kept = (likelier < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
        if not kept[-1]:
            break
    kept[0] = True  # the running sum may round a tiny top_p away
    probabilities = probabilities[kept]
    return ids[kept], probabilities / probabilities.sum()


def _draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """An index at random; one random number is taken, however many there are to choose from."""
    bounds = probabilities.double().cumsum(0)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * bounds[-1]
    return min(int(torch.searchsorted(bounds, point, right=True)), len(bounds) - 1)


def _scores(logits: Tensor, sampling: Sampling, recent_ids: Collection[int]) -> Tensor:
    """Logits (V,) with the penalty and divided by the temperature."""
    scores = _penalised(logits, sampling.repetition_penalty, recent_ids)
    # Off the largest first: dividing by a tiny temperature would overflow, and must only sharpen.
    return (scores - scores.max()) / sampling.temperature


def _penalised(logits: Tensor, penalty: float, recent_ids: Collection[int]) -> Tensor:
    """Logits (V,) in which each recent token's is made smaller: divided where positive, multiplied where not."""
    if penalty == 1 or not recent_ids:
        return logits
    ids = torch.tensor(sorted(set(recent_ids)))
    chosen = logits[ids]
    return logits.index_put((ids,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))
