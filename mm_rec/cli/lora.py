"""`mmrec lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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

_TEXT, _ADAPTER, _SAVING = "Raw text (.txt)", "The adapter", "Saving and stopping"


def lora(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help=".txt: raw text. .json, .jsonl, .csv: conversations, or rows of a --prompt-format. Or several."
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", help="The model: a run, a Transformers folder, or owner/name of a hub."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Copy the parameters of this run or training_parameters.json, Training PRO's too."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check: blocks, masks, memory and time; nothing is trained.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank (default: 16).", rich_help_panel=_ADAPTER)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Scale times the rank (default: twice the rank).", rich_help_panel=_ADAPTER),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=1, help="Dropout (default: 0.05).", rich_help_panel=_ADAPTER)
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Projections: q+v (default), q+k+v+o … all-linear.", rich_help_panel=_ADAPTER),
    ] = None,
    rslora: Annotated[
        bool | None,
        typer.Option("--rslora", help="Scale by the rank's square root.", rich_help_panel=_ADAPTER),
    ] = None,
    dora: Annotated[
        bool | None,
        typer.Option("--dora", help="Train lengths apart from directions.", rich_help_panel=_ADAPTER),
    ] = None,
    pissa: Annotated[
        bool | None,
        typer.Option("--pissa", help="Begin with the largest singular vectors.", rich_help_panel=_ADAPTER),
    ] = None,
    lora_plus: Annotated[
        float | None,
        typer.Option(min=0, help="Rate of the second matrices, times the rate.", rich_help_panel=_ADAPTER),
    ] = None,
    train_head: Annotated[
        bool | None,
        typer.Option("--train-head", help="Train embedding and head too.", rich_help_panel=_ADAPTER),
    ] = None,
    start_adapter: Annotated[
        str | None, typer.Option(help="Go on with this adapter's weights.", rich_help_panel=_ADAPTER)
    ] = None,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            help="Of JSON rows: alpaca, instruction, or a file of templates.", rich_help_panel=EXAMPLES
        ),
    ] = None,
    template: Template = None,
    train_on: TrainOn = None,
    validation: Validation = None,
    fix: Fix = None,
    max_length: MaxLength = None,
    text: BaseText = None,
    text_share: TextShare = None,
    chunk_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens of a block (default: 256).", rich_help_panel=_TEXT)
    ] = None,
    overlap: Annotated[
        bool | None,
        typer.Option("--overlap/--no-overlap", help="Blocks across the borders too.", rich_help_panel=_TEXT),
    ] = None,
    hard_cut: Annotated[
        str | None, typer.Option(help=r"No block goes across this (default: \n\n\n).", rich_help_panel=_TEXT)
    ] = None,
    min_chars: Annotated[
        int | None, typer.Option(min=0, help="Leave out smaller blocks.", rich_help_panel=_TEXT)
    ] = None,
    bos: Annotated[
        bool | None, typer.Option("--bos/--no-bos", help="Begin blocks with BOS.", rich_help_panel=_TEXT)
    ] = None,
    eos: Annotated[
        bool | None, typer.Option("--eos/--no-eos", help="End blocks with EOS.", rich_help_panel=_TEXT)
    ] = None,
    train_only_after: Annotated[
        str | None, typer.Option(help="Learn only what follows this in a block.", rich_help_panel=_TEXT)
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Whose sentences: en, tr …", rich_help_panel=_TEXT)
    ] = None,
    steps: Steps = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Passes over the examples (default: 3).", rich_help_panel=TIME)
    ] = None,
    minutes: Minutes = None,
    seq_len: SeqLen = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    learning_rate: LearningRate = None,
    schedule: Annotated[
        str | None, typer.Option(help="cosine (default), linear, wsd or constant.", rich_help_panel=TIME)
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Optimizer steps of warm-up.", rich_help_panel=TIME)
    ] = None,
    optimizer: OptimizerName = None,
    neftune_alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Noise on embeddings (NEFTune), 5 to 15.", rich_help_panel=TIME),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=MACHINE),
    ] = None,
    save_below_loss: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Save when the loss falls below (default: 1.8), and by --save-loss-step again.",
            rich_help_panel=_SAVING,
        ),
    ] = None,
    save_loss_step: Annotated[
        float | None, typer.Option(min=0, help="… by this much (default: 0.1).", rich_help_panel=_SAVING)
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Save every so many steps.", rich_help_panel=_SAVING)
    ] = None,
    stop_at_loss: Annotated[
        float | None, typer.Option(min=0, help="Stop when the loss is this low.", rich_help_panel=_SAVING)
    ] = None,
    patience: Patience = None,
    name: RunName = None,
    runs: Runs = Path("runs"),
    resume: Resume = None,
    recipe: RecipeFile = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: lora.key=value.", rich_help_panel=MACHINE)
    ] = None,
    precision: PrecisionChoice = None,
    seed: Seed = None,
) -> None:
    """Train an adapter beside a model: text, rows or conversations in, a LoRA folder out. The model is not changed."""
    from mm_rec.config import load_yaml, merge, merge_options
    from mm_rec.errors import ConfigError
    from mm_rec.pipeline import lora as pipeline
    from mm_rec.pipeline.lora_names import read_parameters, translate
    from mm_rec.pipeline.recipe import Recipe, read_recipe
    from mm_rec.runs.directory import RECIPE_FILE, new_run, require_run

    asked = _asked(locals())
    with RichReporter() as reporter:
        if resume is not None:
            if (
                asked != {"lora": {}}
                or recipe is not None
                or name is not None
                or like is not None
                or overrides
            ):
                raise ConfigError(
                    "--resume goes on with the run's own settings: leave out files and other options"
                )
            given, run = read_recipe(require_run(resume) / RECIPE_FILE), resume
        else:
            values = merge_options(
                {"name": "lora", **({} if recipe is None else load_yaml(recipe))}, asked, overrides or []
            )
            copied = {} if like is None else read_parameters(like, reporter.say)
            values["lora"] = merge(copied, translate(values["lora"], reporter.say))
            given = Recipe.read(values, where="options" if recipe is None else str(recipe))
            run = new_run(runs, name, given.name)
        if check:
            pipeline.check(given, reporter)
            return
        reporter.say(f"run: {run}")
        outcome = pipeline.lora(given, run, reporter)
        assert given.lora is not None
        if outcome.ended == "stopped":
            reporter.say(f"stopped at step {outcome.step} and saved. Continue: mmrec lora --resume {run}")
        else:
            reporter.say(
                f"done: {run}/README.md, {run}/training_graph.png. "
                f"Try it: mmrec generate {given.lora.start_from} --adapter {run} --prompt …"
            )


_OPTIONS = (
    "start_from", "rank", "alpha", "dropout", "targets", "rslora", "dora", "lora_plus", "train_head", "start_adapter",
    "prompt_format", "template", "train_on", "validation", "fix", "max_length", "text", "text_share", "steps", "epochs",
    "minutes", "seq_len", "batch_size", "accumulation", "learning_rate", "schedule", "warmup_steps", "optimizer",
    "neftune_alpha", "gradient_checkpointing", "save_below_loss", "save_loss_step", "save_every", "stop_at_loss",
    "patience", "precision",
)  # fmt: skip
_SLICING = {
    "chunk_length": "chunk_length", "overlap": "overlap", "hard_cut": "hard_cut", "min_chars": "min_chars",
    "bos": "add_bos", "eos": "add_eos", "train_only_after": "train_only_after", "language": "language",
}  # fmt: skip


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as sections of a recipe."""
    section = {key: options[key] for key in _OPTIONS if options[key] is not None}
    if options["pissa"]:
        section["init"] = "pissa"
    slicing = {ours: options[key] for key, ours in _SLICING.items() if options[key] is not None}
    if slicing:
        section["text_slices"] = slicing
    if options["files"]:
        section["data"] = [{"path": file, "name": _source_name(file)} for file in options["files"]]
    asked: dict[str, Any] = {"lora": section}
    if options["seed"] is not None:
        asked["seed"] = options["seed"]
    return asked


def _source_name(file: str) -> str:
    """Text and conversations are two sources, so that each can have its weight."""
    from mm_rec.pipeline.lora_examples import holds_text

    return "text" if holds_text(file) else "conversations"
