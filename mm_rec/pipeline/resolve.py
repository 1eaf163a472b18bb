"""The one dial: every setting of training that was not given, from the model's size, the data and the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from transformers import PreTrainedConfig

from mm_rec.data.mixture import MAX_EPOCHS
from mm_rec.errors import ConfigError
from mm_rec.models.presets import ModelSize, minimum_tokens
from mm_rec.training.section import TrainSection

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
_MICRO_TOKENS = 4096  # of one forward pass on a CPU: enough to keep it busy, little enough for its caches
# A validation reads at most a tenth of the tokens that are trained on between two. It only goes forward, so it takes
# less than a tenth of the time too, on every machine and compiled or not.
_SEGMENT = 4096  # tokens that are read at once where a row does not fit: enough to keep the processor busy
_VALIDATION_SHARE = 0.1
_STEADY_TOKENS = 8192  # of a validation: fewer would measure the choice of text more than the model
_MOST_VALIDATIONS, _MOST_STEPS_BETWEEN, _MOST_ROWS = 10, 500, 256
_ADAPTER_RATE = 2e-4
_PLANNED_SHARE = 0.93  # of the time left, for steps: validation and saving take the rest


S = TypeVar("S", bound=TrainSection)


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed measured before the first step, in tokens a second, and the seconds left of the minutes asked for."""

    tokens_per_second: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts that settings follow from: the model, the tokens of each source, whether the model had learnt something.

    `tokens` is None for a stream, whose length nobody knows.
    """

    model: PreTrainedConfig
    size: ModelSize
    tokens: Mapping[str, int] | None
    continued: bool


@dataclass(frozen=True, slots=True)
class Resolved(Generic[S]):
    """A section in which nothing is open, and the reason of each value that was not given, by its name.

    `least_steps` and `most_steps` hold whatever the time is; `most_steps` is None where time is the only limit.
    """

    section: S
    reasons: dict[str, str]
    least_steps: int = 1
    most_steps: int | None = None

    def lines(self) -> list[str]:
        """Each derived value with its reason, in a line."""
        values = {name: getattr(self.section, name) for name in self.reasons}
        return [
            f"{name} = {value:,} ({self.reasons[name]})"
            if isinstance(value, int)
            else f"{name} = {value} ({self.reasons[name]})"
            for name, value in values.items()
        ]


def resolve_batch(section: S, facts: Facts) -> Resolved[S]:
    """The section with the shape of its batches: rows, their length, and how many batches a step reads."""
    width = facts.model.hidden_size
    seq_len = section.seq_len or _sequence_length(width, facts.tokens)
    rows, accumulation = batch_shape(section, width, seq_len)
    smallest = "the corpus" if facts.tokens is None or len(facts.tokens) == 1 else "the smallest source"
    known = "" if facts.tokens is None else f", and {smallest} has {min(facts.tokens.values()):,}"
    reasons = {
        "seq_len": f"tokens; for width {width}{known}",
        "batch_size": f"rows at a time, {rows * seq_len:,} tokens",
        "accumulation": f"so that a step reads {rows * accumulation * seq_len:,} tokens",
    }
    open_ones = {name: reason for name, reason in reasons.items() if not getattr(section, name)}
    return Resolved(section.replace(seq_len=seq_len, batch_size=rows, accumulation=accumulation), open_ones)


def resolve(batch: Resolved[S], facts: Facts, pace: Pace | None) -> Resolved[S]:
    """Fill in the rest of a section whose batches are known. `pace` is needed only where `minutes` limits the run."""
    section, width = batch.section, facts.model.hidden_size
    assert section.batch_size and section.accumulation and section.seq_len
    per_step = section.batch_size * section.accumulation * section.seq_len
    steps, reason, least, most = _steps(section, facts, per_step, pace)
    warmup = section.warmup_steps if section.warmup_steps is not None else min(steps // 10, 200)
    every, rows = _validation(section, steps, per_step, section.seq_len)
    small = "" if section.validation_rows else ": at most a tenth of the time"
    values: dict[str, Any] = {
        "steps": steps,
        "learning_rate": section.learning_rate or _learning_rate(section, width, facts.continued),
        "warmup_steps": min(warmup, steps),
        "validate_every": every,
        "validation_rows": rows,
        "checkpoint_every": section.checkpoint_every or every,
        "optimizer": section.optimizer or ("muon" if section.adapter is None else "adamw"),
        "compile": bool(section.compile),
    }
    reasons = {
        "steps": reason,
        "learning_rate": _rate_reason(section, width, facts.continued),
        "warmup_steps": "a tenth of the steps, 200 at most",
    }
    open_ones = {name: reason for name, reason in reasons.items() if getattr(section, name) is None}
    open_ones["validate_every"] = f"steps, on {rows:,} rows of {section.seq_len:,} tokens{small}"
    return Resolved(section.replace(**values), batch.reasons | open_ones, least, most)


def steps_without_pace(section: TrainSection, facts: Facts, per_step: int) -> int | None:
    """Optimizer steps where they do not depend on the machine; None where only time was asked for."""
    return _steps_without_time(section, facts.size, facts.tokens, per_step)[0]


def _steps(
    section: TrainSection, facts: Facts, per_step: int, pace: Pace | None
) -> tuple[int, str, int, int | None]:
    """(steps, where they come from, the least and the most of them whatever the time is)."""
    most, reason = _steps_without_time(section, facts.size, facts.tokens, per_step)
    least = math.ceil((section.least_tokens or 1) / per_step)
    steps = most or least
    if pace is None:
        return steps, reason, least, most
    fitting = int(_PLANNED_SHARE * pace.seconds * pace.tokens_per_second / per_step)
    if most is None or max(fitting, least) < most:
        steps = max(fitting, least)
        reason = f"{section.minutes:g} minutes at the {pace.tokens_per_second:,.0f} tokens/s just measured"
        if fitting < least and section.least_tokens:
            reason = f"{section.least_tokens:,} tokens at least: more than {reason} give"
    return steps, reason, least, most


def _sequence_length(width: int, tokens: Mapping[str, int] | None) -> int:
    """512 tokens for the small, 2,048 from width 1,024 on; the largest power of two that gives 8 rows of each text."""
    wanted = 512 if width < 512 else 1024 if width < 1024 else 2048
    if tokens is None:
        return wanted
    return min(wanted, 1 << int(math.log2(max(2, min(tokens.values()) // 8))))


def batch_shape(section: TrainSection, width: int, seq_len: int) -> tuple[int, int]:
    """(rows at a time, accumulation): steps of 4,096 tokens at width 128, doubling with the width."""
    micro = section.batch_size or max(1, _MICRO_TOKENS // seq_len)
    wanted = _MICRO_TOKENS * max(1, width // 128)
    if section.accumulation:
        return micro, section.accumulation
    return micro, 1 if section.batch_size else max(1, wanted // (micro * seq_len))


def _steps_without_time(
    section: TrainSection, size: ModelSize, known: Mapping[str, int] | None, per_step: int
) -> tuple[int | None, str]:
    """Steps and where they come from: what was asked, or tokens enough for the size, as the data allow.

    None where only time was asked for.
    """
    if section.steps:
        return section.steps, "asked for"
    limits = []
    if section.tokens:
        limits.append((section.tokens, f"a budget of {section.tokens:,} tokens"))
    whole = sum(known.values()) if known is not None else 0
    if section.epochs and known is not None:
        limits.append((round(section.epochs * whole), f"{section.epochs:g} epochs"))
    if not limits and section.minutes:
        return None, ""
    if not limits:
        assert known is not None
        limits = [
            (TOKENS_PER_PARAMETER * size.parameters, f"{TOKENS_PER_PARAMETER} tokens a parameter"),
            (MAX_EPOCHS * whole, f"{MAX_EPOCHS} epochs of the {whole:,} tokens"),
        ]
    tokens, reason = min(limits)
    return max(1, round(tokens / per_step)), reason


def _validation(section: TrainSection, steps: int, per_step: int, seq_len: int) -> tuple[int, int]:
    """(steps between two validations, rows that one reads): ten of a run, fewer where they would read too little."""
    every = section.validate_every
    if every is None:
        count = _VALIDATION_SHARE * steps * per_step / _STEADY_TOKENS
        every = max(1, min(_MOST_STEPS_BETWEEN, steps // max(1, min(_MOST_VALIDATIONS, int(count)))))
    tokens = _VALIDATION_SHARE * min(every, steps) * per_step
    return every, section.validation_rows or max(1, min(_MOST_ROWS, int(tokens / seq_len)))


def _learning_rate(section: TrainSection, width: int, continued: bool) -> float:
    """0.004 at width 128, falling with the square root of the width: what short races on CPUs favoured.

    An adapter's is that of its own kind of stage, whatever the width (Hu et al. 2021).
    """
    if section.adapter is not None:
        return _ADAPTER_RATE
    rate = 0.004 * math.sqrt(128 / width)
    return float(f"{rate / 5 if continued else rate:.2g}")


def _rate_reason(section: TrainSection, width: int, continued: bool) -> str:
    if section.adapter is not None:
        return "of an adapter"
    return f"for width {width}" + (", a fifth for a model that continues" * continued)


def budget_warning(size: ModelSize, tokens: int) -> str | None:
    """Return the warning for a run that reads far less than the user's documents advise for the size."""
    minimum = minimum_tokens(size.parameters)
    if tokens >= minimum:
        return None
    return (
        f"warning: this run reads {tokens:,} tokens. For {size.parameters:,} parameters the methodology advises "
        f"{minimum:,} or more ({tokens / minimum:.1%} of it): expect a model that knows little. "
        "A smaller --size or more text does better"
    )


def require_memory(
    size: ModelSize, section: TrainSection, model: PreTrainedConfig, available: int, trained: int
) -> int:
    """An estimate of the bytes that training needs; raises ConfigError where the machine has less.

    `trained` of the parameters have a gradient and moments, also those of an adapter, which are none of the model's.
    """
    assert section.batch_size and section.seq_len
    slots = (
        12 if section.optimizer in (None, "muon") else 16
    )  # float32 weights, gradients, one or two moments
    layers = 2 if section.gradient_checkpointing else model.num_hidden_layers
    intermediate = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    per_token = 2 * layers * (16 * model.hidden_size + 4 * intermediate)
    frozen = 4 * size.parameters if trained < size.parameters else 0
    at_once = min(section.seq_len, section.segment_len or section.seq_len)
    states = size.state_bytes * -(-section.seq_len // at_once)
    needed = int(slots * trained + frozen + (per_token * at_once + states) * section.batch_size)
    if needed > available:
        constant = size.state_bytes and not size.cache_bytes_per_token
        segments = f", or --segment-len {_SEGMENT}" if constant and at_once > _SEGMENT else ""
        raise ConfigError(
            f"training would need about {needed / 1e9:.1f} GB of memory and there are {available / 1e9:.1f} GB. "
            f"Choose a smaller --size or --batch-size, or --gradient-checkpointing{segments}"
        )
    return needed
