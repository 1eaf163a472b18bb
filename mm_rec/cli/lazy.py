"""Commands that are made when they are called, so that `mmrec --help` answers at once."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from mm_rec.terminal import refuse_invalid_numbers


class LazyGroup(TyperGroup):
    """A group with commands in modules that are imported only when one of them is called.

    `lazy`: the module of each (which has a function of the command's name), its help in one sentence, and the command
    after which it is listed.
    """

    lazy: ClassVar[dict[str, tuple[str, str, str]]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the help."""
        names = [name for name in super().list_commands(ctx) if name not in self.lazy]
        for name, (_, _, before) in self.lazy.items():
            names.insert(names.index(before) + 1, name)
        return names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, made now where it is a lazy one."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module, sentence, _ = self.lazy[cmd_name]
            function = getattr(importlib.import_module(module), cmd_name)
            single = typer.Typer(
                add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
            )
            single.command(name=cmd_name, help=sentence)(function)
            command = typer.main.get_command(single)
            refuse_invalid_numbers(command)
            self.commands[cmd_name] = command
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help, for which the sentence of a lazy command is enough."""
        missing = self.lazy.keys() - self.commands.keys()
        self.commands.update({name: TyperCommand(name, help=self.lazy[name][1]) for name in missing})
        try:
            super().format_help(ctx, formatter)
        finally:
            for name in missing:
                del self.commands[name]
