"""`mmrec data self-instruct`: an instruction set grown from seed tasks by a model behind an endpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mm_rec.pipeline.self_instruct.endpoint import ChatEndpoint
    from mm_rec.pipeline.self_instruct.generate import SelfInstructConfig, SelfInstructStats
    from mm_rec.pipeline.self_instruct.task_pool import PoolTask

_INTERRUPTED = 130  # the exit status that a shell gives a program stopped by Ctrl-C


class LanguageChoice(StrEnum):
    """The languages that there are prompts in."""

    tr = "tr"
    en = "en"


def self_instruct(
    seeds: Annotated[
        list[str],
        typer.Argument(
            metavar="SEEDS",
            help="Conversation files whose tasks are the seeds (OpenAI, ShareGPT, Alpaca, self-instruct …).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write; running again continues there.")],
    endpoint: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible API, for example …/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    count: Annotated[int, typer.Option(min=1, help="Rows wanted in the file.")] = 500,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the key; it is written nowhere.")
    ] = "OPENAI_API_KEY",
    language: Annotated[
        LanguageChoice, typer.Option(help="Language of the tasks and answers.")
    ] = LanguageChoice.tr,
    temperature: Annotated[float, typer.Option(min=0, help="Of the model's sampling.")] = 0.7,
    similarity: Annotated[
        float, typer.Option(min=0, max=1, help="Drop a task from this ROUGE-L to a known one on.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of examples.")] = 0,
    parallel: Annotated[int, typer.Option(min=1, max=1024, help="Answers asked for at the same time.")] = 4,
    keep_dropped: Annotated[
        bool, typer.Option("--keep-dropped", help="Write what was dropped, with its reason, beside --out.")
    ] = False,
) -> None:
    """Grow an instruction set from seed tasks with a model behind an OpenAI-compatible endpoint (Self-Instruct).

    The model writes new tasks and their answers; what is too like a known task, or is not whole, is dropped.
    """
    from mm_rec.pipeline.self_instruct.endpoint import ChatEndpoint
    from mm_rec.pipeline.self_instruct.generate import SelfInstructConfig
    from mm_rec.pipeline.self_instruct.task_pool import read_seeds

    config = SelfInstructConfig(
        out=out,
        count=count,
        language=language.value,
        similarity=similarity,
        seed=seed,
        parallel=parallel,
        keep_dropped=keep_dropped,
    )
    asked = ChatEndpoint(endpoint, model, key_variable=api_key_env, temperature=temperature)
    console = Console(highlight=False, soft_wrap=True)
    try:
        stats = _grow(read_seeds(seeds), asked, config, console)
    except KeyboardInterrupt:
        console.print("stopped. What was kept stays; the same command continues after it", markup=False)
        raise typer.Exit(_INTERRUPTED) from None
    console.print(_summary(stats, config), markup=False)


def _grow(
    seeds: list[PoolTask], endpoint: ChatEndpoint, config: SelfInstructConfig, console: Console
) -> SelfInstructStats:
    """Grow under a progress bar."""
    from mm_rec.pipeline.self_instruct.generate import run_self_instruct

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True) as bar:
        task = bar.add_task("asking", total=config.count, text=f"{len(seeds):,} seeds")

        def show(stats: SelfInstructStats) -> None:
            bar.update(task, completed=stats.rows, text=f"{stats.dropped.total():,} dropped")

        return run_self_instruct(seeds, endpoint, config, show)


def _summary(stats: SelfInstructStats, config: SelfInstructConfig) -> str:
    """Summarise the file, and what was dropped and why."""
    lines = [f"{config.out}: {stats.rows:,} rows, {stats.rows - stats.earlier:,} of them new"]
    if stats.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in stats.dropped.most_common())
        lines.append(f"dropped: {reasons}" + (f" ({config.dropped})" if config.keep_dropped else ""))
    return "\n".join(lines)
