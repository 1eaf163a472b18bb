"""`mmrec evaluate`: puts its commands together."""

from __future__ import annotations

import typer

from mm_rec.cli.evaluate import former
from mm_rec.cli.evaluate.chat import chat
from mm_rec.cli.evaluate.list_format import list_format
from mm_rec.cli.evaluate.pairs import pairs
from mm_rec.cli.evaluate.tasks import tasks
from mm_rec.cli.evaluate.text import text

app = typer.Typer(cls=former.EvaluateGroup, no_args_is_help=True)
app.command()(text)
app.command()(chat)
app.command(name="list")(list_format)
app.command()(pairs)
app.command()(tasks)
app.command(name=former.NAME, hidden=True)(former.former_command())
