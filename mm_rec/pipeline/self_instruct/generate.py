"""Self-Instruct: generation of an instruction set from seed tasks with a model behind an endpoint.

Wang et al. 2023, Self-Instruct: Aligning Language Models with Self-Generated Instructions, arXiv 2212.10560.
A round shows the model tasks of the seeds and of what was kept, asks for new ones, and asks for an answer to each that
passes the filters. Every row that is kept is written at once with where it came from, so that a call that was stopped
goes on from the file alone.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_rec.errors import ConfigError, DataError
from mm_rec.inference.client import Completion
from mm_rec.pipeline.self_instruct.endpoint import ChatEndpoint
from mm_rec.pipeline.self_instruct.filters import Rejection, SimilarityFilter, reject_answer, reject_task
from mm_rec.pipeline.self_instruct.prompts import answer_prompt, read_answer, read_tasks, tasks_prompt
from mm_rec.pipeline.self_instruct.task_pool import PoolTask, append_jsonl, append_row, read_pool

_SEEDS_SHOWN, _KEPT_SHOWN = 6, 2  # examples in a prompt, as in the paper
_TASKS_ASKED = 8  # new tasks a round: with the examples the list has 16, as in the paper
_BARREN_ROUNDS = 10  # rounds in a row that gave nothing, after which going on would only cost


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfInstructConfig:
    """Settings: `count` rows in all; a task is too similar to a known one from a ROUGE-L of `similarity` on.

    `parallel` answers are asked for at the same time. With `keep_dropped` what was not kept is written too.
    """

    out: Path
    count: int
    language: str = "tr"
    similarity: float = 0.7
    seed: int = 0
    parallel: int = 4
    keep_dropped: bool = False

    @property
    def dropped(self) -> Path:
        """Return the file of what was not kept, each with its reason."""
        return self.out.with_suffix(".dropped.jsonl")


@dataclass(slots=True)
class SelfInstructStats:
    """Rows in the file, how many of them earlier calls wrote, and what this call did not keep, by reason."""

    rows: int
    earlier: int
    dropped: Counter[str] = field(default_factory=Counter)


StatsCallback = Callable[[SelfInstructStats], None]


def _ignore(stats: SelfInstructStats) -> None:
    """Ignore the counts."""


def run_self_instruct(
    seeds: Sequence[PoolTask],
    endpoint: ChatEndpoint,
    config: SelfInstructConfig,
    on_stats: StatsCallback = _ignore,
) -> SelfInstructStats:
    """Ask and filter until the file has `count` rows, going on from those that it has.

    Raises DataError where ten rounds in a row gave nothing to keep, and what the endpoint raises; the rows stay.
    """
    if config.out.suffix != ".jsonl":
        raise ConfigError(
            f"--out {config.out}: rows are written as JSON lines; give it a name that ends with .jsonl"
        )
    loop = _SelfInstructRun(seeds, endpoint, config, on_stats)
    barren = 0
    while loop.stats.rows < config.count:
        barren = 0 if loop.round() else barren + 1
        if barren == _BARREN_ROUNDS:
            raise DataError(_exhausted(loop.stats), config.out)
    return loop.stats


def _exhausted(stats: SelfInstructStats) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in stats.dropped.most_common())
    return (
        f"{_BARREN_ROUNDS} rounds in a row gave nothing to keep; the file has {stats.rows:,}. "
        f"Dropped by this call: {reasons}. Look at them with --keep-dropped; a higher --temperature, more seeds or "
        "another model may help"
    )


class _SelfInstructRun:
    """A run: the known tasks, the rows that were kept, and the round."""

    def __init__(
        self,
        seeds: Sequence[PoolTask],
        endpoint: ChatEndpoint,
        config: SelfInstructConfig,
        on_stats: StatsCallback,
    ) -> None:
        self._seeds = seeds
        self._endpoint = endpoint
        self._config = config
        self._on_stats = on_stats
        self._kept, self._round = read_pool(config.out)
        self._similarity = SimilarityFilter(config.language, config.similarity)
        for example in (*seeds, *self._kept):
            self._similarity.add(example.task)
        self.stats = SelfInstructStats(rows=len(self._kept), earlier=len(self._kept))
        config.out.parent.mkdir(parents=True, exist_ok=True)

    def round(self) -> bool:
        """Ask for new tasks and for their answers; returns whether a row was kept."""
        self._round += 1
        before, code = self.stats.rows, self._config.language
        examples = self._examples()
        prompt = tasks_prompt(code, [example.task for example in examples], _TASKS_ASKED)
        tasks = self._new_tasks(self._endpoint.ask(prompt))
        origin = {
            "endpoint": self._endpoint.url,
            "model": self._endpoint.model,
            "language": code,
            "round": self._round,
            "seeds": [example.id for example in examples],
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        }
        with ThreadPoolExecutor(self._config.parallel) as pool:
            replies = pool.map(self._endpoint.ask, [answer_prompt(code, task) for task in tasks])
            for task, reply in zip(tasks, replies, strict=True):
                self._take(task, reply, origin)
                self._on_stats(self.stats)
        return self.stats.rows > before

    def _examples(self) -> list[PoolTask]:
        """Draw seeds and kept tasks in random order; the draw depends on the seed and the round alone."""
        choice = random.Random(f"{self._config.seed} {self._round}")
        examples = [
            *choice.sample(self._seeds, min(_SEEDS_SHOWN, len(self._seeds))),
            *choice.sample(self._kept, min(_KEPT_SHOWN, len(self._kept))),
        ]
        choice.shuffle(examples)
        return examples

    def _new_tasks(self, reply: Completion) -> list[str]:
        """Return the tasks of a reply that pass the filters, no more than rows are wanted."""
        code, wanted = self._config.language, self._config.count - self.stats.rows
        tasks = read_tasks(code, reply.text)
        if not tasks:
            self._drop(Rejection("unreadable", "no numbered list"), reply=reply.text)
        elif reply.truncated:
            self._drop(Rejection("cut off"), task=tasks.pop())
        passed: list[str] = []
        for task in tasks:
            if rejection := reject_task(task, code) or self._similarity.reject(task):
                self._drop(rejection, task=task)
            elif len(passed) < wanted:
                passed.append(task)
                # Known from now on, even if no answer to it will do: asking for it again would cost as much.
                self._similarity.add(task)
        return passed

    def _take(self, task: str, reply: Completion, origin: Mapping[str, Any]) -> None:
        """Keep a task with the answer in a reply, or drop it."""
        read = read_answer(self._config.language, reply.text)
        if reply.truncated or read is None:
            self._drop(Rejection("cut off" if reply.truncated else "unreadable"), task=task, reply=reply.text)
            return
        given, answer = read
        if rejection := reject_answer(task, given, answer, self._config.language):
            self._drop(rejection, task=task, input=given, answer=answer)
            return
        self.stats.rows += 1
        name = f"generated-{self.stats.rows}"
        self._kept.append(append_row(self._config.out, task, given, answer, name, origin))

    def _drop(self, rejection: Rejection, **texts: str) -> None:
        self.stats.dropped[rejection.reason] += 1
        if self._config.keep_dropped:
            row = {"reason": rejection.reason, "detail": rejection.detail, "round": self._round, **texts}
            append_jsonl(self._config.dropped, row)
