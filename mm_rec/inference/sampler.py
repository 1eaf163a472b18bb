"""Sample the next token from a model's logits.

Shapes: V vocabulary, C candidates that are left of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Protocol

import pydantic
import torch
from torch import Tensor

from mm_rec.config import Section
from mm_rec.errors import CheckpointError

RECENT_TOKENS = 256
_FIRST_CANDIDATES = 256  # candidates that are looked at first


class SamplingParams(Section):
    """Parameters of sampling and stopping.

    `temperature` 0 always takes the likeliest token. `top_k` keeps that many of the likeliest tokens (0: all),
    `top_p` the fewest that together have this probability, `min_p` those with at least this share of the
    likeliest one's probability. `repetition_penalty` above 1 makes the tokens of the last 256 less likely
    (Keskar et al. 2019). `frequency_penalty` is taken off a token's logit for each time that it was written so far,
    `presence_penalty` once, and `logit_bias` is added to the logits of the tokens that it names (all three as OpenAI
    defines them). Text ends before any of the `stop` strings. Without a `seed` every run differs.
    """

    temperature: float = pydantic.Field(default=0.8, ge=0, le=100)
    top_k: int = pydantic.Field(default=0, ge=0)
    top_p: float = pydantic.Field(default=0.95, gt=0, le=1)
    min_p: float = pydantic.Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = pydantic.Field(default=1.0, gt=0, le=100)
    frequency_penalty: float = pydantic.Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = pydantic.Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, pydantic.Field(ge=-100, le=100)]] = {}
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


class Sampler:
    """The choices of one continuation: its random numbers, and the tokens that its penalties count.

    `recent`: the last tokens before the next, for the repetition penalty; whoever uses the choices adds them there.
    """

    def __init__(self, sampling: SamplingParams, recent: Collection[int] = ()) -> None:
        self._sampling, self._generator, self._recent = sampling, sampling.generator(), recent
        self._written: Counter[int] = Counter()

    def sample(self, logits: Tensor) -> int:
        """The next token, from logits (V,) float32 on the CPU, which are not changed; −∞ rules a token out.

        Raises CheckpointError where the logits are not numbers, as those of damaged weights are.
        """
        sampling, scores = self._sampling, self._apply_penalties(logits)
        likeliest = int(scores.argmax())  # of numbers that are none, one of those
        if not math.isfinite(scores[likeliest]):
            raise CheckpointError(
                "the model's predictions are not finite numbers: its weights are damaged or its training went "
                "astray. Use an earlier checkpoint"
            )
        if sampling.temperature == 0:
            token = likeliest
        elif sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:  # no need to sort
            token = self._draw(_apply_temperature(scores, sampling).softmax(0))
        else:
            ids, probabilities = candidates(scores, sampling)
            token = int(ids[self._draw(probabilities)])
        return token

    def record(self, token: int) -> None:
        """Note that a token was written, for the penalties that count it."""
        self._written[token] += 1

    def _apply_penalties(self, logits: Tensor) -> Tensor:
        """Logits (V,) with the penalties and biases."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1 and self._recent:
            ids = torch.tensor(sorted(set(self._recent)))
            known = logits[ids]
            penalty = sampling.repetition_penalty  # divided where positive, multiplied where not
            logits = logits.index_put((ids,), torch.where(known > 0, known / penalty, known * penalty))
        changes = dict(sampling.logit_bias)
        if sampling.frequency_penalty or sampling.presence_penalty:
            for token, count in self._written.items():
                penalty = sampling.frequency_penalty * count + sampling.presence_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if changes:
            ids = torch.tensor(list(changes))
            logits = logits.index_add(0, ids, torch.tensor(list(changes.values()), dtype=logits.dtype))
        return logits

    def _draw(self, probabilities: Tensor) -> int:
        """An index at random; one random number is taken, however many there are to choose from."""
        bounds = probabilities.double().cumsum(0)
        point = torch.rand(1, generator=self._generator, dtype=torch.float64) * bounds[-1]
        return min(int(torch.searchsorted(bounds, point, right=True)), len(bounds) - 1)


def candidates(scores: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens (C,) that may be chosen at a temperature above 0, likeliest first, and their probabilities (C,)."""
    scores = _apply_temperature(scores, sampling)
    count = len(scores) if sampling.top_k == 0 else min(sampling.top_k, len(scores))
    total = (scores if count == len(scores) else scores.topk(count).values).logsumexp(0)
    for few in (
        min(_FIRST_CANDIDATES, count),
        count,
    ):  # most often few are left: sorting a whole vocabulary takes long
        likeliest, ids = scores.topk(few)
        probabilities = (likeliest - total).exp()
        likelier = probabilities.cumsum(0) - probabilities
        kept = (likelier < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
        if not kept[-1]:
            break
    kept[0] = True  # the running sum may round a tiny top_p away
    probabilities = probabilities[kept]
    return ids[kept], probabilities / probabilities.sum()


def _apply_temperature(scores: Tensor, sampling: SamplingParams) -> Tensor:
    """Scores (V,) divided by the temperature, the largest 0."""
    # Off the largest first: dividing by a tiny temperature would overflow, and must only sharpen.
    return (scores - scores.max()) / sampling.temperature


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that was chosen, its log-probability by the model, and the likeliest tokens with theirs, where asked for.

    They are the model's own (nats), before penalties, temperature and constraints.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """A constraint on the sampled tokens, such as a grammar."""

    @property
    def is_stopped(self) -> bool:
        """True where nothing more may follow."""

    @property
    def is_accepting(self) -> bool:
        """True where the text may end here."""

    def sample(self, logits: Tensor, remaining: int, draw: Callable[[Tensor], int]) -> int:
        """A token that may come next, with `remaining` left, drawn from logits (V,) of which some are ruled out."""

    def accept_token(self, token: int) -> None:
        """Note the token that was chosen."""


def with_logprobs(token: int, logits: Tensor, top_logprobs: int) -> SampledToken:
    """A token with its log-probability, from logits (V,), and so many of the likeliest with theirs."""
    values = logits.log_softmax(0)
    top = values.topk(top_logprobs)
    return SampledToken(
        token, float(values[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    )
