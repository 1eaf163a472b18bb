"""Quality rules: a document is dropped where a measure lies outside its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import field_validator

from mm_rec.cleaning.document import CleaningDocument, Dropped, Reason
from mm_rec.cleaning.measures import MEASURES, sentences_up_to
from mm_rec.config import Section
from mm_rec.errors import ConfigError

_THRESHOLDS = Path(__file__).with_name("thresholds.yaml")


class RuleLimits(Section):
    """The accepted range of a rule: values from `min` to `max`, both included; a limit that is None does not bind."""

    min: float | None = None
    max: float | None = None
    active: bool = True


class Rule(RuleLimits):
    """One rule: its name, and the measure that it compares with its limits."""

    rule: str
    measure: str

    @field_validator("measure")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MEASURES:
            raise ValueError(f"there is no measure of this name; there are: {', '.join(MEASURES)}")
        return name

    def check(self, document: CleaningDocument) -> Dropped | None:
        """Return the reason to drop a document, or None."""
        value = self._measure(document)
        if self.min is not None and value < self.min:
            return Dropped(Reason(self.rule), f"{self.measure} {value:.4g} < {self.min:g}")
        if self.max is not None and value > self.max:
            return Dropped(Reason(self.rule), f"{self.measure} {value:.4g} > {self.max:g}")
        return None

    def _measure(self, document: CleaningDocument) -> float:
        if self.measure == "sentences" and self.min is not None and self.max is None:
            return sentences_up_to(document, self.min)  # counting further would change nothing
        return MEASURES[self.measure](document)


def rules_for(
    language: str, changes: Mapping[str, Mapping[str, Any]] | None = None, published: bool = False
) -> list[Rule]:
    """Return the rules of a language, in order, with a person's changes by rule name; ConfigError for an unknown name.

    With `published` the limits are those of the papers, made for English, in every language.
    """
    known = yaml.safe_load(_THRESHOLDS.read_text(encoding="utf-8"))
    changes = changes or {}
    for name in changes:
        if name not in {values["rule"] for values in known}:
            names = ", ".join(values["rule"] for values in known)
            raise ConfigError(f"there is no cleaning rule {name!r}; there are: {names}")
    rules = []
    for values in known:
        own = {} if published else values.get(language, {})
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        rules.append(Rule.read({**plain, **own, **changes.get(plain["rule"], {})}, f"rule {plain['rule']}"))
    return [rule for rule in rules if rule.active]


def first_violation(document: CleaningDocument, rules: Iterable[Rule]) -> Dropped | None:
    """Return the first violation of the rules, or None."""
    for rule in rules:
        if drop := rule.check(document):
            return drop
    return None
