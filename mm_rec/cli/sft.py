"""`mmrec sft` and `mmrec run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mm_rec.cli.data_convert import ConversationFormatChoice, parse_fields
from mm_rec.cli.training_options import (
    EXAMPLES,
    MACHINE,
    TIME,
    Accumulation,
    BaseText,
    BatchSize,
    Fix,
    LearningRate,
    MaxLength,
    Minutes,
    OptimizerName,
    Patience,
    PrecisionChoice,
    RecipeFile,
    Resume,
    RunName,
    Runs,
    Seed,
    SeqLen,
    Steps,
    Template,
    TextShare,
    TrainOn,
    Validation,
)
from mm_rec.progress import RichReporter


def sft(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Conversations: OpenAI messages, ShareGPT, Alpaca, prompt and response, CSV."),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="The run or model folder to fine-tune.")
    ] = None,
    validation: Validation = None,
    format: Annotated[
        ConversationFormatChoice | None,
        typer.Option(help="Format of the files (default: told by their fields).", rich_help_panel=EXAMPLES),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(help="A field of theirs for one of ours: --map prompt=soru.", rich_help_panel=EXAMPLES),
    ] = None,
    fix: Fix = None,
    template: Template = None,
    train_on: TrainOn = None,
    max_length: MaxLength = None,
    too_long: Annotated[
        str | None,
        typer.Option(help="Longer ones: refuse, or turns (cut the oldest).", rich_help_panel=EXAMPLES),
    ] = None,
    text: BaseText = None,
    text_share: TextShare = None,
    steps: Steps = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=0, help="Passes over the conversations (default: 3).", rich_help_panel=TIME),
    ] = None,
    minutes: Minutes = None,
    seq_len: SeqLen = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    learning_rate: LearningRate = None,
    optimizer: OptimizerName = None,
    patience: Patience = None,
    name: RunName = None,
    runs: Runs = Path("runs"),
    resume: Resume = None,
    recipe: RecipeFile = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: sft.key=value.", rich_help_panel=MACHINE),
    ] = None,
    precision: PrecisionChoice = None,
    seed: Seed = None,
) -> None:
    """Fine-tune a model on conversations: only the assistant's words are learnt. `mmrec data masks` shows which."""
    from mm_rec.config import merge_options
    from mm_rec.errors import ConfigError
    from mm_rec.pipeline import sft as pipeline
    from mm_rec.pipeline.recipe import Recipe, read_recipe
    from mm_rec.runs.directory import RECIPE_FILE, new_run, require_run

    asked = _asked(locals())
    if resume is not None:
        if asked != {"sft": {}} or recipe is not None or name is not None:
            raise ConfigError(
                "--resume goes on with the run's own settings: leave out files and other options"
            )
        given, run = read_recipe(require_run(resume) / RECIPE_FILE, overrides), resume
    else:
        base = {} if recipe is None else read_recipe(recipe).model_dump(exclude_unset=True)
        given = Recipe.read(merge_options({"name": "sft", **base}, asked, overrides or []), where="options")
        run = new_run(runs, name, given.name)
    with RichReporter() as reporter:
        reporter.say(f"run: {run}")
        outcome = pipeline.sft(given, run, reporter, section="sft" if given.sft else "instruct")
        if outcome.ended == "stopped":
            reporter.say(f"stopped at step {outcome.step} and saved. Continue: mmrec sft --resume {run}")
        else:
            reporter.say(f"done: {run}/README.md, {run}/training_graph.png. Try it: mmrec chat {run}")


_OPTIONS = (
    "start_from", "validation", "fix", "template", "train_on", "max_length", "too_long", "text", "text_share",
    "steps", "epochs", "minutes", "seq_len", "batch_size", "accumulation", "learning_rate", "optimizer", "patience",
    "precision",
)  # fmt: skip


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as sections of a recipe."""
    section = {key: options[key] for key in _OPTIONS if options[key] is not None}
    if options["files"]:
        told = {
            "format": options["format"] and options["format"].value,
            "fields": parse_fields(options["map"] or []),
        }
        section["data"] = [{"path": file, "name": "conversations", **told} for file in options["files"]]
    asked: dict[str, Any] = {"sft": section}
    if options["seed"] is not None:
        asked["seed"] = options["seed"]
    return asked


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML) with sections pretrain, instruct, sft.")],
    name: Annotated[str | None, typer.Option(help="Name of the run (default: the recipe's).")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: section.key=value.")
    ] = None,
) -> None:
    """Run the stages of a recipe one after the other, each from the one before; call it again to go on."""
    from mm_rec.pipeline.recipe import read_recipe
    from mm_rec.pipeline.run import run_recipe
    from mm_rec.runs.directory import require_run_name

    given = read_recipe(recipe, overrides)
    folder = runs / require_run_name(given.name if name is None else name)
    with RichReporter() as reporter:
        outcome = run_recipe(given, folder, reporter)
        if outcome.ended == "stopped":
            reporter.say(
                f"stopped at step {outcome.step} of {outcome.run} and saved. Continue: the same command"
            )
        else:
            reporter.say(f"done: {folder}. Try it: mmrec chat {outcome.run}")
