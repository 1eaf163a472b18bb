"""Start and end of our programs: arguments are checked, an error becomes one paragraph and an exit status."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import typer
from rich.console import Console
from rich.style import Style

from mm_rec import cpu
from mm_rec.errors import MMRecError, UserError
from mm_rec.strict_parsing import INT64_MAX


def run_app(app: typer.Typer, name: str, arguments: list[str] | None = None, debug: bool = False) -> int:
    """Run a typer program; returns the exit status: 0 done, 2 a mistake of the user's, 1 a failure.

    `arguments` are those of the command line unless given; with `debug` errors of ours pass through.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # "?" where it cannot hold "→" or "ğ", as a file on Windows
    try:
        _require_utf8(arguments)
        cpu.configure_libraries()  # before a command imports torch
        checked_command(app)(arguments)
    except SystemExit as finished:  # typer ends every command so, with its own status for wrong options
        return finished.code if isinstance(finished.code, int) else 0
    except MMRecError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{name}: {error}")
        return 2 if isinstance(error, UserError) else 1
    return 0


def _require_utf8(arguments: list[str]) -> None:
    """Raise UserError for an argument whose bytes are not UTF-8; Python hands them over as halves of characters."""
    for number, argument in enumerate(arguments):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            before = arguments[number - 1] if number else ""
            name = before if before.startswith("-") else f"argument {number + 1}"
            raise UserError(
                f"{name}: {argument!a} is not UTF-8. Set the terminal to UTF-8, or rename the file"
            ) from error


def write_raw(console: Console, text: str, style: str = "") -> None:
    """Write a text as it is: printing would expand its tabs and replace names of emoji."""
    if console.quiet:
        return
    if style and console.is_terminal and not console.no_color:
        text = Style.parse(style).render(text)
    console.file.write(text)
    console.file.flush()


def checked_command(app: typer.Typer) -> Any:
    """Return the command of a typer program, whose options refuse what is no finite number or overflows."""
    command = typer.main.get_command(app)
    refuse_invalid_numbers(command)
    return command


def refuse_invalid_numbers(command: Any) -> None:
    """Let every option of a command and of those below it refuse what is no finite number."""
    for parameter in command.params:
        parameter.callback = parameter.callback or _finite
    for below in getattr(command, "commands", {}).values():
        refuse_invalid_numbers(below)


def _finite(context: object, parameter: object, value: Any) -> Any:
    """Return an option's value; raises BadParameter, which names the option, for infinity, NaN and overflow."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise typer.BadParameter(f"{one} is not a finite number.")
        if isinstance(one, int | float) and abs(one) > INT64_MAX:
            raise typer.BadParameter(f"{one} is too large; the most is {INT64_MAX}.")
    return value
