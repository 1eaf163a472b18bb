"""The `mmrec` command: puts the groups together and turns errors into one clear paragraph."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from mm_rec import __version__
from mm_rec.cli import data, models, pretrain, tokenizer
from mm_rec.errors import MMRecError, UserError

app = typer.Typer(
    name="mmrec",
    help="From raw text to a language model of your own, on the machine you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tokenizer.app, name="tokenizer", help="Train and examine tokenizers.")
app.add_typer(data.app, name="data", help="Prepare text for training.")
app.command()(pretrain.pretrain)
app.command(name="verify-resume")(pretrain.verify_resume)
app.command()(models.models)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"mmrec {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Options of every command."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake of the user's, 1 a failure."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments)
    except SystemExit as finished:  # typer ends every command so, with its own status for wrong options
        return finished.code if isinstance(finished.code, int) else 0
    except MMRecError as error:
        if "--debug" in arguments:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"mmrec: {error}")
        return 2 if isinstance(error, UserError) else 1
    return 0


def main() -> None:
    """Entry point of the `mmrec` script."""
    sys.exit(run())
