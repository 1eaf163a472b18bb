"""Continuous batching: each generation is what it is alone, bit for bit, whatever happens to the others."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from told import Told
from transformers import PreTrainedModel
from waiting import LONGEST

from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference import engine as engine_module
from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Engine, Session
from mm_rec.inference.request import GenerationRequest
from mm_rec.inference.sampler import Sampler, SamplingParams
from mm_rec.inference.scheduler import QueueFullError, Scheduler


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(400, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def engine(model: PreTrainedModel) -> Engine:
    return Engine(model)


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    made = Scheduler(max_running=4, max_waiting=40)
    yield made
    made.close()
    assert not made._thread.is_alive()


def alone(
    engine: Engine, prompt: list[int], sampling: SamplingParams, stop: frozenset[int] = frozenset()
) -> list[int]:
    session = engine.session()
    session.prefill(prompt)
    return list(session.generate(sampling, stop))


def mixed(count: int) -> list[tuple[list[int], SamplingParams, frozenset[int]]]:
    """Prompts short and long, greedy and sampled, some with a stop token."""
    chance = random.Random(1)
    return [
        (
            prompt_of(chance.choice((1, 5, 20, MAX_KERNEL_TOKENS, MAX_KERNEL_TOKENS + 1, 90)), seed),
            SamplingParams(
                temperature=chance.choice((0.0, 0.9)), seed=seed, max_new_tokens=chance.randint(1, 25),
                top_p=chance.choice((1.0, 0.8)), frequency_penalty=chance.choice((0.0, 0.5)),
            ),
            frozenset(chance.sample(range(400), 20)),
        )
        for seed in range(count)
    ]  # fmt: skip


def test_each_writes_what_it_writes_alone(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 30)
    asked = mixed(24)
    expected = [alone(engine, *one) for one in asked]
    told = [Told(engine, *one) for one in asked]
    for one in told:
        one.submit(scheduler)
    assert [one.wait() for one in told] == expected
    for one, (_, sampling, _) in zip(told, asked, strict=True):
        finish_reason = one.work.finish_reason
        assert finish_reason == ("length" if len(one.tokens) == sampling.max_new_tokens else "stop")
        assert one.work.error is None
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_those_that_leave_change_nothing_for_those_that_stay(engine: Engine, scheduler: Scheduler) -> None:
    long, endless = (SamplingParams(temperature=0, max_new_tokens=most) for most in (60, 10**6))
    expected = alone(engine, prompt_of(12, 1), long)
    stays = Told(engine, prompt_of(12, 1), long)
    stays.submit(scheduler)
    for seed in range(2, 12):
        leaves = Told(engine, prompt_of(10 * seed, seed), endless)
        leaves.submit(scheduler)
        if seed % 2:
            leaves.came.get(timeout=LONGEST)  # one token was written
        leaves.work.cancel()
        leaves.wait()
    assert stays.wait() == expected
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_parts_are_read_one_after_the_other_and_told(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 30)
    greedy, parts = (
        SamplingParams(temperature=0, max_new_tokens=9),
        [prompt_of(length, 5) for length in (70, 3, 40)],
    )
    seen: list[tuple[int, int, list[int]]] = []
    told = Told(
        engine, [], greedy, parts=parts,
        on_prefilled=lambda number: seen.append((number, session.length, list(session.pending_ids))),
    )  # fmt: skip
    session = told.session
    told.submit(scheduler)
    assert told.wait() == alone(engine, [token for part in parts for token in part], greedy)
    assert seen == [(0, 70, []), (1, 73, []), (2, 113, [])]
    assert told.work.finished


@pytest.mark.parametrize("asked", ["nothing", "prompt_logprobs", "pooling"])
@torch.no_grad()
def test_reading_alone_ends_without_a_token(engine: Engine, scheduler: Scheduler, asked: str) -> None:
    ended, session, ids = threading.Event(), engine.session(), prompt_of(20, 1)
    more: dict[str, Any] = {
        "nothing": {},
        "prompt_logprobs": {"prompt_logprobs": 1},
        "pooling": {"pooling": True},
    }
    request = GenerationRequest(session=session, prompt_ids=[ids], **more[asked])
    state = scheduler.submit(request, lambda _: ended.set())
    assert ended.wait(LONGEST)
    assert (session.length, session.pending_ids, state.finished, state.finish_reason) == (20, [], True, "")
    if asked != "pooling":  # which has no use for logits
        other = engine.session()
        other.prefill(ids)
        torch.testing.assert_close(session.next_logits(), other.next_logits(), rtol=1e-4, atol=1e-4)
    model, read = engine.model, torch.tensor([ids])
    if asked == "prompt_logprobs":
        expected = model(input_ids=read, use_cache=False).logits[0].float().log_softmax(-1)
        assert state.prompt_logprobs[0] is None
        for place, found in enumerate(state.prompt_logprobs[1:]):
            assert found is not None and found.token == ids[place + 1]
            assert found.logprob == pytest.approx(float(expected[place, found.token]), rel=1e-4)
            assert found.top_logprobs[0][0] == int(expected[place].argmax())
    if asked == "pooling":
        hidden = model.get_decoder()(input_ids=read, use_cache=False)[0][0].float().sum(0)
        torch.testing.assert_close(state.hidden_sum, hidden, rtol=1e-4, atol=1e-4)
    else:
        assert state.hidden_sum.dim() == 0


def test_an_error_ends_only_its_own(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.sample
    damaged = SamplingParams(temperature=0, max_new_tokens=7, seed=99)

    def failing(self: Sampler, logits: torch.Tensor) -> int:
        if self._sampling is damaged:
            raise CheckpointError("not finite numbers")
        return choose(self, logits)

    monkeypatch.setattr(Sampler, "sample", failing)
    greedy = SamplingParams(temperature=0, max_new_tokens=20)
    well, badly = Told(engine, prompt_of(9, 1), greedy), Told(engine, prompt_of(9, 2), damaged)
    for one in (well, badly):
        one.submit(scheduler)
    assert badly.wait() == []
    assert isinstance(badly.work.error, CheckpointError)
    assert well.wait() == alone(engine, prompt_of(9, 1), greedy)


def test_a_full_queue_refuses(engine: Engine) -> None:
    scheduler = Scheduler(max_running=1, max_waiting=2)
    try:
        endless = SamplingParams(temperature=0, max_new_tokens=10**6)
        told = [Told(engine, prompt_of(3, seed), endless) for seed in range(3)]
        for one in told:  # at once: the first need not have its place yet
            one.submit(scheduler)
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            Told(engine, [1], endless).submit(scheduler)
    finally:
        scheduler.close()
    for one in told:
        one.wait()  # closing tells everyone
    with pytest.raises(QueueFullError, match="stopping"):
        Told(engine, [1], endless).submit(scheduler)


def test_a_long_prompt_delays_the_others_by_a_segment(
    build_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tokens of another, at most one segment is read; of two prompts the shorter is read first."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 40)
    engine, seen = Engine(build_model("mmrec").float()), []
    prefill_chunk = engine.prefill_chunk
    monkeypatch.setattr(
        engine,
        "prefill_chunk",
        lambda session: (seen.append(len(session.pending_ids)), prefill_chunk(session)),
    )
    scheduler = Scheduler()
    try:
        writes = Told(engine, prompt_of(5, 0), SamplingParams(temperature=0, max_new_tokens=10**6))
        writes.submit(scheduler)
        writes.came.get(timeout=LONGEST)
        one = SamplingParams(temperature=0, max_new_tokens=1)
        long, short = Told(engine, prompt_of(1600, 1), one), Told(engine, prompt_of(100, 2), one)
        before = len(writes.tokens)
        for told in (long, short):
            told.submit(scheduler)
        long.wait()
        assert len(writes.tokens) - before >= len(seen) - 1
        assert short.times[0] < long.times[0]
        writes.work.cancel()
    finally:
        scheduler.close()


def test_a_long_prompt_takes_no_more_time_than_the_others(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a chunk takes 10 and a pass 3: three to four passes come between two chunks."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK_TOKENS", 80)
    now, done = [0.0], list[str]()
    prefill, forward = Engine.prefill_chunk, Engine.forward

    def slow_chunk(self: Engine, session: Session) -> None:
        if len(session.pending_ids) > 1:  # else it is a pass of one, where the kernels are not used
            now[0] += 10
            done.append("chunk")
        prefill(self, session)

    def slow_pass(self: Engine, sessions: list[Session]) -> None:
        now[0] += 3
        done.append("pass")
        forward(self, sessions)

    monkeypatch.setattr(Engine, "prefill_chunk", slow_chunk)
    monkeypatch.setattr(Engine, "forward", slow_pass)
    monkeypatch.setattr("mm_rec.inference.scheduler.time.monotonic", lambda: now[0])
    writing = Told(engine, prompt_of(1, 0), SamplingParams(temperature=0.0, max_new_tokens=400))
    reading = Told(engine, prompt_of(800, 1), SamplingParams(temperature=0.0, max_new_tokens=1))
    writing.submit(scheduler)
    writing.came.get(timeout=LONGEST)
    reading.submit(scheduler)
    assert len(writing.wait()) == 400 and len(reading.wait()) == 1
    chunks = [place for place, what in enumerate(done) if what == "chunk"]
    between = [last - first - 1 for first, last in itertools.pairwise(chunks[:-1])]
    assert len(chunks) >= 10 and set(between) == {4}, between


class Prompt:
    """A prompt as the scheduler sees it, of so many chunks."""

    def __init__(self, chunks: int) -> None:
        self.remaining_prompt_tokens, self.num_prefilled, self.done = chunks, 0, False

    @property
    def needs_prefill(self) -> bool:
        return self.remaining_prompt_tokens > 0

    def prefill(self) -> None:
        self.remaining_prompt_tokens -= 1
        self.num_prefilled += 1
        self.done = not self.remaining_prompt_tokens

    def end(self) -> None:
        pass


def test_short_prompts_without_end_do_not_keep_a_long_one_out() -> None:
    scheduler = Scheduler()
    scheduler.close()  # it is stepped by hand
    long = Prompt(8)
    running: Any = scheduler._running
    running.append(long)
    steps = 0
    while not long.done and steps < 100:
        running.append(Prompt(1))
        scheduler.step()
        steps += 1
    assert 8 < steps <= 4 * 8


def test_biases_of_tokens_that_are_none(engine: Engine, scheduler: Scheduler) -> None:
    with pytest.raises(ConfigError, match="no token 400"):
        Told(engine, [1], SamplingParams(logit_bias={400: 1.0})).submit(scheduler)
