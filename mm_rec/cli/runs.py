"""`mmrec run` and `mmrec verify-resume`; `mmrec runs`: how a run stands, and steering it while it trains."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mm_rec.progress import RichReporter

if TYPE_CHECKING:
    from mm_rec.runs.status import RunStatus

app = typer.Typer(no_args_is_help=True)

_LIMITS = ("stop-at-loss", "stop-at-epoch", "max-learning-rate")
_REQUESTS = ("save", "pause", "resume")

Run = Annotated[Path, typer.Argument(help="Folder of the run, like runs/tiny.")]


@app.callback()
def _group() -> None:
    """Look at runs, and steer them while they train."""


@app.command("set")
def set_(
    run: Run,
    changes: Annotated[
        list[str],
        typer.Argument(
            help="stop-at-loss=1.0, stop-at-epoch=2, max-learning-rate=1e-4 (=none takes one back); "
            "save, pause, resume."
        ),
    ],
) -> None:
    """Steer a training: it obeys before its next step, notes it in its log, and does so again when it is resumed.

    The loss to stop at is the mean training loss of the last 3 steps. `save` writes a snapshot and a checkpoint;
    `pause` saves and waits.
    """
    from mm_rec.runs.control import update_control
    from mm_rec.runs.status import read_status

    limits, requests = _parse(changes)
    control = update_control(run, limits, requests)
    shown = ", ".join([*_shown(control.set_limits), *requests])
    found = read_status(run)
    when = "before its next step" if found.state in ("training", "paused") else "when it is continued"
    _say(f"{run} is told: {shown}. It obeys {when} ({_word(found)}, step {found.step:,})")


@app.command()
def show(run: Run) -> None:
    """Show how a run stands: step, loss, what was set and saved."""
    from mm_rec.runs.control import read_control
    from mm_rec.runs.directory import require_run
    from mm_rec.runs.status import read_status

    found = read_status(require_run(run))
    steps = "" if found.steps is None else f" of {found.steps:,}"
    age = "" if found.seconds_ago is None else f"; last heard of {_duration(found.seconds_ago)} ago"
    _say(f"{run}: {_word(found)}, step {found.step:,}{steps}{age}")
    if found.train is not None:
        train = found.train
        _say(f"step {train['step']:,}: training loss {train['loss']:.4f}, learning rate {train['lr']:.2e}, "
             f"epoch {train['epoch'] + 1}, {train['tokens']:,} tokens read")  # fmt: skip
    if found.validation is not None:
        _say(f"step {found.validation['step']:,}: validation loss {found.validation['loss']:.4f}")
    _say("set: " + (", ".join(_shown(read_control(run).set_limits)) or "nothing"))
    _say("saved: " + (", ".join(found.snapshots) or "no snapshots"))


def _word(found: RunStatus) -> str:
    """Return a run's state or outcome in words."""
    from mm_rec.runs.metrics import outcome_sentence

    return found.state if found.outcome is None else outcome_sentence(found.outcome)


def _parse(changes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Limits by name and requests; raises ConfigError for a word that is neither."""
    from mm_rec.errors import ConfigError

    limits: dict[str, Any] = {}
    requests: list[str] = []
    for change in changes:
        name, separator, value = change.partition("=")
        name = name.strip().replace("_", "-")
        if name in _LIMITS and separator and value:
            limits[name.replace("-", "_")] = None if value.strip() == "none" else value.strip()
        elif name in _REQUESTS and not separator:
            requests.append(name)
        else:
            raise ConfigError(f"{change!r} {_fault(name)}")
    if {"pause", "resume"} <= set(requests):
        raise ConfigError("pause and resume contradict each other: give one of them")
    return limits, requests


def _fault(name: str) -> str:
    """Return what is wrong with a change of that name."""
    if name in _LIMITS:
        return f"has no value: write {name}=1, or {name}=none to take it back"
    if name in _REQUESTS:
        return f"takes no value: write {name}"
    known = [*_LIMITS, *_REQUESTS]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return "is nothing to set; " + (
        f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    )


def _shown(limits: dict[str, float | None]) -> list[str]:
    return [
        f"{name.replace('_', '-')} = {'none' if value is None else value}" for name, value in limits.items()
    ]


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True, markup=False).print(text)


def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML): its stages, one after the other.")],
    name: Annotated[str | None, typer.Option(help="Name of the run (default: the recipe's).")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting by the stage's name: NAME.key=value."),
    ] = None,
) -> None:
    """Run the stages of a recipe one after the other, each from the one before; call it again to go on."""
    from mm_rec.pipeline import run as pipeline
    from mm_rec.pipeline.recipe import read_recipe
    from mm_rec.runs.directory import require_run_name

    given = read_recipe(recipe, overrides or [])
    folder = runs / require_run_name(given.name if name is None else name)
    with RichReporter() as reporter:
        ended = pipeline.run_recipe(given, folder, reporter)
        if ended.stopped:
            reporter.say(f"stopped at step {ended.step} of {ended.run} and saved. Continue: the same command")
        else:
            reporter.say(f"done: {folder}" + _try_it(pipeline.outputs(ended.run), ended.run))


def _try_it(made: Mapping[str, Any], run: Path) -> str:
    """The command to try what the last stage made, where that is a model."""
    return f". Try it: mmrec chat {run}" if "model" in made else ""


def verify_resume(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A run folder or a recipe file.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the trial run.")] = 12,
    kills: Annotated[int, typer.Option(min=0, help="How often it is killed.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random moments.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="Keep the trial runs in this folder.")] = None,
) -> None:
    """Prove that killing loses nothing: train, SIGKILL at random moments, restart, compare with an unbroken run."""
    from mm_rec.pipeline.verify_resume import verify_resume as verify

    with RichReporter() as reporter:
        verify(target, reporter, steps=steps, kills=kills, seed=seed, keep=keep)
