"""`mmrec evaluate pairs`: minimal pairs, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mm_rec.cli.evaluate.common import Out, open_measurable, write_result
from mm_rec.cli.sampling_options import Adapter, Device, ModelPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mm_rec.evaluation.minimal_pairs import PairScores
    from mm_rec.sources.problems import Problem

_SHOWN_PROBLEMS = 20


def pairs(
    model: ModelPath,
    pairs: Annotated[
        list[str], typer.Argument(metavar="PATHS", help="Files or folders of BLiMP, TurBLiMP or XCOPA.")
    ],
    out: Out = None,
    adapter: Adapter = None,
    device: Device = "auto",
) -> None:
    """Score minimal pairs: is the right sentence the likelier one?"""
    loaded, tokenizer, _ = open_measurable(model, adapter, device)
    console = Console()
    scores = evaluate_pairs(loaded, tokenizer, pairs, console)
    write_result(asdict(scores), out, "pairs.json", console)


def evaluate_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, paths: Sequence[str], console: Console
) -> PairScores:
    """Score the pairs of files and folders, print a row for each paradigm, and return the scores.

    Rows that cannot be used are left out and named; raises DataError where there are no pairs.
    """
    from mm_rec.evaluation.minimal_pairs import read_pairs, score_pairs

    problems: list[Problem] = []
    pairs = read_pairs(paths, problems.append)
    for problem in problems[:_SHOWN_PROBLEMS]:
        console.print(f"left out: {problem}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    if len(problems) > _SHOWN_PROBLEMS:
        console.print(f"… and {len(problems) - _SHOWN_PROBLEMS:,} more rows left out", style="yellow")
    with console.status(f"comparing {len(pairs):,} pairs"):
        scores = score_pairs(model, tokenizer, pairs)
    console.print(_table(scores))
    console.print("Right: the higher log-probability; ties count half. ±: standard error.", style="dim")
    return scores


def _table(scores: PairScores) -> Table:
    table = Table()
    table.add_column("minimal pairs", overflow="fold")
    for title in ("pairs", "right", "±", "ties", "right\nper token", "right\nper byte"):
        table.add_column(title, justify="right")
    for suite, mean in scores.means.items():
        paradigms = [row for row in scores.paradigms if row.suite == suite]
        for row in paradigms:
            table.add_row(
                Text(row.paradigm),
                f"{row.pairs:,}",
                f"{row.accuracy:.1%}",
                "–" if math.isnan(row.standard_error) else f"{row.standard_error:.1%}",
                f"{row.ties:,}",
                f"{row.accuracy_per_token:.1%}",
                f"{row.accuracy_per_byte:.1%}",
            )
        total = sum(row.pairs for row in paradigms)
        table.add_row(
            Text(f"{suite}, mean of {len(paradigms)}", style="bold"),
            f"{total:,}",
            f"{mean:.1%}",
            end_section=True,
        )
    return table
