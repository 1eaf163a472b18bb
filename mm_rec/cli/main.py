"""The `mmrec` command: puts the groups together."""

from __future__ import annotations

import sys
from typing import Annotated, ClassVar

import typer

from mm_rec import __version__
from mm_rec.cli import (
    chat,
    data,
    generate,
    keys,
    merge,
    models,
    quickstart,
    runs,
    serve,
    tokenizer,
)
from mm_rec.cli.evaluate.app import app as evaluate_app
from mm_rec.cli.lazy import LazyGroup
from mm_rec.terminal import run_app


class _Commands(LazyGroup):
    """The commands that train have an option for every setting, which take their time to be made."""

    lazy: ClassVar = {
        "pretrain": (
            "mm_rec.cli.pretrain",
            "Train a language model from nothing on your text. It needs nothing but data: `mmrec pretrain books/`.",
            "models",
        ),
        "sft": (
            "mm_rec.cli.sft",
            "Fine-tune a model on conversations: only the assistant's words are learnt. "
            "`mmrec data masks` shows which.",
            "pretrain",
        ),
        "lora": (
            "mm_rec.cli.lora",
            "Train an adapter beside a model: text, rows or conversations in, a LoRA folder out. "
            "The model is not changed.",
            "sft",
        ),
    }


app = typer.Typer(
    name="mmrec",
    cls=_Commands,
    help="From raw text to a language model of your own, on the machine you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart.quickstart)
app.add_typer(data.app, name="data", help="Prepare text for training.")
app.add_typer(tokenizer.app, name="tokenizer", help="Train and examine tokenizers.")
app.command()(models.models)
app.command()(merge.merge)
app.command(name="run")(runs.run_recipe)
app.add_typer(runs.app, name="runs", help="Look at runs, and steer them while they train.")
app.command(name="verify-resume")(runs.verify_resume)
app.add_typer(evaluate_app, name="evaluate", help="Measure a model.")
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(serve.serve)
app.add_typer(keys.app, name="keys", help="Make, list and revoke the API keys of the server.")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"mmrec {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake of the user's, 1 a failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_app(app, "mmrec", arguments, debug="--debug" in arguments)


def main() -> None:
    """Entry point of the `mmrec` script."""
    sys.exit(run())
