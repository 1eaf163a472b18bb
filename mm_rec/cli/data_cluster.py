"""`mmrec data cluster`: the same cleaning on Slurm, on Ray, or with many tasks on this machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from mm_rec.cli.data_options import TextField


class ExecutorChoice(StrEnum):
    """datatrove's executors."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


def cluster(
    source: Annotated[
        str, typer.Argument(help="Folder of .jsonl files (also .gz, .zst), or its fsspec URL.")
    ],
    out: Annotated[
        str, typer.Option(help="Folder to write, or its URL; running again does what is missing.")
    ],
    executor: Annotated[ExecutorChoice, typer.Option(help="datatrove's executors.")] = ExecutorChoice.local,
    tasks: Annotated[int, typer.Option(min=1, help="Parts that the source's files are dealt out to.")] = 1,
    workers: Annotated[int, typer.Option(min=-1, help="Tasks at once (-1: all).")] = -1,
    language: Annotated[str, typer.Option(help="Language of the text.")] = "tr",
    text_field: TextField = "text",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting: cleaning.…, dedup.…, or of the executor: executor.partition=cpu."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print Slurm's job files and submit nothing.")] = False,
) -> None:
    """Clean a folder on a cluster with datatrove's executors, near-duplicates by its MinHash on disk.

    Ray: start or join a cluster first (`ray start`). Slurm: give executor.time and executor.partition.
    """
    from mm_rec.cleaning import cluster as library
    from mm_rec.cleaning.corpus import CorpusConfig
    from mm_rec.config import apply_overrides
    from mm_rec.errors import ConfigError

    values = apply_overrides({"cleaning": {"language": language}}, settings or [])
    options: dict[str, Any] = values.pop("executor", {})
    config = CorpusConfig.read(values, where="mmrec data cluster")
    plan = library.cluster_stages(source, out, config.cleaning, config.dedup, tasks, text_field)
    executors = library.build_executors(plan, out, executor.value, workers, options)
    console = Console(highlight=False, soft_wrap=True)
    if show:
        if executor is not ExecutorChoice.slurm:
            raise ConfigError("--show prints Slurm's job files; it goes with --executor slurm")
        for stage, job in zip(plan, executors, strict=True):
            console.print(library.slurm_script(job, stage.tasks), markup=False)
        return
    for stage, job in zip(plan, executors, strict=True) if executor is not ExecutorChoice.slurm else []:
        console.print(f"{stage.name}: {stage.tasks} tasks", markup=False)
        job.run()
    if executor is ExecutorChoice.slurm:
        executors[-1].run()  # submits those before it too
    console.print(f"the corpus is in {out}/{'final' if config.dedup.near else 'clean'}", markup=False)
