"""What runs measure and how they end: the one description of a metric, and the outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A number that a training or a validation gives: progress, log, plots, card and the best model go by it.

    `unit` is "" for a share; `label` is how it is called in sentences and pictures.
    """

    name: str
    unit: str = ""
    lower_is_better: bool = True
    label: str = ""

    @property
    def title(self) -> str:
        """How it is called."""
        return self.label or self.name.replace("_", " ")

    def shown(self, value: float) -> str:
        """The value with its unit; a share as a percentage."""
        return f"{value:.4f} {self.unit}" if self.unit else f"{value:.1%}"

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another."""
        return value < than if self.lower_is_better else value > than

    @property
    def worst(self) -> float:
        """What every value is better than."""
        return float("inf") if self.lower_is_better else float("-inf")


LOSS = MetricSpec("loss", "nats a token")
BITS_PER_BYTE = MetricSpec("bits_per_byte", "bits a byte", label="bits per byte")
TOKEN_ACCURACY = MetricSpec("token_accuracy", lower_is_better=False)
BASE_BITS_PER_BYTE = MetricSpec("base_bits_per_byte", "bits a byte", label="held-out text of the base")


def describe_metrics(specs: Iterable[MetricSpec]) -> list[dict[str, Any]]:
    """The specs as a run's log keeps them."""
    return [asdict(spec) for spec in specs]


def logged_metrics(records: Iterable[Mapping[str, Any]]) -> list[MetricSpec]:
    """The specs of a run by its log; those of next-token prediction where a log of before has none."""
    found = [
        record["metrics"] for record in records if record.get("event") == "started" and "metrics" in record
    ]
    return [MetricSpec(**one) for one in found[-1]] if found else [LOSS, BITS_PER_BYTE, TOKEN_ACCURACY]


def best_record(records: Iterable[dict[str, Any]], spec: MetricSpec) -> dict[str, Any] | None:
    """The first record with the best value of a metric; None where there is none."""
    found = [record for record in records if record.get(spec.name) is not None]
    choose = min if spec.lower_is_better else max
    return choose(found, key=lambda record: float(record[spec.name]), default=None)


class Outcome(StrEnum):
    """How a training ended."""

    FINISHED = "finished"
    LOSS_REACHED = "loss-reached"
    EPOCH_REACHED = "epoch-reached"
    EARLY = "early"
    STOPPED = "stopped"
    NON_FINITE = "non-finite"

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to continue."""
        return self in (Outcome.FINISHED, Outcome.EARLY)


_FORMER = {"at the loss asked for": Outcome.LOSS_REACHED, "at the epoch asked for": Outcome.EPOCH_REACHED}
_SENTENCES = {
    Outcome.FINISHED: "finished",
    Outcome.LOSS_REACHED: "at the loss asked for",
    Outcome.EPOCH_REACHED: "at the epoch asked for",
    Outcome.EARLY: "stopped early: validation no longer improved",
    Outcome.STOPPED: "stopped before its end",
    Outcome.NON_FINITE: "stopped by a loss that is not finite",
}


def read_outcome(text: str) -> Outcome | None:
    """The outcome that a log names, by its former names too; None where it names none."""
    if text in _FORMER:
        return _FORMER[text]
    return next((outcome for outcome in Outcome if outcome.value == text), None)


def outcome_sentence(outcome: Outcome) -> str:
    """How a run ended, for people."""
    return _SENTENCES[outcome]
