"""The former spelling, `mmrec evaluate MODEL --text FILE --chat FILE …`: one command with the options of all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from mm_rec.cli.evaluate.chat import chat
from mm_rec.cli.evaluate.list_format import list_format
from mm_rec.cli.evaluate.pairs import pairs
from mm_rec.cli.evaluate.tasks import tasks
from mm_rec.cli.evaluate.text import text

NAME = "former"
# By the option that asked for each, which has become its argument; in the order in which they run.
_COMMANDS: dict[str, Callable[..., None]] = {
    "chat": chat,
    "pairs": pairs,
    "tasks": tasks,
    "list_format": list_format,
    "text": text,
}


class EvaluateGroup(TyperGroup):
    """A group that reads words which do not begin with a command as the former spelling."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after `mmrec evaluate`."""
        if args and args[0] not in self.commands:
            asks_for_help = not {*ctx.help_option_names}.isdisjoint(args)
            args = ["--help"] if asks_for_help else [NAME, *args]
        return super().parse_args(ctx, args)


def former_command() -> Callable[..., None]:
    """The function of the former command."""

    def former(ctx: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if _is_given(ctx, name)}
        asked = [name for name in _COMMANDS if given.get(name)] or ["text"]
        if "chat" in asked:
            given.setdefault("temperature", 0.0)  # also for the samples of a text beside it
        for name in asked:
            own = inspect.signature(_COMMANDS[name]).parameters
            _COMMANDS[name](**{key: value for key, value in given.items() if key in own})

    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *_parameters(),
    ]
    former.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    former.__annotations__ = {one.name: one.annotation for one in parameters}
    return former


def _parameters() -> list[inspect.Parameter]:
    """The parameters of all commands, by name; what a default was does not matter, since only given ones are used."""
    found: dict[str, inspect.Parameter] = {}
    for command in _COMMANDS.values():
        for name, own in inspect.signature(command, eval_str=True).parameters.items():
            found.setdefault(name, _as_option(own) if name in _COMMANDS else own)
    return [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in found.values()]


def _as_option(argument: inspect.Parameter) -> inspect.Parameter:
    kind = get_args(argument.annotation)[0]
    return argument.replace(annotation=Annotated[kind | None, typer.Option()], default=None)


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
