"""`mmrec pretrain` and `mmrec verify-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mm_rec.cli.training_options import (
    MACHINE,
    TIME,
    Accumulation,
    BatchSize,
    LearningRate,
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
)
from mm_rec.progress import RichReporter

_MODEL, _DATA = "Model", "Text"


def pretrain(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs or URLs of text (formats: see `mmrec data clean --help`)."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Preset (`mmrec models` lists them).", rich_help_panel=_MODEL)
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Continue this model on other text.", rich_help_panel=_MODEL)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer folder; without it one is trained.", rich_help_panel=_MODEL),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Pieces of the tokenizer to train.", rich_help_panel=_MODEL)
    ] = None,
    steps: Steps = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Passes over the text.", rich_help_panel=TIME)
    ] = None,
    minutes: Minutes = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens to read: 300k, 50M, 1.5B.", rich_help_panel=TIME)
    ] = None,
    seq_len: SeqLen = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    learning_rate: LearningRate = None,
    optimizer: OptimizerName = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine, linear, wsd or constant.", rich_help_panel=TIME)
    ] = None,
    patience: Patience = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of .jsonl rows.", rich_help_panel=_DATA)
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(help="What a document is in .txt: file, blank-line or line.", rich_help_panel=_DATA),
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Files held out, instead of a share.", rich_help_panel=_DATA)
    ] = None,
    prepared: Annotated[
        str | None,
        typer.Option(help="Folder of `mmrec data tokenize`, instead of files.", rich_help_panel=_DATA),
    ] = None,
    streaming: Annotated[
        bool | None,
        typer.Option(
            "--stream", help="Read the text while training and write no shards.", rich_help_panel=_DATA
        ),
    ] = None,
    name: RunName = None,
    runs: Runs = Path("runs"),
    resume: Resume = None,
    recipe: RecipeFile = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: section.key=value.", rich_help_panel=MACHINE),
    ] = None,
    precision: PrecisionChoice = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the layers.", rich_help_panel=MACHINE),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, slower.", rich_help_panel=MACHINE),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", help="Also write TensorBoard files.", rich_help_panel=MACHINE),
    ] = None,
    seed: Seed = None,
) -> None:
    """Train a language model from nothing on your text. It needs nothing but data: `mmrec pretrain books/`."""
    from mm_rec.config import merge_options
    from mm_rec.pipeline import pretrain as pipeline
    from mm_rec.pipeline.recipe import Recipe, read_recipe
    from mm_rec.runs.directory import RECIPE_FILE, new_run, require_run

    if resume is not None:
        given, run = read_recipe(require_run(resume) / RECIPE_FILE, overrides), resume
    else:
        asked = _asked(locals())
        base = {} if recipe is None else read_recipe(recipe).model_dump(exclude_unset=True)
        given = Recipe.read(merge_options(base, asked, overrides or []), where="options")
        default = given.model.size if recipe is None else given.name
        run = new_run(runs, name, default if start_from is None else "continued")
    with RichReporter() as reporter:
        reporter.say(f"run: {run}")
        outcome = pipeline.pretrain(given, run, reporter)
        if outcome.ended == "stopped":
            reporter.say(f"stopped at step {outcome.step} and saved. Continue: mmrec pretrain --resume {run}")
        else:
            reporter.say(
                f"done: {run}/README.md, {run}/training_graph.png. Try it: mmrec generate {run} --prompt …"
            )


def _asked(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options that were given, by the section of the recipe that they belong to."""
    sections = {
        "data": ("sources", "text_field", "documents", "validation", "prepared", "streaming"),
        "tokenizer": ("vocab_size",),
        "model": ("size", "start_from"),
        "pretrain": (
            "steps", "epochs", "minutes", "tokens", "seq_len", "batch_size", "accumulation", "learning_rate",
            "optimizer", "schedule", "patience", "precision", "compile", "gradient_checkpointing", "tensorboard",
        ),
    }  # fmt: skip
    asked: dict[str, Any] = {
        section: {key: options[key] for key in keys if options[key] is not None}
        for section, keys in sections.items()
    }
    if options["tokenizer"] is not None:
        asked["tokenizer"]["path"] = options["tokenizer"]
    if options["seed"] is not None:
        asked["seed"] = options["seed"]
    return asked


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
