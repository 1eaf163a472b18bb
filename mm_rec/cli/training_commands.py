"""The commands of the training kinds (`mmrec pretrain`, `sft`, `lora`), made from their sections."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mm_rec.cli.options import given_settings, options_of
from mm_rec.config import merge
from mm_rec.pipeline.kinds import StageKind
from mm_rec.progress import RichReporter
from mm_rec.training.section import MACHINE_PANEL

if TYPE_CHECKING:
    from mm_rec.pipeline.recipe import Recipe

Say = Callable[[str], None]
Settings = dict[str, Any]


def _same(settings: Settings, values: Mapping[str, Any], say: Say) -> Settings:
    return settings


@dataclass(frozen=True, slots=True)
class TrainingCommand:
    """A training command: what is its own beside the settings of its kind.

    `files` gives the settings that its files, and its extra parameters, mean; `translate` may change what was given by
    recipe and options; `use` is the command to try the result with; `default_name` names a run of a stage's settings,
    None for the recipe's name.
    """

    kind: StageKind
    files_help: str
    files: Callable[[Sequence[str], Mapping[str, Any]], Settings]
    extras: tuple[inspect.Parameter, ...] = ()
    use: str = "mmrec chat {run}"
    translate: Callable[[Settings, Mapping[str, Any], Say], Settings] = _same
    default_name: Callable[[Any], str | None] = lambda section: None


def option(name: str, kind: Any, default: Any = None, *flags: str, **details: Any) -> inspect.Parameter:
    """A parameter of a command that is no setting."""
    annotation = Annotated[kind, typer.Option(*flags, **details)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def command_of(own: TrainingCommand) -> Callable[..., None]:
    """The function of a training command, with an option for every setting of its kind."""
    options = {one.parameter.name: one for one in options_of(own.kind.section)}
    files = inspect.Parameter(
        "files",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[list[str] | None, typer.Argument(help=own.files_help)],
    )
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, files, *own.extras, *(one.parameter for one in options.values()), *_COMMON]

    def command(context: typer.Context, **values: Any) -> None:
        settings = given_settings(options, values)
        if values["files"]:
            settings = merge(settings, own.files(values["files"], values))
        with RichReporter() as reporter:
            if values["resume"] is not None:
                _require_nothing_else(context)
                recipe, run = _resumed(values["resume"], own.kind, settings)
            else:
                recipe = _recipe(own, settings, values, reporter.say)
                run = _run_folder(own, recipe, values)
            if values["check"]:
                _check(recipe, reporter)
            else:
                reporter.say(f"run: {run}")
                _train(own, recipe, run, reporter)

    command.__name__ = own.kind.name
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


_COMMON = (
    option("name", str | None, None, help="Name of the run.", rich_help_panel=MACHINE_PANEL),
    option("runs", Path, Path("runs"), help="Folder of all runs.", rich_help_panel=MACHINE_PANEL),
    option("resume", Path | None, None, help="Continue this run.", rich_help_panel=MACHINE_PANEL),
    option("recipe", Path | None, None, help="Recipe (YAML) to start from.", rich_help_panel=MACHINE_PANEL),
    option(
        "overrides",
        list[str] | None,
        None,
        "--set",
        help="Any setting by the stage's name: NAME.key=value.",
        rich_help_panel=MACHINE_PANEL,
    ),
    option(
        "check",
        bool,
        False,
        "--check",
        help="Only check: data, memory and time; nothing is trained.",
    ),
)


# What a run may go on with otherwise: where and how it is computed, and not what is learnt.
_CHANGED_BY_RESUME = ("batch_size", "gradient_checkpointing", "device")


def _require_nothing_else(context: typer.Context) -> None:
    """Raise ConfigError that names every option which `--resume` would ignore."""
    from mm_rec.errors import ConfigError

    given, known = [], ("resume", *_CHANGED_BY_RESUME)
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in known:
            given.append(
                parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
            )
    if given:
        raise ConfigError(
            f"--resume goes on with the run's own settings, and would ignore {', '.join(given)}: leave that out"
        )


def _resumed(run: Path, kind: StageKind, changes: Settings) -> tuple[Recipe, Path]:
    """The recipe of a run, with these changes; a step reads as many tokens as before."""
    from mm_rec.errors import ConfigError
    from mm_rec.pipeline.recipe import read_run
    from mm_rec.runs.directory import require_run

    recipe = read_run(require_run(run), kind.name)
    kinds = [stage.kind.name for stage in recipe.stages]
    if len(kinds) > 1:
        raise ConfigError(f"{run} is a run of several stages. Go on with it: the `mmrec run` that began it")
    if kinds != [kind.name]:
        raise ConfigError(
            f"{run} is a run of the kind {kinds[0]}. Go on with it: mmrec {kinds[0]} --resume {run}"
        )
    if not changes:
        return recipe, run
    (stage,) = recipe.stages
    section = stage.section
    if (rows := changes.get("batch_size")) and section.batch_size and section.accumulation:
        whole = section.batch_size * section.accumulation
        if section.state_passing:
            raise ConfigError("this run passes states within a batch, whose size is a part of what is learnt")
        if whole % rows:
            raise ConfigError(
                f"a step of this run reads {whole} rows, which are no batches of {rows}; choose a --batch-size that "
                f"divides {whole}"
            )
        changes = {**changes, "accumulation": whole // rows}
    return recipe.with_section(stage.name, section.replace(**changes)), run


def _recipe(own: TrainingCommand, settings: Settings, values: Mapping[str, Any], say: Say) -> Recipe:
    """The recipe of one stage: that of a file, or a new one, with the options and `--set` on top."""
    from mm_rec.pipeline.recipe import OWN_KEYS, load_recipe, only_stage, override, recipe_of, with_settings

    where = "options" if values["recipe"] is None else str(values["recipe"])
    kind = own.kind.name
    base = (
        {"name": kind, "stages": [{"kind": kind}]}
        if values["recipe"] is None
        else load_recipe(values["recipe"])
    )
    entry, top = only_stage(base, kind, where)
    changed = override({**top, "stages": [with_settings(entry, settings)]}, values["overrides"] or [])
    (entry,) = changed["stages"]
    kept = {key: entry[key] for key in OWN_KEYS if key in entry}
    translated = own.translate({key: entry[key] for key in entry if key not in kept}, values, say)
    return recipe_of({**changed, "stages": [{**kept, **translated}]}, where)


def _run_folder(own: TrainingCommand, recipe: Recipe, values: Mapping[str, Any]) -> Path:
    from mm_rec.runs.directory import new_run

    default = None if values["recipe"] is not None else own.default_name(recipe.stages[0].section)
    return new_run(values["runs"], values["name"], default or recipe.name)


def _check(recipe: Recipe, reporter: RichReporter) -> None:
    from mm_rec.pipeline.dry_run import dry_run

    dry_run(recipe, reporter)


def _train(own: TrainingCommand, recipe: Recipe, run: Path, reporter: RichReporter) -> None:
    from mm_rec.pipeline.run import run_stage

    ended = run_stage(recipe, run, reporter)
    if ended.stopped:
        reporter.say(
            f"stopped at step {ended.step} and saved. Continue: mmrec {own.kind.name} --resume {run}"
        )
        return
    section = recipe.stages[0].section
    if section.adapter is not None:
        base = getattr(section, "start_from", None) or section.model.start_from
        use = f"mmrec generate {base} --adapter {run} --prompt …"
    else:
        use = own.use.format(run=run)
    reporter.say(f"done: {run}/README.md, {run}/training_graph.png. Try it: {use}")
