"""Growing an instruction set from seed tasks with a model behind an endpoint: Self-Instruct.

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
from mm_rec.pipeline.self_instruct.endpoint import ChatEndpoint, Reply
from mm_rec.pipeline.self_instruct.filters import Fault, Novelty, answer_fault, task_fault
from mm_rec.pipeline.self_instruct.prompts import answer_prompt, read_answer, read_tasks, tasks_prompt
from mm_rec.pipeline.self_instruct.rows import Example, append, append_row, read_kept

_SEEDS_SHOWN, _KEPT_SHOWN = 6, 2  # examples in a prompt, as in the paper
_TASKS_ASKED = 8  # new tasks a round: with the examples the list has 16, as in the paper
_BARREN_ROUNDS = 10  # rounds in a row that gave nothing, after which going on would only cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What to grow: `count` rows in all; a task is too like a known one from a ROUGE-L of `similarity` on.

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
        """The file of what was not kept, each with its reason."""
        return self.out.with_suffix(".dropped.jsonl")


@dataclass(slots=True)
class Outcome:
    """Rows in the file, how many of them earlier calls wrote, and what this call did not keep, by reason."""

    rows: int
    earlier: int
    dropped: Counter[str] = field(default_factory=Counter)


Watch = Callable[[Outcome], None]


def _nobody(outcome: Outcome) -> None:
    """Where nobody watches."""


def grow(seeds: Sequence[Example], endpoint: ChatEndpoint, growth: Growth, watch: Watch = _nobody) -> Outcome:
    """Ask and filter until the file has `count` rows, going on from those that it has.

    Raises DataError where ten rounds in a row gave nothing to keep, and what the endpoint raises; the rows stay.
    """
    if growth.out.suffix != ".jsonl":
        raise ConfigError(
            f"--out {growth.out}: rows are written as JSON lines; give it a name that ends with .jsonl"
        )
    growing = _Growing(seeds, endpoint, growth, watch)
    barren = 0
    while growing.outcome.rows < growth.count:
        barren = 0 if growing.round() else barren + 1
        if barren == _BARREN_ROUNDS:
            raise DataError(_exhausted(growing.outcome), growth.out)
    return growing.outcome


def _exhausted(outcome: Outcome) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in outcome.dropped.most_common())
    return (
        f"{_BARREN_ROUNDS} rounds in a row gave nothing to keep; the file has {outcome.rows:,}. "
        f"Dropped by this call: {reasons}. Look at them with --keep-dropped; a higher --temperature, more seeds or "
        "another model may help"
    )


class _Growing:
    """A growing set: the tasks that are known, the rows that were kept, and the round."""

    def __init__(
        self, seeds: Sequence[Example], endpoint: ChatEndpoint, growth: Growth, watch: Watch
    ) -> None:
        self._seeds = seeds
        self._endpoint = endpoint
        self._growth = growth
        self._watch = watch
        self._kept, self._round = read_kept(growth.out)
        self._novelty = Novelty(growth.language, growth.similarity)
        for example in (*seeds, *self._kept):
            self._novelty.add(example.task)
        self.outcome = Outcome(rows=len(self._kept), earlier=len(self._kept))
        growth.out.parent.mkdir(parents=True, exist_ok=True)

    def round(self) -> bool:
        """Ask for new tasks and for their answers; returns whether a row was kept."""
        self._round += 1
        before, code = self.outcome.rows, self._growth.language
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
        with ThreadPoolExecutor(self._growth.parallel) as pool:
            replies = pool.map(self._endpoint.ask, [answer_prompt(code, task) for task in tasks])
            for task, reply in zip(tasks, replies, strict=True):
                self._take(task, reply, origin)
                self._watch(self.outcome)
        return self.outcome.rows > before

    def _examples(self) -> list[Example]:
        """Seeds and kept tasks in random order, chosen anew each round; the choice depends on nothing else."""
        choice = random.Random(f"{self._growth.seed} {self._round}")
        examples = [
            *choice.sample(self._seeds, min(_SEEDS_SHOWN, len(self._seeds))),
            *choice.sample(self._kept, min(_KEPT_SHOWN, len(self._kept))),
        ]
        choice.shuffle(examples)
        return examples

    def _new_tasks(self, reply: Reply) -> list[str]:
        """The tasks of a reply that pass, no more than rows are wanted."""
        code, wanted = self._growth.language, self._growth.count - self.outcome.rows
        tasks = read_tasks(code, reply.text)
        if not tasks:
            self._drop(Fault("unreadable", "no numbered list"), reply=reply.text)
        elif reply.cut_off:
            self._drop(Fault("cut off"), task=tasks.pop())
        passed: list[str] = []
        for task in tasks:
            if fault := task_fault(task, code) or self._novelty.fault(task):
                self._drop(fault, task=task)
            elif len(passed) < wanted:
                passed.append(task)
                # Known from now on, even if no answer to it will do: asking for it again would cost as much.
                self._novelty.add(task)
        return passed

    def _take(self, task: str, reply: Reply, origin: Mapping[str, Any]) -> None:
        """Keep a task with the answer in a reply, or drop it."""
        read = read_answer(self._growth.language, reply.text)
        if reply.cut_off or read is None:
            self._drop(Fault("cut off" if reply.cut_off else "unreadable"), task=task, reply=reply.text)
            return
        given, answer = read
        if fault := answer_fault(task, given, answer, self._growth.language):
            self._drop(fault, task=task, input=given, answer=answer)
            return
        self.outcome.rows += 1
        name = f"generated-{self.outcome.rows}"
        self._kept.append(append_row(self._growth.out, task, given, answer, name, origin))

    def _drop(self, fault: Fault, **texts: str) -> None:
        self.outcome.dropped[fault.reason] += 1
        if self._growth.keep_dropped:
            row = {"reason": fault.reason, "detail": fault.detail, "round": self._round, **texts}
            append(self._growth.dropped, row)
