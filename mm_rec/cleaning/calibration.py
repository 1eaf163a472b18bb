"""Limits for a language: how each measure is spread over text that is known to be good.

The published limits were made for English. A limit that would take away more than a hundredth of good documents is
moved to the value that takes a hundredth; the others stay. (FineWeb2, Penedo et al. 2025,
https://arxiv.org/abs/2506.20920, compares ways to set such limits for over a thousand languages.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_rec.cleaning.document import Page
from mm_rec.cleaning.measures import MEASURES
from mm_rec.cleaning.rules import Rule, rules_for
from mm_rec.errors import DataError
from mm_rec.text.languages import language

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
TOLERATED = 0.01  # share of good documents that a rule may take away
_ENOUGH = 200  # documents; with fewer, a hundredth is one document or none


@dataclass(frozen=True, slots=True)
class Calibration:
    """A rule on good text: its measure's quantiles, the share that it takes away, and limits that would take less."""

    rule: Rule
    quantiles: dict[float, float]
    taken: float
    min: float | None
    max: float | None


def calibrate(texts: Iterable[str], code: str) -> list[Calibration]:
    """Measure good documents of a language against the published limits; raises DataError with fewer than 200."""
    rules = rules_for(code, published=True)
    known = language(code)
    pages = [Page(text, known) for text in texts]
    if len(pages) < _ENOUGH:
        raise DataError(f"calibration needs {_ENOUGH} good documents or more, these are {len(pages)}")
    values = {
        name: np.array([MEASURES[name](page) for page in pages]) for name in {rule.measure for rule in rules}
    }
    return [_calibrated(rule, values[rule.measure]) for rule in rules]


def _calibrated(rule: Rule, values: NDArray[np.float64]) -> Calibration:
    low, high = rule.min, rule.max
    below = float((values < low).mean()) if low is not None else 0.0
    above = float((values > high).mean()) if high is not None else 0.0
    return Calibration(
        rule=rule,
        quantiles={share: float(np.quantile(values, share)) for share in QUANTILES},
        taken=below + above,
        min=float(np.quantile(values, TOLERATED)) if below > TOLERATED else low,
        max=float(np.quantile(values, 1 - TOLERATED)) if above > TOLERATED else high,
    )
