"""`mmrec evaluate tasks`: benchmark tasks of lm-eval, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mm_rec.cli.evaluate.common import Out, open_measurable, write_result
from mm_rec.cli.sampling_options import Adapter, Device, ModelPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tasks(
    model: ModelPath,
    tasks: Annotated[list[str], typer.Argument(metavar="TASKS", help="Tasks of lm-eval, by name.")],
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of your own lm-eval tasks (its Python runs).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of a task.")] = None,
    out: Out = None,
    adapter: Adapter = None,
    device: Device = "auto",
) -> None:
    """Run benchmark tasks of lm-eval."""
    loaded, tokenizer, _ = open_measurable(model, adapter, device)
    console = Console()
    results = evaluate_tasks(loaded, tokenizer, tasks, console, limit=limit, include_path=include_path)
    write_result(results, out, "tasks.json", console)


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    console: Console,
    *,
    limit: int | None = None,
    include_path: Path | None = None,
) -> dict[str, Any]:
    """Run the tasks, print a row for each figure, and return lm-eval's results; options and errors as `run_tasks`."""
    from mm_rec.evaluation.lm_eval_adapter import run_tasks

    results = run_tasks(model, tokenizer, tasks, limit=limit, include_path=include_path)
    console.print(_table(results))
    if limit is not None:
        console.print(
            f"Only the first {limit:,} questions of each task: good for a look, not to compare.", style="dim"
        )
    return results


def _table(results: Mapping[str, Any]) -> Table:
    table = Table()
    table.add_column("task", overflow="fold")
    for title in ("questions", "figure", "value", "±"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for task, values in results["results"].items():
        name, questions = Text(task), f"{values['sample_len']:,}" if "sample_len" in values else ""
        for figure, value, error in _figures(values):
            table.add_row(name, questions, figure, f"{value:,.4f}", error)
            name, questions = Text(""), ""
    return table


def _figures(values: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """The figures of a task, each with its standard error; lm-eval writes them as "acc,none" and "acc_stderr,none"."""
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        shown = f"{error:.4f}" if isinstance(error, int | float) else "–"
        yield (metric if filtered == "none" else f"{metric} ({filtered})", value, shown)
