"""A request whose owner notes what it is told."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from waiting import LONGEST

from mm_rec.inference.engine import Engine
from mm_rec.inference.request import GenerationRequest
from mm_rec.inference.sampler import SampledToken, SamplingParams
from mm_rec.inference.scheduler import Scheduler


class Told:
    """What a work's owner is told, from the engine's thread."""

    def __init__(
        self, engine: Engine, prompt: list[int], sampling: SamplingParams, stop_ids: frozenset[int] = frozenset(), *,
        parts: list[list[int]] | None = None, on_prefilled: Callable[[int], None] | None = None,
    ):  # fmt: skip
        self.tokens: list[int] = []
        self.times: list[float] = []
        self._ended = threading.Event()
        self.came: queue.SimpleQueue[SampledToken | None] = queue.SimpleQueue()
        self.session = engine.session()
        self._request = GenerationRequest(
            session=self.session, prompt_ids=parts or [prompt], sampling=sampling, stop_ids=stop_ids,
            on_prefilled=on_prefilled,
        )  # fmt: skip

    def submit(self, scheduler: Scheduler) -> None:
        self.work = scheduler.submit(self._request, self._take)

    def _take(self, chosen: SampledToken | None) -> None:
        if chosen is None:
            self._ended.set()
        else:
            self.tokens.append(chosen.token)
            self.times.append(time.perf_counter())
        self.came.put(chosen)

    def wait(self) -> list[int]:
        assert self._ended.wait(LONGEST), "nothing came for a long time"
        return self.tokens
