"""Kinds of stages: what a kind brings.

A kind is one module of `stages/`: it has the kind's section (its settings, each with its description and unit), and
turns named artefacts of earlier stages into its own. Run, resume, `verify-resume` and the command line know a kind only
through its `StageKind`. To add one: write the module, and name it in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mm_rec.config import Section
from mm_rec.errors import ConfigError

OnPlan = Callable[["ResolvedTrainSection", float], None]

if TYPE_CHECKING:
    from mm_rec.pipeline.training_job import TrainingContext, TrainingJob
    from mm_rec.runs.metrics import Outcome
    from mm_rec.training.interfaces import OnEvent, Reporter
    from mm_rec.training.section import ResolvedTrainSection


@dataclass(frozen=True, slots=True)
class Artifact:
    """An output of a stage: a model, a tokenizer, a corpus, a report; its path and the SHA-256 of its content."""

    name: str
    path: Path
    sha256: str


class Artifacts:
    """The outputs of the stages before one, by stage and name."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, Artifact]] = {}

    def add(self, stage: str, made: Mapping[str, Artifact]) -> None:
        """Note what a stage made."""
        self._made[stage] = dict(made)

    def latest(self, name: str) -> str | None:
        """The path of the newest artefact of a name; None where no stage made one."""
        found = [made[name] for made in self._made.values() if name in made]
        return str(found[-1].path) if found else None

    def find(self, reference: str | None, name: str) -> str | None:
        """The path that a setting means: what the stage of that name made, or the setting itself."""
        if reference is None or reference not in self._made:
            return reference
        made = self._made[reference]
        if name not in made:
            raise ConfigError(
                f"the stage {reference!r} makes no {name}: it makes {', '.join(made) or 'nothing'}"
            )
        return str(made[name].path)


@dataclass(frozen=True, slots=True)
class StageContext:
    """The run folder of a stage, its seed, and its callbacks.

    `keep` writes the stage's recipe with every resolved value into the run, the reason of each beside it; `on_plan` is
    told the settings of a training and the tokens a second that were measured.
    """

    run: Path
    seed: int
    reporter: Reporter
    keep: Callable[[Section, Mapping[str, str]], None]
    on_event: OnEvent | None = None
    on_plan: OnPlan | None = None


@dataclass(frozen=True, slots=True)
class StageResult:
    """The outcome of a stage, and its outputs by name."""

    outcome: Outcome
    step: int = 0
    made: Mapping[str, Path] = field(default_factory=dict)


class RunStage(Protocol):
    """Does the work of a stage in its folder, or goes on with it."""

    def __call__(self, kind: StageKind, section: Any, context: StageContext) -> StageResult:
        """Returns what was made."""


def _unconnected(section: Any, artifacts: Artifacts) -> Any:
    return section


def _as_it_is(section: Any, run: Path) -> Any:
    return section


def _nothing_required(section: Any, made: Collection[str]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class StageKind:
    """A kind of stage.

    `run` does the work. A training kind has `prepare` too, which gives data, objective and validation: `training_kind`
    makes it. `makes` names what the kind makes. `connect` fills settings that were left open with what earlier stages
    made; `require` raises UserError for what is missing, before the first stage of a recipe runs: it is told the names
    of what the stages before make. `reuse` points the section of a run at what that run has prepared already, for
    a trial of the same.
    """

    name: str
    section: type[Section]
    run: RunStage
    prepare: Callable[[Any, TrainingContext], TrainingJob] | None = None
    connect: Callable[[Any, Artifacts], Any] = _unconnected
    makes: Collection[str] = ()
    require: Callable[[Any, Collection[str]], None] = _nothing_required
    reuse: Callable[[Any, Path], Any] = _as_it_is
