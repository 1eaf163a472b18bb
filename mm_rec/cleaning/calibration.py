"""Calibrate the limits of the rules for a language, on text that is known to be good.

The published limits were made for English. A limit that would take away more than a hundredth of good documents is
moved to the value that takes a hundredth; the others stay. (FineWeb2, Penedo et al. 2025,
https://arxiv.org/abs/2506.20920, compares ways to set such limits for over a thousand languages.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_rec.cleaning.document import CleaningDocument
from mm_rec.cleaning.measures import MEASURES
from mm_rec.cleaning.rules import Rule, rules_for
from mm_rec.errors import DataError
from mm_rec.text.languages import get_language

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
MAX_REMOVED_SHARE = 0.01  # share of good documents that a rule may take away
_ENOUGH = 200  # documents; with fewer, a hundredth is one document or none


@dataclass(frozen=True, slots=True)
class Calibration:
    """A rule on good text: its measure's quantiles, the share that it takes away, and limits that would take less."""

    rule: Rule
    quantiles: dict[float, float]
    removed_share: float
    min: float | None
    max: float | None


def calibrate(texts: Iterable[str], code: str) -> list[Calibration]:
    """Measure good documents of a language against the published limits; raises DataError with fewer than 200."""
    rules = rules_for(code, published=True)
    known = get_language(code)
    documents = [CleaningDocument(text, known) for text in texts]
    if len(documents) < _ENOUGH:
        raise DataError(f"calibration needs {_ENOUGH} good documents or more, these are {len(documents)}")
    values = {
        name: np.array([MEASURES[name](document) for document in documents])
        for name in {rule.measure for rule in rules}
    }
    return [_calibrated(rule, values[rule.measure]) for rule in rules]


def _calibrated(rule: Rule, values: NDArray[np.float64]) -> Calibration:
    low, high = rule.min, rule.max
    below = float((values < low).mean()) if low is not None else 0.0
    above = float((values > high).mean()) if high is not None else 0.0
    return Calibration(
        rule=rule,
        quantiles={share: float(np.quantile(values, share)) for share in QUANTILES},
        removed_share=below + above,
        min=float(np.quantile(values, MAX_REMOVED_SHARE)) if below > MAX_REMOVED_SHARE else low,
        max=float(np.quantile(values, 1 - MAX_REMOVED_SHARE)) if above > MAX_REMOVED_SHARE else high,
    )
