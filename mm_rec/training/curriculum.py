"""What of a batch depends on how far the training is: the length of its rows, and what they begin on.

Both follow from the step alone, so a resumed training goes on exactly.

- **Sequence-length warm-up** (Li et al. 2021, "The stability-efficiency dilemma"): rows of `seq_len` tokens are read as
  several shorter ones at the start, and twice as long ones in each of the equal phases after it.
- **State passing** (Buitrago and Gu 2025, "Understanding and improving length generalization in recurrent models"): in
  the last steps rows begin on the state that another row of the batch ends with, so that the model meets states as they
  are after more tokens than a row has. For models with a state of constant size.
"""

from __future__ import annotations

import math

import torch

from mm_rec.errors import ConfigError
from mm_rec.models.forward import PASS_STATES, Batch
from mm_rec.training.section import ResolvedTrainSection


def row_length(section: ResolvedTrainSection, step: int) -> int:
    """Tokens of a row at a step, counted from 0."""
    first = section.seq_len_start
    if first is None:
        return section.seq_len
    phases = round(math.log2(section.seq_len / first)) + 1
    return first << min(phases - 1, step * phases // section.steps)


def passes_states(section: ResolvedTrainSection, step: int) -> bool:
    """Return whether rows begin on other rows' states at a step."""
    return section.state_passing > 0 and step >= section.steps * (1 - section.state_passing)


def apply_curriculum(batch: Batch, section: ResolvedTrainSection, step: int) -> Batch:
    """The batch as it is read at a step: rows (B, T) as (B · T / length, length), marked where states are passed."""
    length = row_length(section, step)
    if length < section.seq_len:
        batch = {
            name: x.reshape(-1, length) if x.ndim == 2 and x.shape[1] % length == 0 else x
            for name, x in batch.items()
        }
    if passes_states(section, step):
        batch = {**batch, PASS_STATES: torch.tensor(True)}
    return batch


def require_possible(section: ResolvedTrainSection) -> None:
    """Raise ConfigError where these settings do not go together."""
    first = section.seq_len_start
    if first is not None and (first > section.seq_len or not math.log2(section.seq_len / first).is_integer()):
        raise ConfigError(
            f"rows of {first:,} tokens do not become {section.seq_len:,} by doubling; choose a --seq-len-start that "
            f"does, for example {section.seq_len // math.gcd(section.seq_len, 4):,}"
        )
    if section.state_passing and section.batch_size < 2:
        raise ConfigError(
            "a row begins on the state of another one, and a batch has one row alone; choose a --batch-size of 2 or "
            "more, or leave --state-passing out"
        )
