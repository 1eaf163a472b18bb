"""How our programs end: an error becomes one clear paragraph and an exit status."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from mm_rec import processor
from mm_rec.errors import MMRecError, UserError


def run_app(app: typer.Typer, name: str, arguments: list[str] | None = None, debug: bool = False) -> int:
    """Run a typer program; returns the exit status: 0 done, 2 a mistake of the user's, 1 a failure.

    `arguments` are those of the command line unless given; with `debug` errors of ours pass through.
    """
    try:
        processor.prepare()  # before a command imports torch
        app(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as finished:  # typer ends every command so, with its own status for wrong options
        return finished.code if isinstance(finished.code, int) else 0
    except MMRecError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{name}: {error}")
        return 2 if isinstance(error, UserError) else 1
    return 0
