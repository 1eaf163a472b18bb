"""Continuous batching: each continuation is what it is alone, bit for bit, whatever happens to the others."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedModel
from waiting import LONGEST

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference import engine as engine_module
from mm_rec.inference.engine import FEW_TOKENS, Continuation, Engine, Session
from mm_rec.inference.sampling import Chosen, Sampler, Sampling
from mm_rec.inference.scheduler import Batcher, QueueFullError, Work


class Told:
    """What a work's owner is told, from the engine's thread."""

    def __init__(
        self, engine: Engine, prompt: list[int], sampling: Sampling, stop_ids: frozenset[int] = frozenset(), *,
        parts: list[list[int]] | None = None, on_read: Callable[[int], None] | None = None,
    ):  # fmt: skip
        session = engine.session()
        self.tokens: list[int] = []
        self.times: list[float] = []
        self._ended = threading.Event()
        self.came: queue.SimpleQueue[Chosen | None] = queue.SimpleQueue()
        continuation = Continuation(session, sampling, stop_ids)
        self.work = Work(session, parts or [prompt], self._take, continuation=continuation, on_read=on_read)

    def _take(self, chosen: Chosen | None) -> None:
        if chosen is None:
            self._ended.set()
        else:
            self.tokens.append(chosen.token)
            self.times.append(time.perf_counter())
        self.came.put(chosen)

    def wait(self) -> list[int]:
        assert self._ended.wait(LONGEST), "nothing came for a long time"
        return self.tokens


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(400, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def engine(model: PreTrainedModel) -> Engine:
    return Engine(model)


@pytest.fixture
def batcher(engine: Engine) -> Iterator[Batcher]:
    made = Batcher(most=4, queue=40)
    yield made
    made.close()
    assert not made._thread.is_alive()


def alone(
    engine: Engine, prompt: list[int], sampling: Sampling, stop: frozenset[int] = frozenset()
) -> list[int]:
    session = engine.session()
    session.feed(prompt)
    return list(session.generate(sampling, stop))


def mixed(count: int) -> list[tuple[list[int], Sampling, frozenset[int]]]:
    """Prompts short and long, greedy and sampled, some with a stop token."""
    chance = random.Random(1)
    return [
        (
            prompt_of(chance.choice((1, 5, 20, FEW_TOKENS, FEW_TOKENS + 1, 90)), seed),
            Sampling(
                temperature=chance.choice((0.0, 0.9)), seed=seed, max_new_tokens=chance.randint(1, 25),
                top_p=chance.choice((1.0, 0.8)), frequency_penalty=chance.choice((0.0, 0.5)),
            ),
            frozenset(chance.sample(range(400), 20)),
        )
        for seed in range(count)
    ]  # fmt: skip


def test_each_writes_what_it_writes_alone(
    engine: Engine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SEGMENT_TOKENS", 30)
    asked = mixed(24)
    expected = [alone(engine, *one) for one in asked]
    told = [Told(engine, *one) for one in asked]
    for one in told:
        batcher.submit(one.work)
    assert [one.wait() for one in told] == expected
    for one, (_, sampling, _) in zip(told, asked, strict=True):
        ended_by = one.work.continuation.ended_by
        assert ended_by == ("length" if len(one.tokens) == sampling.max_new_tokens else "stop")
        assert one.work.error is None
    assert batcher.active == batcher.waiting == 0


def test_those_that_leave_change_nothing_for_those_that_stay(engine: Engine, batcher: Batcher) -> None:
    long, endless = (Sampling(temperature=0, max_new_tokens=most) for most in (60, 10**6))
    expected = alone(engine, prompt_of(12, 1), long)
    stays = Told(engine, prompt_of(12, 1), long)
    batcher.submit(stays.work)
    for seed in range(2, 12):
        leaves = Told(engine, prompt_of(10 * seed, seed), endless)
        batcher.submit(leaves.work)
        if seed % 2:
            leaves.came.get(timeout=LONGEST)  # one token was written
        leaves.work.cancel()
        leaves.wait()
    assert stays.wait() == expected
    assert batcher.active == batcher.waiting == 0


def test_parts_are_read_one_after_the_other_and_told(
    engine: Engine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SEGMENT_TOKENS", 30)
    greedy, parts = (
        Sampling(temperature=0, max_new_tokens=9),
        [prompt_of(length, 5) for length in (70, 3, 40)],
    )
    seen: list[tuple[int, int, list[int]]] = []
    told = Told(
        engine, [], greedy, parts=parts,
        on_read=lambda number: seen.append((number, session.length, list(session.unread))),
    )  # fmt: skip
    session = told.work.session
    batcher.submit(told.work)
    assert told.wait() == alone(engine, [token for part in parts for token in part], greedy)
    assert seen == [(0, 70, []), (1, 73, []), (2, 113, [])]
    assert told.work.finished


def test_reading_alone_ends_without_a_token(engine: Engine, batcher: Batcher) -> None:
    ended, session = threading.Event(), engine.session()
    segments: list[int] = []

    def read(one: Session) -> None:
        segments.append(len(one.unread))
        engine.read_segment(one)

    batcher.submit(Work(session, [prompt_of(20, 1)], lambda _: ended.set(), read_segment=read))
    assert ended.wait(LONGEST)
    assert (session.length, session.unread, segments) == (20, [], [20])
    other = engine.session()
    other.feed(prompt_of(20, 1))
    torch.testing.assert_close(session.next_logits(), other.next_logits(), rtol=1e-4, atol=1e-4)


def test_an_error_ends_only_its_own(
    engine: Engine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.choose
    damaged = Sampling(temperature=0, max_new_tokens=7, seed=99)

    def failing(self: Sampler, logits: torch.Tensor) -> int:
        if self._sampling is damaged:
            raise CheckpointError("not finite numbers")
        return choose(self, logits)

    monkeypatch.setattr(Sampler, "choose", failing)
    greedy = Sampling(temperature=0, max_new_tokens=20)
    well, badly = Told(engine, prompt_of(9, 1), greedy), Told(engine, prompt_of(9, 2), damaged)
    for one in (well, badly):
        batcher.submit(one.work)
    assert badly.wait() == []
    assert isinstance(badly.work.error, CheckpointError)
    assert well.wait() == alone(engine, prompt_of(9, 1), greedy)


def test_a_full_queue_refuses(engine: Engine) -> None:
    batcher = Batcher(most=1, queue=2)
    try:
        endless = Sampling(temperature=0, max_new_tokens=10**6)
        told = [Told(engine, prompt_of(3, seed), endless) for seed in range(3)]
        for one in told:  # at once: the first need not have its place yet
            batcher.submit(one.work)
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            batcher.submit(Told(engine, [1], endless).work)
    finally:
        batcher.close()
    for one in told:
        one.wait()  # closing tells everyone
    with pytest.raises(QueueFullError, match="stopping"):
        batcher.submit(Told(engine, [1], endless).work)


def test_a_long_prompt_delays_the_others_by_a_segment(
    build_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tokens of another, at most one segment is read; of two prompts the shorter is read first."""
    monkeypatch.setattr(engine_module, "SEGMENT_TOKENS", 40)
    engine, seen = Engine(build_model("mmrec").float()), []
    read_segment = engine.read_segment
    monkeypatch.setattr(
        engine, "read_segment", lambda session: (seen.append(len(session.unread)), read_segment(session))
    )
    batcher = Batcher()
    try:
        writes = Told(engine, prompt_of(5, 0), Sampling(temperature=0, max_new_tokens=10**6))
        batcher.submit(writes.work)
        writes.came.get(timeout=LONGEST)
        one = Sampling(temperature=0, max_new_tokens=1)
        long, short = Told(engine, prompt_of(1600, 1), one), Told(engine, prompt_of(100, 2), one)
        before = len(writes.tokens)
        for told in (long, short):
            batcher.submit(told.work)
        long.wait()
        assert len(writes.tokens) - before >= len(seen) - 1
        assert short.times[0] < long.times[0]
        writes.work.cancel()
    finally:
        batcher.close()


def test_biases_of_tokens_that_are_none(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="no token 400"):
        Told(engine, [1], Sampling(logit_bias={400: 1.0}))
