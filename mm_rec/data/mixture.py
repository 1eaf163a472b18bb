"""The data mixture of a run: the share of each source, by phase, and the source of each row.

A row's source and its place there are a pure function of the row's number in the run, so nothing needs to be saved.
Notation: S sources.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_rec.data.sections import DataSource, Phase
from mm_rec.errors import ConfigError

CYCLE = 2**16  # rows after which the choice repeats; shares are multiples of 1/65,536
MAX_EPOCHS = 4  # repeating text more often teaches much less than new text would (Muennighoff et al. 2023)


def group_sources(sources: Sequence[DataSource]) -> dict[str, list[str]]:
    """The paths of each source by name, in the order given; raises ConfigError where one has two weights."""
    groups: dict[str, list[str]] = {}
    weights: dict[str, float] = {}
    for source in sources:
        groups.setdefault(source.name, []).append(source.path)
        if weights.setdefault(source.name, source.weight) != source.weight:
            raise ConfigError(
                f"data.sources: {source.name!r} weighs {weights[source.name]:g} in one place and {source.weight:g} "
                "in another. Give both the same weight, or one of them another name"
            )
    return groups


def check_mixture(sources: Sequence[DataSource], temperature: float, phases: Sequence[Phase]) -> None:
    """Raise ConfigError where weights, temperature and phases do not fit the sources or each other."""
    weights = {name: source.weight for source in sources for name in [source.name]}
    group_sources(sources)
    if len(weights) < 2 and (temperature != 1 or phases):
        raise ConfigError(
            "data.temperature and data.phases mix sources, and there is one. Write data.sources as "
            "[{path: web/, name: web}, {path: books/, name: books}]"
        )
    ends = [phase.until for phase in phases]
    if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
        raise ConfigError(
            f"data.phases: `until` must rise to 1.0, the end of the run; it is {', '.join(map(str, ends))}"
        )
    for number, phase in enumerate(phases or [Phase(until=1.0, weights={})], start=1):
        for name, weight in phase.weights.items():
            if name not in weights:
                close = difflib.get_close_matches(name, weights, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"they are {', '.join(weights)}"
                raise ConfigError(f"data.phases: there is no source {name!r}; {hint}")
            if weight < 0:
                raise ConfigError(f"data.phases: the weight of {name!r} is {weight:g}; it is 0 or more")
        if weights and not any({**weights, **phase.weights}.values()):
            raise ConfigError(f"data: every source weighs 0 in phase {number}. Give one of them a weight")


@dataclass(frozen=True, slots=True)
class _PhasePlan:
    """A phase that is worked out: its cycle repeats from row `first` on; `before` (S,) rows of each came before it."""

    first: int
    rows: NDArray[np.int64]  # (S,) of each source in a cycle
    order: NDArray[np.int64]  # (CYCLE,) the source of each row of a cycle
    places: NDArray[np.int64]  # (CYCLE,) how many rows of the same source stand before it in the cycle
    before: NDArray[np.int64]


class Mixture:
    """The source of each row of a run.

    After any n rows of a phase, every source has had its share of n rounded down or up: never a whole row more or
    less than its share (quota; see `_interleave`). Shares are rounded to 1/65,536, and no positive weight to zero.
    """

    def __init__(self, names: Sequence[str], phases: Sequence[tuple[int, Sequence[float]]]) -> None:
        """`phases`: the first row of each and the sources' weights in it."""
        self.names = list(names)
        self._phase_plans: list[_PhasePlan] = []
        before = np.zeros(len(names), dtype=np.int64)
        for first, weights in phases:
            if self._phase_plans:
                before = self.counts(first)
            rows = _round_shares(np.array(weights, dtype=np.float64))
            order = _interleave(rows)
            places = np.empty(CYCLE, dtype=np.int64)
            for source in range(len(names)):
                places[order == source] = np.arange(rows[source])
            self._phase_plans.append(_PhasePlan(first, rows, order, places, before))
        self._firsts = np.array([plan.first for plan in self._phase_plans])

    def assign(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For `count` rows from `first` on: the source of each, and how many rows of it came before in the run."""
        rows = np.arange(first, first + count)
        sources, places = np.empty_like(rows), np.empty_like(rows)
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            plan, here = self._phase_plans[number], numbers == number
            cycles, within = np.divmod(rows[here] - plan.first, CYCLE)
            chosen = plan.order[within]
            sources[here] = chosen
            places[here] = plan.before[chosen] + cycles * plan.rows[chosen] + plan.places[within]
        return sources, places

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Return how many of the first `rows` rows of the run come from each source, (S,)."""
        plan = next(plan for plan in reversed(self._phase_plans) if plan.first <= rows)
        cycles, rest = divmod(rows - plan.first, CYCLE)
        begun = np.bincount(plan.order[:rest], minlength=len(self.names))
        return plan.before + cycles * plan.rows + begun

    def shares(self, rows: int) -> dict[str, float]:
        """The share of each source in a run of so many rows."""
        return dict(zip(self.names, (self.counts(rows) / rows).tolist(), strict=True))

    def describe_phases(self, rows: int) -> list[str]:
        """Describe the shares of each phase, a line each; [] where the run has one."""
        lines = []
        for number, plan in enumerate(self._phase_plans if len(self._phase_plans) > 1 else [], start=1):
            counts = zip(self.names, plan.rows.tolist(), strict=True)
            shares = ", ".join(f"{name} {count / CYCLE:.1%}" for name, count in counts)
            lines.append(f"phase {number}, from {plan.first / rows:.0%} of the run on: {shares}")
        return lines

    def record(self) -> dict[str, Any]:
        """Return what the choice depends on, as plain values."""
        return {
            "names": self.names,
            "stages": [{"first_row": plan.first, "rows": plan.rows.tolist()} for plan in self._phase_plans],
        }


def plan_mixture(
    sizes: Mapping[str, int],
    sources: Sequence[DataSource],
    temperature: float,
    phases: Sequence[Phase],
    steps: int,
    rows_per_step: int,
) -> Mixture:
    """The mixture of a run: each source weighs `size ** (1 / temperature)` times its weight in the phase.

    `sizes` are bytes. Temperature 1 is proportional to size, infinity is uniform: Arivazhagan et al. 2019 (their T);
    XLM-R (Conneau et al. 2020) and mT5 (Xue et al. 2021) write 1/T as α. A phase begins with a step.
    """
    weights = {source.name: source.weight for source in sources}
    largest = max(sizes.values())
    base = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    first, planned = 0, []
    for phase in phases or [Phase(until=1.0, weights={})]:
        planned.append((first, [base[name] * phase.weights.get(name, weights[name]) for name in sizes]))
        first = round(phase.until * steps) * rows_per_step
    return Mixture(list(sizes), planned)


def describe_mixture(
    mixture: Mixture, rows: int, seq_len: int, tokens: Mapping[str, int] | None
) -> list[str]:
    """Describe what a run of so many rows reads of each source, with a warning for text that is repeated often.

    `tokens` of each source, where they are known.
    """
    lines = mixture.describe_phases(rows)
    for name, share, count in zip(
        mixture.names, mixture.shares(rows).values(), mixture.counts(rows), strict=True
    ):
        read = int(count) * seq_len
        line = f"{name}: {share:.1%} of the rows, {read:,} tokens"
        epochs = 0.0 if tokens is None else read / tokens[name]
        lines.append(line if tokens is None else f"{line}, {epochs:.1f} epochs")
        if epochs > MAX_EPOCHS:
            lines.append(
                f"warning: {name} is read {epochs:.1f} times. Beyond about {MAX_EPOCHS} times, repeated text teaches "
                "much less than new text (Muennighoff et al. 2023). Lower its weight, or add text"
            )
    return lines


def _round_shares(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows (S,) of a cycle by largest remainder, at least one for each positive weight."""
    exact = weights / weights.sum() * CYCLE
    rows = np.where(weights > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    while rows.sum() < CYCLE:
        rows[np.argmax(exact - rows)] += 1
    while rows.sum() > CYCLE:
        rows[np.argmax(rows)] -= 1
    return rows


def _interleave(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order (CYCLE,) in which every beginning of n rows holds n · rows / CYCLE of each source, rounded down or up.

    Proportionate fairness (Baruah et al. 1996): row j of a source with c of N rows may stand from place ⌊jN/c⌋ on and
    must stand before ⌈(j+1)N/c⌉. Taking the earliest deadline first meets them all, since the shares sum to one.
    """
    counts = rows.tolist()
    done = [0] * len(counts)
    order = np.empty(CYCLE, dtype=np.int64)
    present = [source for source, count in enumerate(counts) if count]
    for place in range(CYCLE):
        ready = [source for source in present if done[source] * CYCLE < (place + 1) * counts[source]]
        chosen = min(ready, key=lambda source: -(-(done[source] + 1) * CYCLE // counts[source]))
        order[place] = chosen
        done[chosen] += 1
    return order
