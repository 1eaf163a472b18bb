"""Clean on many machines: our steps in datatrove's pipelines, run by its Slurm, Ray or local executor.

    OUT/clean/        what our steps kept, one file a task; OUT/dropped/ the rest with its reason
    OUT/minhash/      signatures, buckets and removals of datatrove's MinHash on disk, over our words
    OUT/final/        the corpus without near-duplicates
    OUT/logs/         which tasks are done: running again does only the others

datatrove hands its own jobs to Slurm as pickled pipelines; nothing else here reads or writes a pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mm_rec.cleaning.dedup import DedupConfig
from mm_rec.cleaning.steps import Cleaner, CleaningConfig, resolve_cleaning
from mm_rec.errors import ConfigError, needs_extra
from mm_rec.text.normalise import dedup_key

with needs_extra("cluster", "cleaning on a cluster"):
    from datatrove.data import Document
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.executor.ray import RayPipelineExecutor
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

ExecutorKind = Literal["local", "ray", "slurm"]


class CleanDocuments(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """The cleaning as a step of datatrove's pipeline."""

    type = "🧹 - CLEAN"
    name = "MM-Rec"

    def __init__(self, config: CleaningConfig, dropped: Any = None) -> None:
        super().__init__()
        self.config, self.dropped = config, dropped

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents that stay; write the others, with their reason, where a writer was given."""
        cleaner = Cleaner(resolve_cleaning(self.config))
        with self.dropped or contextlib.nullcontext() as writer:
            for document in data:
                cleaned, drop = cleaner.clean(document.text)
                document.text = cleaned.text
                if drop is None:
                    yield document
                    continue
                self.stat_update("dropped", f"dropped_{drop.reason}")
                if writer is not None:
                    document.metadata |= drop.record()
                    writer.write(document, rank)


class DedupWordTokenizer(WordTokenizer):  # type: ignore[misc]
    """A word tokenizer for datatrove's MinHash, with the words of our deduplication (case by language)."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words in order."""
        return dedup_key(text, self.language).split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Not needed by MinHash."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not needed by MinHash."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ClusterStage:
    """Steps that run one after another, on as many tasks at once."""

    name: str
    steps: list[Any]
    tasks: int


def cluster_stages(
    source: str, out: str, cleaning: CleaningConfig, dedup: DedupConfig, tasks: int, text_field: str = "text"
) -> list[ClusterStage]:
    """Return the stages from a folder of .jsonl files to a clean one; folders may be any fsspec URL."""
    plain = TextNormConfig(**dict.fromkeys(TextNormConfig.__annotations__, False))
    minhash = MinhashConfig(
        n_grams=dedup.shingle_words, num_buckets=dedup.bands, hashes_per_bucket=dedup.rows, norm_config=plain
    )
    work = f"{out}/minhash"
    cleaned = [
        JsonlReader(source, text_key=text_field),
        CleanDocuments(cleaning, JsonlWriter(f"{out}/dropped")),
        JsonlWriter(f"{out}/clean"),
    ]
    if not dedup.near:
        return [ClusterStage("clean", cleaned, tasks)]
    words = DedupWordTokenizer(cleaning.language)
    kept = [JsonlReader(f"{out}/clean"), MinhashDedupFilter(f"{work}/remove"), JsonlWriter(f"{out}/final")]
    return [
        ClusterStage("clean", cleaned, tasks),
        ClusterStage(
            "signatures",
            [JsonlReader(f"{out}/clean"), MinhashDedupSignature(f"{work}/signatures", minhash, words)],
            tasks,
        ),
        ClusterStage(
            "buckets",
            [MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=minhash)],
            dedup.bands,
        ),
        ClusterStage(
            "clusters", [MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=minhash)], 1
        ),
        ClusterStage("final", kept, tasks),
    ]


def build_executors(
    plan: Sequence[ClusterStage], out: str, kind: ExecutorKind, workers: int, options: dict[str, Any]
) -> list[Any]:
    """Build an executor for each stage, each waiting for the one before it; running the last runs all.

    `options` go to Slurm (time, partition, mem_per_cpu_gb, venv_path …) or Ray as datatrove names them.
    """
    classes = {"local": LocalPipelineExecutor, "ray": RayPipelineExecutor, "slurm": SlurmPipelineExecutor}
    made: list[Any] = []
    for stage in plan:
        named = {"job_name": f"mmrec-{stage.name}"} if kind == "slurm" else {}
        try:
            made.append(
                classes[kind](
                    stage.steps, tasks=stage.tasks, workers=workers, logging_dir=f"{out}/logs/{stage.name}",
                    depends=made[-1] if made else None, **named, **options,
                )
            )  # fmt: skip
        except TypeError as error:
            raise ConfigError(f"datatrove's {kind} executor: {error}") from error
    return made


def slurm_script(executor: Any, tasks: int) -> str:
    """Return the job file that a Slurm executor would submit."""
    command = f"launch_pickled_pipeline {Path(executor.logging_dir.path) / 'executor.pik'}"
    text: str = executor.get_launch_file_contents(executor.get_sbatch_args(tasks), f"srun -l -n 1 {command}")
    return text
