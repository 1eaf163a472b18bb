"""`mmrec quickstart`: the main job on text that comes with the program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_rec.progress import RichReporter

if TYPE_CHECKING:
    from mm_rec.pipeline.quickstart import QuickstartResult

FOLDER = Path("quickstart")


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for text, model and results.")] = FOLDER,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Minutes of both trainings, for a rougher model (default: what it needs)."),
    ] = None,
) -> None:
    """Train a small English and Turkish model from nothing, teach it to chat, measure it, in a few minutes."""
    from mm_rec.pipeline.quickstart import quickstart as run

    console = Console(highlight=False)
    with RichReporter(console) as reporter:
        result = run(out, reporter, minutes)
    if result is None:
        console.print(f"stopped and saved. Go on with the same command: mmrec quickstart --out {out}")
        return
    _print_samples(console, result)
    console.print(_table(result))
    console.print(
        f"loss: {result.run / 'training_graph.png'}   card: {result.run / 'README.md'}", soft_wrap=True
    )
    console.print(f"Talk to it:  [bold]{_command()} chat {result.run}[/bold]", soft_wrap=True)
    if out == FOLDER:
        console.print(f"Serve it, with a chat page:  [bold]{_command()} serve[/bold]", soft_wrap=True)


def _command() -> str:
    """How this program was called: `mmrec`, or its path where it is not on the search path."""
    import shutil
    import sys

    return "mmrec" if shutil.which("mmrec") else str(Path(sys.argv[0]))


def _print_samples(console: Console, result: QuickstartResult) -> None:
    for language, samples in result.samples.items():
        console.rule({"en": "English", "tr": "Türkçe"}[language])
        for sample in samples:
            console.print(
                f"[bold]{escape(sample.prompt)}[/bold]{escape(sample.text.rstrip())}\n", soft_wrap=True
            )


def _table(result: QuickstartResult) -> Table:
    log, tuning, questions = result.log, result.tuning, result.questions
    best = log["best_validation"]
    table = Table(title="What was trained", show_header=False)
    table.add_row("parameters", f"{log['parameters']:,}")
    table.add_row("pre-training", f"{log['tokens']:,} tokens in {log['train_runtime']:,.0f} seconds")
    table.add_row("  loss", f"{log['first_loss']:.3f} → {log['loss']:.3f} nats a token")
    table.add_row("  held-out text", f"{best['bits_per_byte']:.3f} bits a byte")
    table.add_row("chat tuning", f"{tuning['tokens']:,} tokens in {tuning['train_runtime']:,.0f} seconds")
    table.add_row("  loss", f"{tuning['first_loss']:.3f} → {tuning['loss']:.3f} nats a learnt token")
    forgetting = tuning["base_text_bits_per_byte"]
    if forgetting and forgetting["after"] is not None:
        table.add_row(
            "  held-out text", f"{forgetting['before']:.3f} → {forgetting['after']:.3f} bits a byte"
        )
    table.add_row(
        "answers right",
        f"{questions['right']} of {questions['questions']} ({questions['accuracy']:.0%}); "
        f"before the tuning {result.before['right']}",
    )
    for name, group in questions["groups"].items():
        language, kind = name.split()
        label = (
            f"  {'English' if language == 'en' else 'Turkish'}, {'chat' if kind == 'chat' else 'question'}"
        )
        table.add_row(label, f"{group['right']} of {group['questions']}")
    return table
