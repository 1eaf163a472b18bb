"""The recipe: one YAML file from raw text to a trained model, a list of stages.

    name: mine
    seed: 42
    stages:
      - kind: pretrain                 # its settings: `mmrec pretrain --help`
        data: {sources: [books/]}
        minutes: 30
      - kind: sft
        name: chat                     # its folder; without a name that of the kind
        data: [chats.jsonl]

A stage's recipe in its run has every resolved value, the reason of each as a comment, and `given`: what was given.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from mm_rec.config import Section, apply_overrides, load_yaml, merge
from mm_rec.errors import ConfigError
from mm_rec.pipeline.former_recipes import is_former, upgrade
from mm_rec.pipeline.kinds import StageKind
from mm_rec.pipeline.registry import find_kind
from mm_rec.runs.directory import RECIPE_FILE, require_run_name
from mm_rec.runs.files import write_text
from mm_rec.runs.metrics_log import METRICS_FILE

OWN_KEYS = ("kind", "name", "given")  # keys of a stage that are no settings


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a recipe: its kind, its name (that of its folder) and its settings."""

    kind: StageKind
    name: str
    section: Any

    def values(self) -> dict[str, Any]:
        """Plain values: all settings, and which of them were given."""
        settings = self.section.model_dump(mode="json")
        return {"kind": self.kind.name, "name": self.name, "given": self.section.given(), **settings}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run."""

    name: str
    seed: int
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of a name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_section(self, name: str, section: Section) -> Recipe:
        """The recipe with another section of one stage."""
        stages = (
            dataclasses.replace(stage, section=section) if stage.name == name else stage
            for stage in self.stages
        )
        return dataclasses.replace(self, stages=tuple(stages))

    def values(self) -> dict[str, Any]:
        """Plain values, as a file has them."""
        return {
            "name": self.name,
            "seed": self.seed,
            "stages": [stage.values() for stage in self.stages],
        }


class _Header(Section):
    """The part of a recipe beside the settings of its stages."""

    name: str = "run"
    seed: int = Field(default=42, ge=0)
    stages: list[dict[str, Any]] = Field(default_factory=list)


def recipe_of(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe of plain values; raises ConfigError for what it cannot mean."""
    header = _Header.read(values, where=where)
    stages = [_stage_of(entry, f"{where}: stage {number}") for number, entry in enumerate(header.stages, 1)]
    if not stages:
        raise ConfigError(f"{where}: there is no stage to run. Add one to stages: - kind: pretrain")
    _by_name(header.stages, where)
    return Recipe(header.name, header.seed, tuple(stages))


def _stage_of(entry: Mapping[str, Any], where: str) -> Stage:
    if not isinstance(entry.get("kind"), str):
        raise ConfigError(f"{where} has no kind. Write kind: pretrain, for example")
    kind = find_kind(entry["kind"])
    name = require_run_name(str(entry.get("name") or kind.name))
    settings = {key: value for key, value in entry.items() if key not in OWN_KEYS}
    section = kind.section.read(settings, where=f"{where} ({name})")
    return Stage(kind, name, section.with_given(entry["given"]) if "given" in entry else section)


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, with `NAME.key=value` overrides; raises ConfigError for what it cannot mean."""
    return recipe_of(override(load_recipe(path), overrides), where=str(path))


def load_recipe(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file; raises ConfigError that shows the new form of a recipe of the former one."""
    values = load_yaml(path)
    if is_former(values):
        raise ConfigError(
            f"{path}: recipes have a list of stages now. Write this one as:\n\n"
            + yaml.safe_dump(upgrade(values), sort_keys=False, allow_unicode=True)
        )
    return values


def read_run(run: Path, kind: str | None = None) -> Recipe:
    """The recipe that a run keeps; that of a run of before is brought to the present form.

    The run of a single command may keep a former recipe with sections that it did not use: `kind` says which it did.
    """
    path = run / RECIPE_FILE
    values = load_yaml(path)
    if not is_former(values):
        return recipe_of(values, where=str(path))
    recipe = recipe_of(upgrade(values), where=str(path))
    own = [stage for stage in recipe.stages if stage.kind.name == kind]
    if kind is None or not own or not (run / METRICS_FILE).is_file():
        return recipe
    return dataclasses.replace(recipe, stages=(own[-1],))


def only_stage(values: Mapping[str, Any], kind: str, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one stage of a kind in a recipe's plain values, and what stands beside the stages."""
    stages = _by_name(_Header.read(values, where=where).stages, where)
    found = [entry for entry in stages.values() if entry.get("kind") == kind]
    if len(found) != 1:
        names = ", ".join(stages)
        count = "no stage" if not found else f"{len(found)} stages"
        raise ConfigError(
            f"{where}: there is {count} of the kind {kind} (its stages: {names}). Try mmrec run"
        )
    return found[0], {key: value for key, value in values.items() if key != "stages"}


def _by_name(entries: Iterable[Mapping[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """The entries of stages by name; raises ConfigError where two have one name."""
    stages: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = str(entry.get("name") or entry.get("kind"))
        if name in stages:
            raise ConfigError(
                f"{where}: two stages are called {name!r}. Give each a name of its own (name: …)"
            )
        stages[name] = dict(entry)
    return stages


def with_settings(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's plain values with some settings on top, which then count as given."""
    changed = merge(entry, settings)
    return changed if "given" not in entry else {**changed, "given": [*entry["given"], *_dotted(settings)]}


def _dotted(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        inner = list(_dotted(value)) if isinstance(value, dict) else []
        yield from (f"{key}.{name}" for name in inner) if inner else (key,)


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `NAME.key=value` overrides to a recipe's plain values: NAME is that of a stage."""
    overrides = list(overrides)
    if not overrides:
        return dict(values)
    stages = _by_name(_Header.read(values).stages, "recipe")
    for text in overrides:
        head, _, rest = text.partition("=")[0].strip().partition(".")
        if rest and "given" in stages.get(head, {}):
            stages[head]["given"] = [*stages[head]["given"], rest]
        if rest and head not in stages:
            close = difflib.get_close_matches(head, stages, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(stages)}"
            raise ConfigError(
                f"--set {text!r}: there is no stage {head!r}; {hint} (NAME.key=value, NAME that of a stage)"
            )
    top = {key: value for key, value in values.items() if key != "stages"}
    changed = apply_overrides({**stages, **top}, overrides)
    return {
        **{key: value for key, value in changed.items() if key not in stages},
        "stages": [changed[name] for name in stages],
    }


def write_recipe(recipe: Recipe, run: Path, reasons: Mapping[str, str] | None = None) -> None:
    """Write the recipe into a run; `reasons` of settings of its one stage stand beside them as comments."""
    text = yaml.safe_dump(recipe.values(), sort_keys=False, allow_unicode=True)
    lines = [_with_reason(line, reasons or {}) for line in text.splitlines()]
    write_text(run / RECIPE_FILE, "\n".join(lines) + "\n")


def _with_reason(line: str, reasons: Mapping[str, str]) -> str:
    key = line[2:].partition(":")[0]  # settings of a stage are indented by two
    return f"{line}  # {reasons[key]}" if key in reasons and not line.startswith("   ") else line


def changed_stages(one: Sequence[Stage], other: Sequence[Stage]) -> list[str]:
    """The names of stages that differ between two recipes."""
    left, right = (
        {stage.name: (stage.kind.name, stage.section) for stage in stages} for stages in (one, other)
    )
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
